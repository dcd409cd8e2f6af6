// Thin is the webhook that most operators have: a handler on controller-runtime which decodes the StatefulSet, changes it, and
// lets the library compare both. The bench measures it beside pgset; it does the same as its Gatekeeper mutators and its policy.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"net/http"
	"os"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

type injector struct{ decoder admission.Decoder }

func (i injector) Handle(_ context.Context, request admission.Request) admission.Response {
	set := &appsv1.StatefulSet{}
	if err := i.decoder.Decode(request, set); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	inject(set)
	changed, err := json.Marshal(set)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(request.Object.Raw, changed)
}

// inject adds what a PostgreSQL set needs at the very least, to the first container.
func inject(set *appsv1.StatefulSet) {
	template := &set.Spec.Template
	template.Spec.ServiceAccountName = set.Name + "-sa"
	if template.Labels == nil {
		template.Labels = map[string]string{}
	}
	template.Labels["pgset.dev/role"] = "replica"
	template.Spec.Volumes = append(template.Spec.Volumes, corev1.Volume{
		Name: "pgset-data",
		VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "pgset-pvc"},
		},
	})
	container := &template.Spec.Containers[0]
	container.Env = append(container.Env,
		corev1.EnvVar{Name: "PG_MODE", Value: "set"},
		corev1.EnvVar{Name: "PG_MASTER_HOST", Value: set.Name + "-master"},
		corev1.EnvVar{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{
			FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"},
		}})
	container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{
		Name: "pgset-data", MountPath: "/pgdata", SubPathExpr: "$(POD_NAME)",
	})
}

func main() {
	port := flag.Int("port", 9443, "port of the webhook")
	certificates := flag.String("cert-dir", "", "folder with tls.crt and tls.key")
	flag.Parse()
	ctrl.SetLogger(logr.Discard())

	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		panic(err)
	}
	server := webhook.NewServer(webhook.Options{Port: *port, CertDir: *certificates})
	server.Register("/mutate", &webhook.Admission{Handler: injector{admission.NewDecoder(scheme)}})
	if err := server.Start(ctrl.SetupSignalHandler()); err != nil {
		os.Stderr.WriteString("thin: " + err.Error() + "\n")
		os.Exit(1)
	}
}
