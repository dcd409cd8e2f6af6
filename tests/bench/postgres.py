"""Figures of PostgreSQL on the lab, with the aims beside them.

Where it can it measures a ratio: a scale-up against a bare pg_basebackup of the same master, on the same disk, in the same state.
Other work on the machine shows in the figures, so nothing else should run.
"""

import base64
import json
import os
import re
import shutil
import statistics
import time
from datetime import datetime, timezone
from pathlib import Path

import tools
from tools import TOP, run

SPACE = os.environ.get("SPACE", "pgset-bench")
CONTAINERD = "/run/pgset-lab/containerd.sock"
KUBECONFIG = Path(os.environ.get("KUBECONFIG", "target/lab/kubeconfig")).resolve()
LAB = KUBECONFIG.parent
EXPORT = LAB / "export" / SPACE
SCALE = int(os.environ.get("SCALE", "70"))  # of pgbench; 70 is about 1 GB
REPEAT = int(os.environ.get("REPEAT", "3"))  # of the scale-up and the bare clone
WINDOW = int(os.environ.get("WINDOW", "60"))  # seconds of idleness that are watched

rows = []


def note(what, figure, aim, beside=""):
    rows.append((what, figure, aim, beside))
    print(f"bench: {what}: {figure}", flush=True)


def kubectl(words, text=None, check=True):
    return run("kubectl", "--namespace", SPACE, *words.split(), text=text, check=check)


def get(words):
    return json.loads(kubectl(f"get {words} --output=json"))


def apply(*objects):
    kubectl("apply -f -", json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def wait_for(limit, what, look, pause=0.1):
    return tools.wait_for(limit, what, look, why=lambda: kubectl("get pods,events", check=False), pause=pause)


def client(line, check=True):
    """A shell's command line in the client's pod, as the superuser of the set."""
    return run("kubectl", "--namespace", SPACE, "exec", "client", "--", "bash", "-c", line, check=check)


def passwords():
    """The superuser's, and that of replication."""
    data = wait_for(60, "the Secret", lambda: json.loads(kubectl("get secret pgset-pgset-credentials --output=json", check=False) or "{}")).get("data")
    return tuple(base64.b64decode(data[key]).decode() for key in ("postgres-password", "replication-password"))


def connection():
    superuser, replication = passwords()
    return f"export PGHOST=pgset-master PGUSER=postgres PGDATABASE=postgres PGPASSWORD={superuser} PGCONNECT_TIMEOUT=2; ", replication


def when_streaming(env, replicas):
    """The moment at which this many members stream: the clock is the machine's, in the pod as here. A clone that is under way
    streams too, under a name of its own or without having replayed anything."""
    sql = "select count(*) from pg_stat_replication where state = 'streaming' and application_name ~ '^pgset-[0-9]+$' and replay_lsn is not null"
    line = f"for i in {{1..6000}}; do [ \"$(psql -XAtc \"{sql}\" 2>/dev/null)\" = {replicas} ] && exec date +%s.%N; sleep 0.05; done; exit 1"
    return float(client(env + line))


def volume(name, path):
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o777)
    apply(
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{SPACE}-{name}"},
         "spec": {"accessModes": ["ReadWriteMany"], "capacity": {"storage": "10Gi"}, "persistentVolumeReclaimPolicy": "Retain",
                  "hostPath": {"path": str(path)}, "claimRef": {"namespace": SPACE, "name": name}}},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
         "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}})


def clear():
    kubectl("delete statefulsets --all --wait=false", check=False)
    kubectl("delete pods --all --grace-period=1 --timeout=60s", check=False)
    run("kubectl", "delete", "namespace", SPACE, "--ignore-not-found", "--timeout=120s", check=False)
    run("kubectl", "delete", "persistentvolume", f"{SPACE}-pgset-pvc", f"{SPACE}-bare", "--ignore-not-found", "--timeout=60s", check=False)
    shutil.rmtree(EXPORT, ignore_errors=True)


