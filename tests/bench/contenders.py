"""Who is measured by `make bench-failover`: pgset and Patroni, each with three members of the same PostgreSQL on the same kind of volume."""

import json
import os
import urllib.request

import postgres
from postgres import SPACE, apply, get, kubectl
from tools import TOP, WORK, run, say

MEMBERS = 3
PASSWORD = "of-the-bench"


class Pgset:
    """A set as its example shows it; `synchronous` replicas have to confirm a commit."""

    container, service = "postgres", "pgset-master"

    def __init__(self, name, synchronous=0):
        self.name, self.synchronous = name, synchronous
        self.members = [f"pgset-{number}" for number in range(MEMBERS)]
        self.set = "pgset"

    def start(self):
        """Applies it; the superuser's password."""
        manifest = (TOP / "deploy/examples/pgset.yaml").read_text().replace("replicas: 2", f"replicas: {MEMBERS}")
        claim = "pgset.dev/claim: pgset-pvc\n"
        kubectl("apply -f -", manifest.replace(claim, f'{claim}    pgset.dev/synchronous: "{self.synchronous}"\n'))
        return postgres.passwords()[0]

    def switchover(self, master, other, number):
        run("kubectl", "--namespace", SPACE, "annotate", "statefulset", "pgset", "--overwrite", f"pgset.dev/switchover={other} {number}")


class Patroni:
    """Patroni as its own example for Kubernetes has it (Endpoints as its store, the leader's address written there by itself), except
    that its data is on a volume, that its members have the 30 seconds to end that are Kubernetes' default where the example kills
    them at once, and that passwords are SCRAM's. `settings` are its dynamic configuration."""

    container, service, set = "patroni", "patroni", "patroni"

    def __init__(self, name, **settings):
        self.name, self.settings = name, settings
        self.members = [f"patroni-{number}" for number in range(MEMBERS)]

    def start(self):
        image = WORK / "patroni.tar"
        if not image.exists():
            say("building the image patroni:bench")
            run(TOP / "tests/bench/build-patroni", image)
        run(TOP / "tests/lab/load-image", image, env={**os.environ, "PGSET_LAB": str(postgres.LAB)})
        apply(*patroni(self.settings))
        return PASSWORD

    def switchover(self, master, other, _):
        address = get(f"pod {master}")["status"]["podIP"]
        request = urllib.request.Request(f"http://{address}:8008/switchover", json.dumps({"leader": master, "candidate": other}).encode())
        urllib.request.urlopen(request, timeout=60).read()


def patroni(settings):
    """The objects of a set of Patroni's members."""
    labels = {"application": "patroni", "cluster-name": "patroni"}
    metadata = {"name": "patroni", "labels": labels}
    verbs = ["create", "get", "list", "patch", "update", "watch"]
    config = {
        "bootstrap": {
            "dcs": {**settings, "postgresql": {"use_pg_rewind": True, "pg_hba": [
                "local all all trust", "host all all all scram-sha-256", "host replication standby all scram-sha-256"]}},
            "initdb": [{"auth-host": "scram-sha-256"}, {"auth-local": "trust"}, {"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "data-checksums"],
        },
        "postgresql": {"bin_dir": "/usr/lib/postgresql/17/bin", "data_dir": "/volume/data", "listen": "0.0.0.0:5432", "pgpass": "/tmp/pgpass",
                       "authentication": {"superuser": {"username": "postgres", "password": PASSWORD},
                                          "replication": {"username": "standby", "password": PASSWORD}}},
        "restapi": {"listen": "0.0.0.0:8008"},
        "kubernetes": {"labels": labels, "namespace": SPACE, "use_endpoints": True},
    }
    def own(name, path):
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
    start = """install -d -o postgres -g postgres -m 700 /volume/data
export PATRONI_KUBERNETES_POD_IP=$POD_IP PATRONI_POSTGRESQL_CONNECT_ADDRESS=$POD_IP:5432 PATRONI_RESTAPI_CONNECT_ADDRESS=$POD_IP:8008
exec gosu postgres python3 -m patroni /config/patroni.yml"""
    pod = {
        "serviceAccountName": "patroni",
        "containers": [{
            "name": "patroni", "image": "patroni:bench", "imagePullPolicy": "Never", "command": ["bash", "-ec", start],
            "env": [own("POD_IP", "status.podIP"), own("PATRONI_NAME", "metadata.name"), {"name": "PATRONI_SCOPE", "value": "patroni"},
                    own("POD_NAME", "metadata.name")],
            "ports": [{"containerPort": 8008}, {"containerPort": 5432}],
            "readinessProbe": {"httpGet": {"scheme": "HTTP", "path": "/readiness", "port": 8008}, "initialDelaySeconds": 3,
                               "periodSeconds": 10, "timeoutSeconds": 5, "successThreshold": 1, "failureThreshold": 3},
            "volumeMounts": [{"name": "volume", "mountPath": "/volume", "subPathExpr": "$(POD_NAME)"}, {"name": "config", "mountPath": "/config"}],
        }],
        "volumes": [{"name": "volume", "persistentVolumeClaim": {"claimName": "pgset-pvc"}}, {"name": "config", "configMap": {"name": "patroni"}}],
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata,
         "rules": [{"apiGroups": [""], "resources": ["configmaps", "endpoints", "pods"], "verbs": verbs},
                   {"apiGroups": [""], "resources": ["services"], "verbs": ["create"]}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "patroni"},
         "subjects": [{"kind": "ServiceAccount", "name": "patroni"}]},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"patroni.yml": json.dumps(config)}},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 5432, "targetPort": 5432}]}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "patroni-config", "labels": labels}, "spec": {"clusterIP": "None"}},
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata,
         "spec": {"replicas": MEMBERS, "serviceName": "patroni", "selector": {"matchLabels": labels},
                  "template": {"metadata": {"labels": labels}, "spec": pod}}},
    ]


CONTENDERS = [
    Pgset("pgset"),
    Pgset("pgset-synchronous", synchronous=1),
    Patroni("patroni"),
    # Patroni takes no ttl below 20, and asks that loop_wait + 2 * retry_timeout <= ttl.
    Patroni("patroni-tuned", ttl=20, loop_wait=5, retry_timeout=3),
]
