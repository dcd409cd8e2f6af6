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


def policy(namespace, patch_type):
    """The policy inside the API server, for one namespace. Kubernetes knows two notations for what it changes."""
    name = f"bench-{namespace}"
    apply = """Object{spec: Object.spec{template: Object.spec.template{
        metadata: Object.spec.template.metadata{labels: {'pgset.dev/role': 'replica'}},
        spec: Object.spec.template.spec{
          serviceAccountName: object.metadata.name + '-sa',
          containers: [Object.spec.template.spec.containers{
            name: object.spec.template.spec.containers[0].name,
            env: [
              Object.spec.template.spec.containers.env{name: 'PG_MODE', value: 'set'},
              Object.spec.template.spec.containers.env{name: 'PG_MASTER_HOST', value: object.metadata.name + '-master'},
              Object.spec.template.spec.containers.env{name: 'POD_NAME',
                valueFrom: Object.spec.template.spec.containers.env.valueFrom{
                  fieldRef: Object.spec.template.spec.containers.env.valueFrom.fieldRef{fieldPath: 'metadata.name'}}}],
            volumeMounts: [Object.spec.template.spec.containers.volumeMounts{
              name: 'pgset-data', mountPath: '/pgdata', subPathExpr: '$(POD_NAME)'}]}],
          volumes: [Object.spec.template.spec.volumes{name: 'pgset-data',
            persistentVolumeClaim: Object.spec.template.spec.volumes.persistentVolumeClaim{claimName: 'pgset-pvc'}}]}}}}"""
    container = "/spec/template/spec/containers/0"
    patch = f"""[
        JSONPatch{{op: 'add', path: '/spec/template/spec/serviceAccountName', value: object.metadata.name + '-sa'}},
        JSONPatch{{op: 'add', path: '/spec/template/metadata/labels/' + jsonpatch.escapeKey('pgset.dev/role'), value: 'replica'}},
        JSONPatch{{op: 'add', path: '/spec/template/spec/volumes/-', value: {{'name': 'pgset-data',
          'persistentVolumeClaim': {{'claimName': 'pgset-pvc'}}}}}},
        JSONPatch{{op: 'add', path: '{container}/env/-', value: {{'name': 'PG_MODE', 'value': 'set'}}}},
        JSONPatch{{op: 'add', path: '{container}/env/-', value: {{'name': 'PG_MASTER_HOST', 'value': object.metadata.name + '-master'}}}},
        JSONPatch{{op: 'add', path: '{container}/env/-', value: {{'name': 'POD_NAME',
          'valueFrom': {{'fieldRef': {{'fieldPath': 'metadata.name'}}}}}}}},
        JSONPatch{{op: 'add', path: '{container}/volumeMounts/-', value: {{'name': 'pgset-data', 'mountPath': '/pgdata',
          'subPathExpr': '$(POD_NAME)'}}}}]"""
    key, expression = {"ApplyConfiguration": ("applyConfiguration", apply), "JSONPatch": ("jsonPatch", patch)}[patch_type]
    return [
        {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy", "metadata": {"name": name},
         "spec": {"matchConstraints": {"resourceRules": STATEFUL_SETS}, "failurePolicy": "Fail", "reinvocationPolicy": "IfNeeded",
                  "matchConditions": [{"name": "annotated", "expression": "has(object.metadata.annotations) && 'pgset.dev/inject' in object.metadata.annotations"}],
                  "mutations": [{"patchType": patch_type, key: {"expression": expression}}]}},
        {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": name},
         "spec": {"policyName": name, "matchResources": {"namespaceSelector": only(namespace)}}},
    ]


def webhook(namespace, url, authority):
    """A webhook for one namespace."""
    return {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": f"bench-{namespace}"},
            "webhooks": [{
                "name": "bench.pgset.dev", "clientConfig": {"url": url, "caBundle": authority}, "rules": STATEFUL_SETS,
                "namespaceSelector": only(namespace), "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 5,
                "reinvocationPolicy": "IfNeeded", "admissionReviewVersions": ["v1"],
                "matchConditions": [{"name": "annotated", "expression": "has(object.metadata.annotations) && 'pgset.dev/inject' in object.metadata.annotations"}]}]}
