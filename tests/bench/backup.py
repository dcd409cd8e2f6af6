"""Figures of backups on the lab, to an S3 server on the machine (versitygw), with the aims beside them.

A base backup against a bare pg_basebackup to nowhere; writes with the archive on against off; a restore; memory; bytes. They alternate, so
that the disk and the master's checkpoints are in the same state. What another archiver takes (pgBackRest) is not measured here.
"""

import json
import os
import shutil
import statistics
import time
from pathlib import Path

import postgres
import tools
from postgres import EXPORT, REPEAT, SCALE, SPACE, apply, client, connection, kubectl, note, wait_for
from tools import TOP, run

HOST, PORT = "198.18.255.1", 17076
KEY, SECRET = "pgset-bench", "pgset-bench-secret"
SECONDS = int(os.environ.get("SECONDS_EACH", "30"))  # of pgbench for each figure


binary = None  # pgset's command line


def pgset(words, check=True):
    return run(binary, *words.split(), "--namespace", SPACE, check=check)


def listed():
    """What there is; nothing before the master has told anything."""
    text = pgset("backup list sts/pgset --output json", check=False)
    return json.loads(text) if text.startswith("{") else {"count": 0, "backups": []}


def archiver():
    """The archiver's process: its highest memory so far, in MB."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"archiver\0serve" in (path / "cmdline").read_bytes():
                status = (path / "status").read_text()
                return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024
        except OSError:
            continue
    raise tools.Failed("bench: there is no archiver")


def annotate(words):
    kubectl(f"annotate statefulset pgset --overwrite {words}")


def measure(directory):
    postgres.fresh()
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pgset-pgset-backup"}, "stringData": {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{HOST}:{PORT}"}})
    manifest = (TOP / "deploy/examples/pgset.yaml").read_text().replace("replicas: 2", "replicas: 1")
    kubectl("apply -f -", manifest)
    annotate("pgset.dev/backup=s3://backups/bench")
    env, replication = connection()
    postgres.wait_ready(1)

    wait_for(180, "the first backup", lambda: listed()["count"], pause=1)
    client(env + f"pgbench --quiet -i -s {SCALE} 2>&1")
    size = float(client(env + "psql -XAtc \"select sum(pg_database_size(oid)) / 1024.0 ^ 2 from pg_database\""))

    def bare():
        client(env + "psql -XAtc checkpoint")
        return float(client(env + f"export PGUSER=pgset_replication PGPASSWORD={replication}; unset PGDATABASE; start=$(date +%s%N); "
                            "pg_basebackup -D - -F tar -X fetch -c fast >/dev/null || exit; echo $(($(date +%s%N) - start))")) / 1e9

    def ours():
        client(env + "psql -XAtc checkpoint")
        pgset("backup now sts/pgset --wait")
        return listed()["backups"][-1]

    bares, backups = [], []
    for _ in range(REPEAT):
        bares.append(bare())
        backups.append(ours())
    taken = [backup["seconds"] for backup in backups]
    note(f"a base backup of {size:.0f} MB, against a bare pg_basebackup to nowhere", f"{statistics.median(taken) / statistics.median(bares):.2f}", "1.3",
         f"seconds: {' '.join(map(str, taken))} against {' '.join(f'{it:.1f}' for it in bares)}")
    note("bytes stored of it, MB", f"{backups[-1]['stored'] / 2**20:.0f}", "")
    note("the archiver's memory at its highest, MB", f"{archiver():.1f}", "64")

    def writes():
        return float(client(env + f"pgbench -n -N -c 4 -T {SECONDS} 2>/dev/null | sed -n 's/^tps = \\([0-9.]*\\).*/\\1/p'"))

    on, off = [], []
    for _ in range(REPEAT):
        on.append(writes())
        annotate("pgset.dev/backup-")
        time.sleep(3)  # the archiver ends
        off.append(writes())
        annotate("pgset.dev/backup=s3://backups/bench")
        time.sleep(3)
    note("transactions a second with the archive on, against off", f"{statistics.median(on) / statistics.median(off):.3f}", "0.97",
         f"{' '.join(f'{it:.0f}' for it in on)} against {' '.join(f'{it:.0f}' for it in off)}")

    pgset("backup now sts/pgset --wait")
    secret = json.loads(kubectl("get secret pgset-pgset-backup --output=json"))
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "copy-pgset-backup"}, "data": secret["data"]})
    copy = manifest.replace("name: pgset\n  annotations:", "name: copy\n  annotations:\n    pgset.dev/restore-from: s3://backups/bench")
    copy = copy.replace("app: pgset", "app: copy").replace("serviceName: pgset", "serviceName: copy")
    start = time.time()
    kubectl("apply -f -", copy)
    wait_for(600, "the restored set", lambda: postgres.get("statefulset copy")["status"].get("readyReplicas") == 1)
    note("a new set restored from it, until it is Ready", f"{time.time() - start:.1f} s", "")


def main():
    global binary
    binary = tools.release_binary()
    server = tools.peer("versitygw")
    directory = EXPORT.with_name(f"{SPACE}-s3")
    (directory / "backups").mkdir(parents=True, exist_ok=True)
    command = [server, "--access", KEY, "--secret", SECRET, "--port", f"{HOST}:{PORT}", "--region", "us-east-1", "posix", directory]
    try:
        with tools.Process("versitygw", *command):
            measure(directory)
    finally:
        if postgres.rows:
            postgres.table()
        if not os.environ.get("KEEP"):
            postgres.clear()
        shutil.rmtree(directory, ignore_errors=True)