def fresh():
    """A namespace with a client, and claims that are bound: what is timed is pgset's."""
    clear()
    run("kubectl", "create", "namespace", SPACE)
    volume("pgset-pvc", EXPORT / "set")
    volume("bare", EXPORT / "bare")
    wait_for(30, "the account of the namespace", lambda: kubectl("get serviceaccount default", check=False))
    apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"},
           "spec": {"terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "client", "image": "postgres:17", "command": ["sleep", "infinity"],
                                    "securityContext": {"runAsUser": 999},
                                    "volumeMounts": [{"name": "bare", "mountPath": "/bare"}]}],
                    "volumes": [{"name": "bare", "persistentVolumeClaim": {"claimName": "bare"}}]}})
    kubectl("wait --for=condition=Ready pod/client --timeout=60s")
    wait_for(30, "claims that are bound", lambda: all(claim["status"]["phase"] == "Bound" for claim in get("persistentvolumeclaims")["items"]))


def apply_set(members):
    manifest = (TOP / "deploy/examples/pgset.yaml").read_text().replace("replicas: 2", f"replicas: {members}")
    start = time.time()
    kubectl("apply -f -", manifest)
    env, replication = connection()
    return when_streaming(env, members - 1) - start, env, replication


def wait_ready(members):
    wait_for(120, f"{members} Ready members", lambda: get("statefulset pgset")["status"].get("readyReplicas") == members)


# === resident memory ===

def container_id(namespace, pod, container):
    statuses = json.loads(run("kubectl", "--namespace", namespace, "get", "pod", pod, "--output=json"))["status"]["containerStatuses"]
    return next(status["containerID"] for status in statuses if status["name"] == container).removeprefix("containerd://")


def memory(namespace, pod, container):
    """VmRSS and Pss of a container's first process, with the fencer if it has one, in MB."""
    name = container_id(namespace, pod, container)
    tasks = run("ctr", "--address", CONTAINERD, "--namespace", "k8s.io", "task", "ls")
    pid = next(line.split()[1] for line in tasks.splitlines() if line.startswith(name))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fencers = [child for child in children if Path(f"/proc/{child}/cmdline").read_bytes() == b"pgset\0fencer\0"]
    def field(file, key):
        texts = [Path(f"/proc/{process}/{file}").read_text() for process in [pid, *fencers]]
        return sum(int(next(line for line in text.splitlines() if line.startswith(key)).split()[1]) for text in texts) / 1024
    return field("status", "VmRSS:"), field("smaps_rollup", "Pss:")


def show_memory(pairs):
    return ", ".join(f"{rss:.1f}" for rss, _ in pairs) + " MB (Pss " + ", ".join(f"{pss:.1f}" for _, pss in pairs) + ")"


# === requests ===

def requests(since, until):
    """Requests per minute in the API server's audit log, by account."""
    counts = {}
    with open(LAB / "audit.log", encoding="utf-8") as log:
        for line in log:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # the line that is being written
            if event["stage"] not in ("ResponseComplete", "Panic"):
                continue
            at = datetime.fromisoformat(event["requestReceivedTimestamp"].replace("Z", "+00:00"))
            if since <= at < until:
                key = (event["user"]["username"], event["verb"], event.get("objectRef", {}).get("resource", "-"))
                counts[key] = counts.get(key, 0) + 1
    return {key: count * 60 / WINDOW for key, count in counts.items()}


def idle(members, aim):
    time.sleep(15)  # what the change before set off is over
    since = datetime.now(timezone.utc)
    time.sleep(WINDOW)
    counts = requests(since, datetime.now(timezone.utc))
    of_set = {key: n for key, n in counts.items() if key[0] == f"system:serviceaccount:{SPACE}:pgset-sa"}
    of_pgset = {key: n for key, n in counts.items() if key[0].startswith("system:serviceaccount:pgset-system:")}
    def detail(counts):
        return ", ".join(f"{resource} {verb} {n:.0f}" for (_, verb, resource), n in sorted(counts.items()))
    note(f"API requests a minute, idle set of {members}", f"{sum(of_set.values()):.0f}", aim, detail(of_set))
    note(f"  and by webhook and controller (2 pods each, all sets), with {members}", f"{sum(of_pgset.values()):.0f}", "", detail(of_pgset))


