"""The StatefulSet that everybody gets to see, and the mutation that everybody makes of it."""

import json

NAME = "orders"


def stateful_set(namespace="shop", name=NAME, extra_env=0):
    """A PostgreSQL StatefulSet as the API server passes it on: with its defaults. Each extra variable is about 95 bytes."""
    env = [{"name": "POSTGRES_PASSWORD", "valueFrom": {"secretKeyRef": {"name": f"{name}-credentials", "key": "postgres-password"}}}]
    env += [{"name": f"SETTING_{n:03}", "value": f"value-of-setting-{n:03}-{'x' * 40}"} for n in range(extra_env)]
    return {
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name},
                     "annotations": {"pgset.dev/inject": "enabled", "pgset.dev/claim": "pgset-pvc"}},
        "spec": {
            "replicas": 2, "serviceName": name, "podManagementPolicy": "OrderedReady", "revisionHistoryLimit": 10,
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "containers": [{
                        "name": "postgres", "image": "postgres:17", "imagePullPolicy": "IfNotPresent", "env": env,
                        "ports": [{"name": "postgres", "containerPort": 5432, "protocol": "TCP"}],
                        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
                        "volumeMounts": [{"name": "scripts", "mountPath": "/scripts"}],
                        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                    "volumes": [{"name": "scripts", "configMap": {"name": f"{name}-scripts", "defaultMode": 420}}],
                    "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
                    "securityContext": {}, "schedulerName": "default-scheduler"}}}}


def review(extra_env=0):
    """An AdmissionReview as the API server sends it at CREATE."""
    kind = {"group": "apps", "version": "v1", "kind": "StatefulSet"}
    resource = {"group": "apps", "version": "v1", "resource": "statefulsets"}
    return json.dumps({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "kind": kind, "resource": resource, "requestKind": kind,
            "requestResource": resource, "name": NAME, "namespace": "shop", "operation": "CREATE",
            "userInfo": {"username": "admin", "groups": ["system:masters", "system:authenticated"]},
            "object": stateful_set(extra_env=extra_env), "oldObject": None, "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}}}, separators=(",", ":"))


# === the mutation, as Gatekeeper and the API server's own policy make it; tests/peers/thin makes it in Go ===

VARIABLES = [
    {"name": "PG_MODE", "value": "set"},
    {"name": "PG_MASTER_HOST", "value": f"{NAME}-master"},
    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
]
VOLUME = {"name": "pgset-data", "persistentVolumeClaim": {"claimName": "pgset-pvc"}}
MOUNT = {"name": "pgset-data", "mountPath": "/pgdata", "subPathExpr": "$(POD_NAME)"}


def gatekeeper_mutators():
    """Seven, one for each thing that is set: Gatekeeper's way."""
    pod, container = "spec.template.spec", 'spec.template.spec.containers[name: "postgres"]'
    places = {
        "account": (f"{pod}.serviceAccountName", f"{NAME}-sa"),
        "role": ('spec.template.metadata.labels."pgset.dev/role"', "replica"),
        "volume": (f'{pod}.volumes[name: "{VOLUME["name"]}"]', VOLUME),
        "mount": (f'{container}.volumeMounts[mountPath: "{MOUNT["mountPath"]}"]', MOUNT),
    }
    for variable in VARIABLES:
        places[variable["name"].lower().replace("_", "-")] = (f'{container}.env[name: "{variable["name"]}"]', variable)
    return [{
        "apiVersion": "mutations.gatekeeper.sh/v1", "kind": "Assign", "metadata": {"name": name},
        "spec": {
            "applyTo": [{"groups": ["apps"], "versions": ["v1"], "kinds": ["StatefulSet"]}],
            "match": {"scope": "Namespaced", "kinds": [{"apiGroups": ["apps"], "kinds": ["StatefulSet"]}]},
            "location": location, "parameters": {"assign": {"value": value}}}}
        for name, (location, value) in places.items()]


STATEFUL_SETS = [{"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["statefulsets"], "operations": ["CREATE", "UPDATE"]}]


def only(namespace):
    return {"matchLabels": {"kubernetes.io/metadata.name": namespace}}


def policy(namespace):
    """The policy inside the API server, for one namespace. Of its two notations only JSON Patch can do it: an ApplyConfiguration "may
    not mutate atomic arrays, maps or structs", of which a variable's fieldRef is one."""
    name = f"bench-{namespace}"
    pod = "Object.spec.template.spec"
    account = "object.metadata.name + '-sa'"
    variables = [f"{pod}.containers.env{{name: 'PG_MODE', value: 'set'}}",
                 f"{pod}.containers.env{{name: 'PG_MASTER_HOST', value: object.metadata.name + '-master'}}",
                 f"{pod}.containers.env{{name: 'POD_NAME', valueFrom: {pod}.containers.env.valueFrom{{"
                 f"fieldRef: {pod}.containers.env.valueFrom.fieldRef{{fieldPath: 'metadata.name'}}}}}}"]
    mount = f"{pod}.containers.volumeMounts{{name: 'pgset-data', mountPath: '/pgdata', subPathExpr: '$(POD_NAME)'}}"
    volume = f"{pod}.volumes{{name: 'pgset-data', persistentVolumeClaim: {pod}.volumes.persistentVolumeClaim{{claimName: 'pgset-pvc'}}}}"
    template, container = "/spec/template", "/spec/template/spec/containers/0"
    additions = [(f"'{template}/spec/serviceAccountName'", account),
                 (f"'{template}/metadata/labels/' + jsonpatch.escapeKey('pgset.dev/role')", "'replica'"),
                 (f"'{template}/spec/volumes/-'", volume),
                 *((f"'{container}/env/-'", variable) for variable in variables),
                 (f"'{container}/volumeMounts/-'", mount)]
    patch = "[" + ", ".join(f"JSONPatch{{op: 'add', path: {path}, value: {value}}}" for path, value in additions) + "]"
    return [
        {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy", "metadata": {"name": name},
         "spec": {"matchConstraints": {"resourceRules": STATEFUL_SETS}, "failurePolicy": "Fail", "reinvocationPolicy": "Never",
                  "matchConditions": [{"name": "annotated", "expression": "has(object.metadata.annotations) && 'pgset.dev/inject' in object.metadata.annotations"}],
                  "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}]}},
        {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": name},
         "spec": {"policyName": name, "matchResources": {"namespaceSelector": only(namespace)}}},
    ]


def webhook(namespace, url, authority):
    """A webhook for one namespace."""
    return {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": f"bench-{namespace}"},
            "webhooks": [{
                "name": "bench.pgset.dev", "clientConfig": {"url": url, "caBundle": authority}, "rules": STATEFUL_SETS,
                "namespaceSelector": only(namespace), "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 5,
                "reinvocationPolicy": "Never", "admissionReviewVersions": ["v1"],
                "matchConditions": [{"name": "annotated", "expression": "has(object.metadata.annotations) && 'pgset.dev/inject' in object.metadata.annotations"}]}]}
