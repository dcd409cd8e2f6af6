"""The StatefulSet that everybody gets to see, and the mutations that they make of it."""

import json

NAME = "orders"


def stateful_set(namespace="shop", name=NAME, extra_env=0):
    """A PostgreSQL StatefulSet as the API server passes it on: with its defaults. Each extra variable is about 95 bytes."""
    env = [{"name": "POSTGRES_PASSWORD", "valueFrom": {"secretKeyRef": {"name": f"{name}-pgset-credentials", "key": "postgres-password"}}}]
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


def review(extra_env=0, namespace="shop"):
    """An AdmissionReview as the API server sends it at CREATE."""
    kind = {"group": "apps", "version": "v1", "kind": "StatefulSet"}
    resource = {"group": "apps", "version": "v1", "resource": "statefulsets"}
    return json.dumps({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "kind": kind, "resource": resource, "requestKind": kind,
            "requestResource": resource, "name": NAME, "namespace": namespace, "operation": "CREATE",
            "userInfo": {"username": "admin", "groups": ["system:masters", "system:authenticated"]},
            "object": stateful_set(namespace, extra_env=extra_env), "oldObject": None, "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}}}, separators=(",", ":"))


# === the mutations, as operations of a JSON Patch that only adds ===

# What a PostgreSQL set needs at the very least. The other mutation is pgset's own, as it answers it: see `admission.whole`.
_CONTAINER = "/spec/template/spec/containers/0"
LEAST = [
    {"op": "add", "path": path, "value": value} for path, value in [
        ("/spec/template/spec/serviceAccountName", f"{NAME}-sa"),
        ("/spec/template/metadata/labels/pgset.dev~1role", "replica"),
        ("/spec/template/spec/volumes/-", {"name": "pgset-data", "persistentVolumeClaim": {"claimName": "pgset-pvc"}}),
        (f"{_CONTAINER}/env/-", {"name": "PG_MODE", "value": "set"}),
        (f"{_CONTAINER}/env/-", {"name": "PG_MASTER_HOST", "value": f"{NAME}-master"}),
        (f"{_CONTAINER}/env/-", {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        (f"{_CONTAINER}/volumeMounts/-", {"name": "pgset-data", "mountPath": "/pgdata", "subPathExpr": "$(POD_NAME)"}),
    ]]


def tokens(path):
    return [token.replace("~1", "/").replace("~0", "~") for token in path.split("/")[1:]]


def patched(document, operations):
    """The object after a JSON Patch of the operations that these servers use."""
    document = json.loads(json.dumps(document))
    for operation in operations:
        *way, last = tokens(operation["path"])
        place = document
        for token in way:
            place = place[int(token) if isinstance(place, list) else token]
        if isinstance(place, list):
            index = len(place) if last == "-" else int(last)
            place[index:index + (operation["op"] != "add")] = [] if operation["op"] == "remove" else [operation["value"]]
        elif operation["op"] == "remove":
            del place[last]
        else:
            place[last] = operation["value"]
    return document


def identity(item):
    return json.dumps(item.get("mountPath") or item.get("name") if isinstance(item, dict) else item)


def covers(actual, wanted):
    """Whether an object has all that another has, in whatever order: typed handlers add empty fields, Gatekeeper its own order."""
    if isinstance(wanted, dict):
        return isinstance(actual, dict) and all(covers(actual.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        pairs = zip(sorted(actual or [], key=identity), sorted(wanted, key=identity))
        return len(actual or []) == len(wanted) and all(covers(one, other) for one, other in pairs)
    return actual == wanted


def alone(operations):
    """What is added, as a StatefulSet that has nothing else: for tests/peers/thin."""
    made = {"metadata": {"annotations": {}},
            "spec": {"template": {"metadata": {"labels": {}}, "spec": {"volumes": [], "containers": [{"env": [], "volumeMounts": []}]}}}}
    return patched(made, operations)


def gatekeeper_mutators(prefix, namespace, operations):
    """One for each thing that is added: Gatekeeper's way."""
    places = []
    for operation in operations:
        *way, last = tokens(operation["path"])
        items = operation["value"] if isinstance(operation["value"], list) and last != "command" else [operation["value"]]
        in_list = last == "-" or len(items) > 1 or items[0] is not operation["value"]
        parts = [f'containers[name: "postgres"]' if part == "containers" else json.dumps(part) if "/" in part else part
                 for part in (way if last == "-" else [*way, last]) if part != "0"]
        for item in items:
            key = "mountPath" if "mountPath" in item else "name"
            places.append((".".join(parts) + (f'[{key}: "{item[key]}"]' if in_list else ""), item))
    match = {"scope": "Namespaced", "namespaces": [namespace], "kinds": [{"apiGroups": ["apps"], "kinds": ["StatefulSet"]}]}
    mutators = []
    for number, (location, value) in enumerate(places):
        metadata = location.startswith("metadata.")
        apply = {} if metadata else {"applyTo": [{"groups": ["apps"], "versions": ["v1"], "kinds": ["StatefulSet"]}]}
        mutators.append({
            "apiVersion": "mutations.gatekeeper.sh/v1", "kind": "AssignMetadata" if metadata else "Assign",
            "metadata": {"name": f"{prefix}-{number}"},
            "spec": {**apply, "match": match, "location": location, "parameters": {"assign": {"value": value}}}})
    return mutators


STATEFUL_SETS = [{"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["statefulsets"], "operations": ["CREATE", "UPDATE"]}]


def only(namespace):
    return {"matchLabels": {"kubernetes.io/metadata.name": namespace}}


def cel(value):
    """A value as the API server's expression language writes it: of the members of a list or map it wants one type, so each has none."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: dyn({cel(member)})" for key, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(f"dyn({cel(item)})" for item in value) + "]"
    return json.dumps(value)


def policy(namespace, operations):
    """The policy inside the API server, for one namespace. Of its two notations only JSON Patch can do it: an ApplyConfiguration "may
    not mutate atomic arrays, maps or structs", of which a variable's fieldRef is one."""
    name = f"bench-{namespace}"
    patch = ", ".join(f"JSONPatch{{op: 'add', path: {cel(it['path'])}, value: {cel(it['value'])}}}" for it in operations)
    return [
        {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy", "metadata": {"name": name},
         "spec": {"matchConstraints": {"resourceRules": STATEFUL_SETS}, "failurePolicy": "Fail", "reinvocationPolicy": "Never",
                  "matchConditions": [{"name": "annotated", "expression": "has(object.metadata.annotations) && 'pgset.dev/inject' in object.metadata.annotations"}],
                  "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": f"[{patch}]"}}]}},
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