# === the run ===

def measure():
    for members, aim in ((2, "8 s"), (3, "12 s")):
        fresh()
        seconds, env, replication = apply_set(members)
        note(f"apply to {members} members streaming", f"{seconds:.1f} s", aim)

    # the set of three is there: idle first, then without its third member and that one's data
    wait_ready(3)
    note("resident memory of the agent with its fencer, 3 members",
         show_memory([memory(SPACE, f"pgset-{n}", "postgres") for n in range(3)]), "18 MB")
    serving = [pod["metadata"]["name"] for pod in json.loads(run(
        "kubectl", "--namespace", "pgset-system", "get", "pods", "--output=json"))["items"] if pod["status"]["phase"] == "Running"]
    container = json.loads(run("kubectl", "--namespace", "pgset-system", "get", "pod", serving[0], "--output=json"))["spec"]["containers"][0]["name"]
    note("resident memory of webhook and controller, 2 pods each", show_memory([memory("pgset-system", pod, container) for pod in serving]), "")
    idle(3, "40")

    def back_to_two():
        kubectl("scale statefulset pgset --replicas=2")
        kubectl("wait --for=delete pod/pgset-2 --timeout=60s")
        when_streaming(env, 1)
        shutil.rmtree(EXPORT / "set/pgset-2")

    back_to_two()
    idle(2, "")

    def load():
        client(env + f"pgbench --quiet -i -s {SCALE} 2>&1")

    def bare():
        shutil.rmtree(EXPORT / "bare/clone", ignore_errors=True)
        # the clock runs in the pod: kubectl's own start is not pg_basebackup's
        return float(client(env + f"export PGUSER=pgset_replication PGPASSWORD={replication}; unset PGDATABASE; start=$(date +%s%N); "
                            "pg_basebackup -D /bare/clone -X stream -c fast || exit; echo $(($(date +%s%N) - start))")) / 1e9

    def scale_up():
        start = time.time()
        kubectl("scale statefulset pgset --replicas=3")
        return when_streaming(env, 2) - start

    # Alternately, and each after a load of its own: the disk and the master's checkpoints are in the same state.
    bares, scales, clones = [], [], []
    for _ in range(REPEAT):
        load()
        bares.append(bare())
        shutil.rmtree(EXPORT / "bare/clone")
        load()
        scales.append(scale_up())
        clones.append(float(re.search(r"cloned.*seconds=([0-9.]+)", kubectl("logs pgset-2 --container postgres")).group(1)))
        back_to_two()
    size = float(client(env + "psql -XAtc \"select sum(pg_database_size(oid)) / 1024.0 ^ 2 from pg_database\""))

    def seconds(times):
        return " ".join(f"{time:.1f}" for time in times)

    bare_clone = statistics.median(bares)
    note(f"scale 2 to 3 right after a load of {size:.0f} MB, against a bare clone", f"{statistics.median(scales) / bare_clone:.2f}", "1.3",
         f"seconds: {seconds(scales)} against {seconds(bares)}")
    note("  of which the clone alone", f"{statistics.median(clones) / bare_clone:.2f}", "", f"seconds: {seconds(clones)}")


def table():
    widths = [max(len(row[column]) for row in rows + [("what", "figure", "aim", "")]) for column in range(3)]
    print()
    for row in [("what", "figure", "aim", "")] + rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) + ("  " + row[3] if row[3] else ""))


def main():
    if not KUBECONFIG.exists():
        raise SystemExit(f"bench: no lab is up, there is no {KUBECONFIG}: run `make lab install`")
    try:
        measure()
    finally:
        if rows:
            table()
        if not os.environ.get("KEEP"):
            clear()
