"""Figures of backups on the lab, to an S3 server on the machine (versitygw), with the aims beside them, and pgBackRest's.

A base backup against a bare pg_basebackup to nowhere and against pgBackRest's full backup; writes with the archive on against off; how long
the WAL waits; a restore; memory; bytes. They alternate, so that the disk and the master's checkpoints are in the same state. Both speak TLS
to the one server, as pgBackRest speaks nothing else.
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

import postgres
import tools
from observe import Memory, Waits, archived
from pgbackrest import PgBackRest
from postgres import EXPORT, REPEAT, SCALE, SPACE, apply, client, connection, kubectl, note, wait_for
from tools import TOP, run

HOST, PORT = "198.18.255.1", 17076
KEY, SECRET = "pgset-bench", "pgset-bench-secret"
SECONDS = int(os.environ.get("SECONDS_EACH", "30"))  # of pgbench for each figure
PROCESSES = (1, 2)  # of pgBackRest: its default, and what two cores are for


binary = None  # pgset's command line


def pgset(words, check=True):
    return run(binary, *words.split(), "--namespace", SPACE, check=check)


def listed():
    """What there is; nothing before the master has told anything."""
    text = pgset("backup list sts/pgset --output json", check=False)
    return json.loads(text) if text.startswith("{") else {"count": 0, "backups": []}


def of_a_backup(words):
    """By its command line: the archiver, what PostgreSQL calls to reach it, and the pg_basebackup that it reads from."""
    return words[1:2] == ["archiver"] or words[0].rsplit("/", 1)[-1] == "pg_basebackup"


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


def certificate(folder):
    """A certificate for the store, which is its own authority, and its key."""
    key, out = Path(folder) / "tls.key", Path(folder) / "tls.crt"
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=bench",
        "-addext", f"subjectAltName=IP:{HOST}", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", out)
    return out, key


def spaced(seconds):
    return " ".join(f"{it:.1f}" for it in seconds)


def mean(files):
    """Their mean size in MB."""
    sizes = [file.stat().st_size for file in files]
    return sum(sizes) / max(len(sizes), 1) / 2**20


def measure(directory, authority):
    postgres.fresh()
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pgset-pgset-backup"}, "stringData": {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"https://{HOST}:{PORT}",
        "AWS_CA_BUNDLE": authority}})
    manifest = (TOP / "deploy/examples/pgset.yaml").read_text().replace("replicas: 2", "replicas: 1")
    kubectl("apply -f -", manifest)
    annotate("pgset.dev/backup=s3://backups/bench pgset.dev/full-backup-every=always")
    other = PgBackRest(directory / "backups")
    other.start(authority, address=HOST, port=PORT, bucket="backups", key=KEY, secret=SECRET)
    env, replication = connection()
    postgres.wait_ready(1)
    wait_for(180, "the first backup", lambda: listed()["count"], pause=1)
    marks = next((EXPORT / "set").glob("**/pg_wal/archive_status"))

    def load(env, marks):
        client(env + f"pgbench --quiet -i -s {SCALE} 2>&1")
        archived(marks)

    load(env, marks)
    load(other.env, other.marks)
    size = float(client(env + "psql -XAtc \"select sum(pg_database_size(oid)) / 1024.0 ^ 2 from pg_database\""))

    def bare():
        client(env + "psql -XAtc checkpoint")
        return float(client(env + f"export PGUSER=pgset_replication PGPASSWORD={replication}; unset PGDATABASE; start=$(date +%s%N); "
                            "pg_basebackup -D - -F tar -X fetch -c fast >/dev/null || exit; echo $(($(date +%s%N) - start))")) / 1e9

    def ours():
        """Its seconds, and the bytes that are stored of it."""
        client(env + "psql -XAtc checkpoint")
        pgset("backup now sts/pgset --wait")
        newest = listed()["backups"][-1]
        # the list has whole seconds only
        index = json.loads((directory / "backups/bench/backups" / newest["id"] / "backup.json").read_text())
        started, ended = (datetime.fromisoformat(index[key]) for key in ("started", "ended"))
        return (ended - started).total_seconds(), newest["stored"]

    bares, backups, others = [], [], {processes: [] for processes in PROCESSES}
    memory, memories = Memory("pgset-0", of_a_backup), {processes: Memory("pgbackrest", other.is_of_it) for processes in PROCESSES}
    for _ in range(REPEAT):
        bares.append(bare())
        with memory:
            backups.append(ours())
        for processes in PROCESSES:
            with memories[processes]:
                others[processes].append(other.backup(processes))
    taken = [seconds for seconds, _ in backups]
    median = statistics.median(taken)
    note(f"a base backup of {size:.0f} MB, against a bare pg_basebackup to nowhere", f"{median / statistics.median(bares):.2f}", "1.3",
         f"seconds: {spaced(taken)} against {spaced(bares)}")
    for processes, made in others.items():
        theirs = [seconds for seconds, _ in made]
        note(f"  its throughput, against pgBackRest's with process-max={processes}", f"{statistics.median(theirs) / median:.2f}", "0.9",
             f"seconds: {spaced(taken)} against {spaced(theirs)}")
    note("bytes stored of it, MB", f"{backups[-1][1] / 2**20:.0f}", "",
         f"pgBackRest: {others[1][-1][1] / 2**20:.0f}, without the WAL that is in ours")
    note("the archiver's memory at its highest, MB", f"{archiver():.1f}", "64")
    note("  with its pg_basebackup, and what PostgreSQL starts to archive", str(memory), "",
         "pgBackRest: " + ", ".join(f"process-max={processes} {it}" for processes, it in memories.items())
         + "; VmHWM of all processes at once, and in brackets without what they share")

    def writes(env):
        client(env + "psql -XAtc checkpoint")
        return float(client(env + f"pgbench -n -N -c 4 -T {SECONDS} 2>/dev/null | sed -n 's/^tps = \\([0-9.]*\\).*/\\1/p'"))

    def archive(on):
        annotate("pgset.dev/backup=s3://backups/bench" if on else "pgset.dev/backup-")
        time.sleep(3)  # the archiver begins, or ends

    # whose it is: its connection, its marks, how its archive is turned on and off, its memory; and then its figures
    sides = {
        "pgset": (env, marks, archive, memory),
        "pgBackRest": (other.env, other.marks, other.archive, Memory("pgbackrest", other.is_of_it)),
    }
    with_it, without, waits = ({name: [] for name in sides} for _ in range(3))
    for _ in range(REPEAT):
        for name, (env_of, marks_of, archive_of, memory_of) in sides.items():
            with memory_of, Waits(marks_of) as waiting:
                with_it[name].append(writes(env_of))
            waits[name] += waiting.seconds.values()
            archive_of(False)
            without[name].append(writes(env_of))
            archive_of(True)

    def share(name):
        return f"{statistics.median(with_it[name]) / statistics.median(without[name]):.3f}"

    def figures(name):
        return f"{' '.join(f'{it:.0f}' for it in with_it[name])} against {' '.join(f'{it:.0f}' for it in without[name])}"

    def longest(name):
        return max(waits[name], default=float("nan"))

    def typical(name):
        return statistics.median(waits[name]) if waits[name] else float("nan")

    note("transactions a second with the archive on, against off", share("pgset"), "0.97",
         f"{figures('pgset')}; pgBackRest: {share('pgBackRest')}, {figures('pgBackRest')}")
    note("the longest that a segment waited meanwhile, s", f"{longest('pgset'):.2f}", f"{longest('pgBackRest'):.2f}",
         "; ".join(f"{name}: {len(waits[name])} segments, median {typical(name):.2f}" for name in sides))
    note("memory for that at its highest, MB", str(memory), "64", f"pgBackRest: {sides['pgBackRest'][3]}")
    note("bytes stored of a segment, MB", f"{mean((directory / 'backups/bench/wal').glob('*.zst')):.2f}", "",
         f"pgBackRest: {mean((other.repository / 'archive').glob('**/*.zst')):.2f}")

    pgset("backup now sts/pgset --wait")
    secret = json.loads(kubectl("get secret pgset-pgset-backup --output=json"))
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "copy-pgset-backup"}, "data": secret["data"]})
    copy = manifest.replace("name: pgset\n  annotations:", "name: copy\n  annotations:\n    pgset.dev/restore-from: s3://backups/bench")
    copy = copy.replace("app: pgset", "app: copy").replace("serviceName: pgset", "serviceName: copy")
    start = time.time()
    kubectl("apply -f -", copy)
    wait_for(600, "the restored set", lambda: postgres.get("statefulset copy")["status"].get("readyReplicas") == 1)
    restored = time.time() - start
    kubectl("delete statefulset copy --wait=false")
    kubectl("delete pod copy-0 --grace-period=1 --ignore-not-found --timeout=60s")
    other.backup(1)
    copies = {processes: other.restore(processes) for processes in PROCESSES}
    note("a new set restored from it, until it is Ready", f"{restored:.1f} s", f"{copies[1][0]:.1f} s",
         "pgBackRest, a new pod that restores until PostgreSQL there takes connections: " + ", ".join(
             f"process-max={processes} {seconds:.1f} s ({command:.1f} of them its restore)" for processes, (seconds, command) in copies.items()))


def main():
    global binary
    binary = tools.release_binary()
    server = tools.peer("versitygw")
    directory = EXPORT.with_name(f"{SPACE}-s3")
    (directory / "backups").mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            authority, key = certificate(folder)
            command = [server, "--access", KEY, "--secret", SECRET, "--port", f"{HOST}:{PORT}", "--region", "us-east-1", "--cert", authority,
                       "--key", key, "posix", directory]
            with tools.Process("versitygw", *command):
                measure(directory, authority.read_text())
    finally:
        if postgres.rows:
            postgres.table()
        if not os.environ.get("KEEP"):
            postgres.clear()
        shutil.rmtree(directory, ignore_errors=True)
