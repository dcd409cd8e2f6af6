"""pgBackRest for `make bench ONLY=backup`: Debian's package in a pod, beside the same PostgreSQL as a set's, on the same disk, to the same store.

It is set up as its documentation advises for an object store: small files in bundles, WAL archived asynchronously, zstd at level 3 as pgset's.
"""

import os
import shutil
import time
from pathlib import Path

import postgres
import tools
from postgres import EXPORT, SPACE, apply, client, get, kubectl, wait_for
from tools import TOP, WORK, run, say

PASSWORD = "of-the-bench"
VOLUME = EXPORT / "bare"  # the claim `bare` of the bench, which is on the disk of the set's own
ARCHIVE = "pgbackrest archive-push %p"
NOTHING = "true"  # what PostgreSQL's documentation calls archiving that is turned off without a restart

DIRECTORIES = "install -d -o postgres -g postgres -m 700 /volume/data /volume/spool /volume/lock; export PGDATA=/volume/data; "
SERVER = "exec docker-entrypoint.sh postgres -c archive_timeout=60 "
RESTORE = "start=$(date +%s%N); gosu postgres pgbackrest restore; echo restored in $(($(date +%s%N) - start)) ns; "


def configuration(address, port, bucket, key, secret):
    return f"""[global]
repo1-type=s3
repo1-path=/pgbackrest
repo1-s3-bucket={bucket}
repo1-s3-endpoint={address}
repo1-storage-port={port}
repo1-storage-ca-file=/config/authority.pem
repo1-s3-uri-style=path
repo1-s3-region=us-east-1
repo1-s3-key={key}
repo1-s3-key-secret={secret}
repo1-bundle=y
repo1-retention-full=1000
compress-type=zst
compress-level=3
start-fast=y
archive-async=y
spool-path=/volume/spool
lock-path=/volume/lock
log-level-file=off
log-level-console=info
[main]
pg1-path=/volume/data
"""


class PgBackRest:
    env = f"export PGHOST=pgbackrest PGUSER=postgres PGDATABASE=postgres PGPASSWORD={PASSWORD} PGCONNECT_TIMEOUT=2; "
    # where the marks of the segments are, as the machine sees them
    marks = VOLUME / "pgbackrest/data/pg_wal/archive_status"

    def __init__(self, store, prefix="pgbackrest"):
        self.repository = Path(store) / prefix

    def start(self, authority, **store):
        """From nothing to a server that archives."""
        image = WORK / "pgbackrest.tar"
        if not image.exists():
            say("building the image pgbackrest:bench")
            run(TOP / "tests/bench/build-pgbackrest", image)
        run(TOP / "tests/lab/load-image", image, env={**os.environ, "PGSET_LAB": str(postgres.LAB)})
        apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pgbackrest"},
               "stringData": {"pgbackrest.conf": configuration(**store), "authority.pem": authority}},
              {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "pgbackrest"},
               "spec": {"selector": {"app": "pgbackrest"}, "ports": [{"port": 5432}]}},
              self.pod("pgbackrest", DIRECTORIES + SERVER + "-c archive_mode=on", 1))
        self.ready("pgbackrest", 120)
        wait_for(30, "a server behind its Service", lambda: client(self.env + "psql -XAtc 'select 1'", check=False) == "1")
        self.inside("pgbackrest stanza-create")
        self.archive(True)
        self.inside("pgbackrest check")

    def pod(self, name, start, processes):
        def variable(name, value):
            return {"name": name, "value": str(value)}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "postgres", "image": "pgbackrest:bench", "imagePullPolicy": "Never", "command": ["bash", "-ec", start],
                "env": [variable("PGBACKREST_CONFIG", "/config/pgbackrest.conf"), variable("PGBACKREST_STANZA", "main"),
                        variable("PGBACKREST_PROCESS_MAX", processes), variable("POSTGRES_PASSWORD", PASSWORD)],
                # not by the socket, at which the server answers that only makes the database
                "readinessProbe": {"exec": {"command": ["pg_isready", "--host=127.0.0.1", "--username=postgres"]}, "periodSeconds": 1},
                "volumeMounts": [{"name": "volume", "mountPath": "/volume", "subPath": name}, {"name": "config", "mountPath": "/config"}],
            }],
            "volumes": [{"name": "volume", "persistentVolumeClaim": {"claimName": "bare"}},
                        {"name": "config", "secret": {"secretName": "pgbackrest"}}],
        }}

    def ready(self, name, limit):
        def look():
            status = get(f"pod {name}")["status"]
            if status["phase"] == "Failed":
                raise tools.Failed(f"bench: {name} ended: {kubectl(f'logs {name}', check=False)[-2000:]}")
            return any(one["ready"] for one in status.get("containerStatuses", []))
        wait_for(limit, f"{name} that is Ready", look)

    def inside(self, line):
        """A command line as PostgreSQL's user in the server's pod: as root it refuses to run."""
        return run("kubectl", "--namespace", SPACE, "exec", "pgbackrest", "--", "gosu", "postgres", "bash", "-ec", line)

    def archive(self, on):
        client(self.env + f"psql -XAt -c \"alter system set archive_command = '{ARCHIVE if on else NOTHING}'\" -c 'select pg_reload_conf()'")

    def backup(self, processes):
        """Seconds of a full backup by so many processes, and the bytes that are stored of it."""
        client(self.env + "psql -XAtc checkpoint")
        said = self.inside(f"start=$(date +%s%N); pgbackrest --process-max={processes} --type=full backup >&2; echo $(($(date +%s%N) - start))")
        newest = max((self.repository / "backup/main").glob("*F"))
        return int(said) / 1e9, sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())

    def restore(self, processes):
        """Seconds from the order of a new pod until it is Ready with the newest backup and all WAL, and those of `pgbackrest restore` in that."""
        start = time.time()
        apply(self.pod("pgbackrest-copy", DIRECTORIES + RESTORE + SERVER, processes))
        self.ready("pgbackrest-copy", 900)
        seconds = time.time() - start
        said = next(line for line in kubectl("logs pgbackrest-copy").splitlines() if line.startswith("restored in"))
        kubectl("delete pod pgbackrest-copy --timeout=60s")
        shutil.rmtree(VOLUME / "pgbackrest-copy")
        return seconds, int(said.split()[2]) / 1e9

    @staticmethod
    def is_of_it(words):
        return words[0].rsplit("/", 1)[-1] == "pgbackrest"
