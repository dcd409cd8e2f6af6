// Thin is the webhook that most operators have: a handler on controller-runtime which decodes the StatefulSet, changes it, and
// lets the library compare both. The bench measures it beside pgset. What it adds stands in the files that are its arguments,
// each a StatefulSet with nothing else in it; NAME.json is served at /NAME.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

type injector struct {
	decoder   admission.Decoder
	additions *appsv1.StatefulSet
}

func (i injector) Handle(_ context.Context, request admission.Request) admission.Response {
	set := &appsv1.StatefulSet{}
	if err := i.decoder.Decode(request, set); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	inject(set, i.additions)
	changed, err := json.Marshal(set)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(request.Object.Raw, changed)
}

// inject adds all that stands in the additions, to the first container what stands in theirs.
func inject(set, additions *appsv1.StatefulSet) {
	set.Annotations = merged(set.Annotations, additions.Annotations)
	template, more := &set.Spec.Template, &additions.Spec.Template
	template.Labels = merged(template.Labels, more.Labels)
	template.Spec.ServiceAccountName = more.Spec.ServiceAccountName
	template.Spec.Volumes = append(template.Spec.Volumes, more.Spec.Volumes...)
	template.Spec.InitContainers = append(template.Spec.InitContainers, more.Spec.InitContainers...)
	container, extra := &template.Spec.Containers[0], &more.Spec.Containers[0]
	container.Env = append(container.Env, extra.Env...)
	container.VolumeMounts = append(container.VolumeMounts, extra.VolumeMounts...)
	if extra.Command != nil {
		container.Command = extra.Command
	}
	if extra.StartupProbe != nil {
		container.StartupProbe = extra.StartupProbe
	}
	if extra.ReadinessProbe != nil {
		container.ReadinessProbe = extra.ReadinessProbe
	}
	if extra.LivenessProbe != nil {
		container.LivenessProbe = extra.LivenessProbe
	}
}

func merged(own, more map[string]string) map[string]string {
	if own == nil {
		own = map[string]string{}
	}
	for key, value := range more {
		own[key] = value
	}
	return own
}

func read(file string) (*appsv1.StatefulSet, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	additions := &appsv1.StatefulSet{}
	return additions, json.Unmarshal(text, additions)
}

func run() error {
	port := flag.Int("port", 9443, "port of the webhook")
	certificates := flag.String("cert-dir", "", "folder with tls.crt and tls.key")
	flag.Parse()
	ctrl.SetLogger(logr.Discard())

	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return err
	}
	server := webhook.NewServer(webhook.Options{Port: *port, CertDir: *certificates})
	for _, file := range flag.Args() {
		additions, err := read(file)
		if err != nil {
			return err
		}
		path := "/" + strings.TrimSuffix(filepath.Base(file), ".json")
		server.Register(path, &webhook.Admission{Handler: injector{admission.NewDecoder(scheme), additions}})
	}
	return server.Start(ctrl.SetupSignalHandler())
}

func main() {
	if err := run(); err != nil {
		os.Stderr.WriteString("thin: " + err.Error() + "\n")
		os.Exit(1)
	}
}
