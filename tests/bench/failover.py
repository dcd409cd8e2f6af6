"""How long clients can't write when a master goes, through the Service to it; `make bench-failover`.

One client on the node writes a row at a time, each in its own transaction, and connects anew as soon as it is refused. The gap is the
longest time between two acknowledgements around the fault. What comes back is timed until all members stream again.
REPEAT repetitions (5), CASES for some of them; TRACE tells what the client met in each gap, to be laid beside the members' logs.
"""

import os
import statistics
import sys
import threading
import time
from pathlib import Path

import postgres
import tools
from postgres import CONTAINERD, SPACE, client, get, kubectl, wait_for
from tools import WORK, run, say

REPEAT = int(os.environ.get("REPEAT", "5"))
# A row a moment, so that a gap is seen to the hundredth.
PAUSE = 0.005
# What the client waits for an address that swallows its packets.
CONNECT = 1


def driver():
    """psycopg from PyPI, for one client that costs the machine little."""
    place = WORK / "python"
    if not (place / "psycopg").is_dir():
        tools.need("pip3", "python3-pip")
        run(sys.executable, "-m", "pip", "install", "--quiet", "--target", place, "psycopg[binary]==3.2.13")
    sys.path.insert(0, str(place))
    import psycopg.connection
    psycopg.connection.timeout_from_conninfo = lambda params: CONNECT  # psycopg rounds 1 up to 2
    return psycopg


class Writer:
    """Writes until it is told to stop; when each row was acknowledged, and by whom."""

    def __init__(self, psycopg, host, password):
        self.psycopg, self.written, self.refused, self.on = psycopg, [], [], True
        self.parameters = {"host": host, "user": "postgres", "dbname": "postgres", "password": password, "autocommit": True,
                           "keepalives_idle": 1, "keepalives_interval": 1, "keepalives_count": 2, "tcp_user_timeout": 2000}
        self.number = 0
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self):
        while self.on:
            began = time.time()
            try:
                with self.psycopg.connect(**self.parameters) as connection:
                    while self.on:
                        self.number += 1
                        connection.execute("insert into gaps values (%s)", [self.number])
                        self.written.append((time.monotonic(), self.number))
                        time.sleep(PAUSE)
            except self.psycopg.Error as why:
                self.refused.append((began, time.time(), str(why).strip().splitlines()[-1]))
                time.sleep(PAUSE)

    def gap(self, since):
        """The longest time without an acknowledgement since then."""
        times = [at for at, _ in list(self.written) if at >= since - 1]
        return max(later - earlier for earlier, later in zip(times, times[1:]))

    def writes_again(self, since):
        return bool(self.written) and self.written[-1][0] > since

    def stop(self):
        self.on = False
        self.thread.join(30)


def master():
    return get("lease pgset-leader")["spec"].get("holderIdentity", "").split("/")[0]


def container(pod):
    return postgres.container_id(SPACE, pod, "postgres")


def processes(pod):
    identity = container(pod)
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and identity in (entry / "cgroup").read_text():
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue


def ctr(*words):
    run("ctr", "--address", CONTAINERD, "--namespace", "k8s.io", *words)


# === what happens to a master ===

def postmaster_killed(pod):
    number = next(number for number, command in processes(pod) if command.startswith("/usr/lib/postgresql/"))
    os.kill(number, 9)


def container_killed(pod):
    ctr("task", "kill", "--signal", "SIGKILL", container(pod))


def pod_deleted(pod):
    kubectl(f"delete pod {pod} --wait=false")


def pod_deleted_by_force(pod):
    kubectl(f"delete pod {pod} --wait=false --force --grace-period=0")


def switchover(pod):
    other = next(f"pgset-{n}" for n in range(3) if f"pgset-{n}" != pod)
    run("kubectl", "--namespace", SPACE, "annotate", "statefulset", "pgset", "--overwrite", f"pgset.dev/switchover={other} {time.time_ns()}")


def frozen(pod):
    """Its node stands still, as far as a node of one can: nothing in its container runs until the others have gone on."""
    identity = container(pod)
    ctr("task", "pause", identity)
    return lambda: ctr("task", "resume", identity)


CASES = [
    ("switchover", switchover, "0.5"),
    ("pod deleted", pod_deleted, "0.5"),
    ("postmaster killed", postmaster_killed, "1.5"),
    ("container killed", container_killed, "1.5"),
    ("pod deleted by force", pod_deleted_by_force, ""),
    ("master frozen", frozen, "8"),
]


def moment(at):
    return time.strftime("%M:%S", time.gmtime(at)) + f"{at % 1:.3f}"[1:]


def once(case, writer):
    before, since = master(), time.monotonic()
    end = case(before)
    # Until it writes again after a gap, or is known to have had none.
    wait_for(60, "a client that writes again", lambda: time.monotonic() > since + 4 and writer.writes_again(time.monotonic() - 0.2))
    gap = writer.gap(since)
    if os.environ.get("TRACE"):
        for began, ended, why in writer.refused:
            say(f"  {moment(began)} to {moment(ended)}: {why}")
    writer.refused.clear()
    if end:
        end()
    postgres.when_streaming(ENV, 2)
    postgres.wait_ready(3)
    return gap, time.monotonic() - since, before, master()


ENV = ""


def measure():
    global ENV
    psycopg = driver()
    postgres.fresh()
    _, ENV, _ = postgres.apply_set(3)
    postgres.wait_ready(3)
    client(ENV + "psql -XAtc 'create table gaps (n bigint)'")
    superuser, _ = postgres.passwords()
    writer = Writer(psycopg, get("service pgset-master")["spec"]["clusterIP"], superuser)
    wait_for(30, "a client that writes", lambda: writer.written)
    wanted = os.environ.get("CASES", "").split(",") if os.environ.get("CASES") else [name for name, _, _ in CASES]
    rows, figures = [], {}
    try:
        for name, case, aim in CASES:
            if name not in wanted:
                continue
            runs = []
            for _ in range(REPEAT):
                runs.append(once(case, writer))
                say(f"{name}: no write for {runs[-1][0]:.2f} s, all stream after {runs[-1][1]:.1f} s, {runs[-1][2]} to {runs[-1][3]}")
            gaps = [gap for gap, *_ in runs]
            moved = sum(1 for *_, before, after in runs if before != after)
            rows.append((name, f"{statistics.median(gaps):.2f}", f"{max(gaps):.2f}", aim, f"{statistics.median(run[1] for run in runs):.1f}",
                         f"{moved} of {len(runs)}"))
            figures[name] = runs
        writer.stop()
        there = {int(line) for line in client(ENV + "psql -XAtc 'select n from gaps'").split()}
        missing = [number for _, number in writer.written if number not in there]
        rows.append(("rows acknowledged and missing", len(missing), "", "", "", f"of {len(writer.written)}"))
    finally:
        writer.on = False
        if rows:
            tools.table("Seconds without a write, through the Service", ("case", "median", "worst", "aim", "all stream after", "moved"), rows)
        tools.save("failover", figures)


def main():
    if not postgres.KUBECONFIG.exists():
        raise SystemExit(f"bench: no lab is up, there is no {postgres.KUBECONFIG}: run `make lab install`")
    try:
        measure()
    finally:
        if not os.environ.get("KEEP"):
            postgres.clear()
