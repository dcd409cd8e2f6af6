"""Three admission servers under the same load, in turn: pgset, a thin handler on controller-runtime, Gatekeeper.

Everybody gets the same reviews over TLS and makes at least the same of them: a service account, a role label, three variables, a volume,
and its mount. pgset makes its whole injection: see docs/performance.md.
"""

import base64
import json
import os
import re
import ssl
import http.client
import statistics
from contextlib import ExitStack
from pathlib import Path

import objects
from cluster import ControlPlane, answers, free_ports, install, serve, wait_discovered, wait_ready
from tools import WORK, Process, need, peer, release_binary, run, save, say, table

SECONDS = int(os.environ.get("SECONDS_EACH", "6"))  # of load for each figure
REPEAT = int(os.environ.get("REPEAT", "3"))
CONNECTIONS = (1, 25, 200)
REVIEWS = {"2 kB": objects.review(), "18 kB": objects.review(extra_env=170)}
UNTOUCHED = "2 kB, left alone"  # for pgset alone: what a review costs in which nothing is to be done


class Server:
    """Somebody who answers reviews, and what was seen of him."""

    def __init__(self, name, path, port, start):
        self.name, self.path, self.port, self.start = name, path, port, start
        self.process = None
        self.cold, self.idle, self.after = [], [], []
        self.loads = {}

    def ask(self, review):
        """One answer, read: whether the mutation is what it should be is looked at before it is timed."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=ssl._create_unverified_context())
        connection.request("POST", self.path, body=review, headers={"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())["response"]

    def check(self):
        for review in REVIEWS.values():
            response = self.ask(review)
            patch = base64.b64decode(response.get("patch", "")).decode()
            missing = [word for word in ("serviceAccountName", "pgset.dev/role", "PG_MODE", "PG_MASTER_HOST", "POD_NAME",
                                         "pgset-pvc", "subPathExpr") if word not in patch.replace("~1", "/")]
            if not response.get("allowed") or missing:
                raise SystemExit(f"bench: {self.name} does not do the mutation (missing: {missing}): {json.dumps(response)[:1500]}\n{patch[:3000]}")
            say(f"{self.name}: a patch of {len(patch)} bytes to a review of {len(review)}")


def wrk(server, size, connections, seconds):
    """Requests per second, p50 and p99 in ms, and the server's processor time for each in ms."""
    before = server.process.processor_seconds()
    out = run("wrk", "--threads", min(2, connections), "--connections", connections, "--duration", f"{seconds}s", "--timeout", "10s",
              "--latency", "--script", script_of(size), f"https://127.0.0.1:{server.port}{server.path}?timeout=10s")
    bad = re.search(r"Non-2xx.*|Socket errors.*", out)
    def milliseconds(pattern):
        number, unit = re.search(pattern + r"\s+([\d.]+)(us|ms|s|m)\b", out).groups()
        return float(number) * {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}[unit]
    count = int(re.search(r"(\d+) requests in", out).group(1))
    return {"cpu": (server.process.processor_seconds() - before) * 1000 / max(count, 1), "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)), "p50": milliseconds("50%"), "p99": milliseconds("99%"),
            "bad": bad.group(0) if bad else ""}


def script_of(size):
    return WORK / f"review-{size.replace(' ', '').replace(',', '-')}.lua"


def lua_scripts():
    for size, review in {**REVIEWS, UNTOUCHED: REVIEWS["2 kB"].replace("pgset.dev/", "somebody.else/")}.items():
        script_of(size).write_text(
            'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[' + review + "]==]\n", encoding="utf-8")


def certificates():
    """A folder with a certificate for this machine, for those who don't make their own; and its authority, in base64."""
    folder = WORK / "certificates"
    folder.mkdir(parents=True, exist_ok=True)
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", "/CN=bench",
        "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", folder / "tls.key", "-out", folder / "tls.crt")
    return folder, base64.b64encode((folder / "tls.crt").read_bytes()).decode()


def start_gatekeeper(plane, program, port, folder):
    health, prometheus = free_ports(2)
    def start():
        process = Process("gatekeeper", program, "--operation=mutation-webhook", "--operation=mutation-controller", "--debug-use-fake-pod",
                          "--disable-cert-rotation", f"--cert-dir={folder}", f"--port={port}", f"--health-addr=127.0.0.1:{health}",
                          f"--prometheus-port={prometheus}", "--log-level=ERROR", f"--kubeconfig={plane.kubeconfig}",
                          env={"POD_NAME": "no-pod", "POD_NAMESPACE": "gatekeeper-system"})
        return process, lambda: process.ready(120, lambda: answers(health))
    return start


def install_gatekeeper(plane):
    modules = run("go", "env", "GOMODCACHE")
    module = f"{modules}/github.com/open-policy-agent/gatekeeper/v3@v3.23.1"
    manifests = Path(f"{module}/deploy/gatekeeper.yaml").read_text(encoding="utf-8").split("\n---\n")
    resources = [manifest for manifest in manifests if "\nkind: CustomResourceDefinition\n" in f"\n{manifest}"]
    plane.kubectl("create", "-f", "-", text="\n---\n".join(resources))
    plane.kubectl("create", "namespace", "gatekeeper-system")
    # it looks at the namespace of what it mutates
    plane.kubectl("create", "namespace", "shop")
    wait_discovered(plane, "/apis/mutations.gatekeeper.sh/v1/assign", "Gatekeeper's resources")
    plane.create(*objects.gatekeeper_mutators())


def main():
    need("wrk", "wrk")
    binary, thin, gatekeeper = release_binary(), peer("thin"), peer("gatekeeper")
    lua_scripts()
    folder, _ = certificates()
    with ControlPlane() as plane:
        install_gatekeeper(plane)
        https, http, thin_port, gatekeeper_port = free_ports(4)
        install(plane, binary, https)

        def start_pgset():
            process = serve(plane, binary, https, http)
            return process, lambda: wait_ready(process, http)

        def start_thin():
            process = Process("thin", thin, f"--port={thin_port}", f"--cert-dir={folder}")
            return process, lambda: process.ready(60, lambda: listens(thin_port))

        servers = [Server("pgset", "/mutate", https, start_pgset),
                   Server("controller-runtime", "/mutate", thin_port, start_thin),
                   Server("Gatekeeper", "/v1/mutate", gatekeeper_port, start_gatekeeper(plane, gatekeeper, gatekeeper_port, folder))]
        for turn in range(REPEAT):
            with ExitStack() as stack:
                for server in servers:
                    server.process, ready = server.start()
                    stack.enter_context(server.process)
                    server.cold.append(ready())
                    server.check()
                    server.idle.append(server.process.memory()[0])
                for size in (*REVIEWS, UNTOUCHED):
                    for connections in CONNECTIONS:
                        for server in servers if size in REVIEWS else servers[:1]:
                            wrk(server, size, connections, 1)
                            figures = wrk(server, size, connections, SECONDS)
                            server.loads.setdefault((size, connections), []).append(figures)
                            say(f"{turn + 1}/{REPEAT} {size}, {connections} connections, {server.name}: {figures}")
                for server in servers:
                    server.after.append(server.process.memory()[0])
    show(servers)


def listens(port):
    try:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=2, context=ssl._create_unverified_context())
        connection.connect()
        return True
    except OSError:
        return False


def show(servers):
    save("admission", {server.name: {"cold": server.cold, "idle": server.idle, "after": server.after,
                                     "loads": {f"{size}, {connections}": runs for (size, connections), runs in server.loads.items()}}
                       for server in servers})
    def median(runs, what):
        return statistics.median(run[what] for run in runs)
    def cell(runs):
        bad = " (errors)" if any(run["bad"] for run in runs) else ""
        return f"{median(runs, 'rps'):.0f}, {median(runs, 'p50'):.2f}, {median(runs, 'p99'):.1f}, {median(runs, 'cpu'):.2f}{bad}"
    def times(ours, theirs):
        """Of each turn's own ratio: both saw the same machine."""
        return f"{statistics.median(our['rps'] / max(their['rps'], 0.1) for our, their in zip(ours, theirs)):.1f}"
    pgset, *peers = servers
    rows = []
    for place in pgset.loads:
        if place[0] == UNTOUCHED:
            # beside what the first peer makes of a review in which something is to be done
            rows.append([*place, cell(pgset.loads[place]), "", "", times(pgset.loads[place], peers[0].loads["2 kB", place[1]]), ""])
        else:
            rows.append([*place, *(cell(server.loads[place]) for server in servers),
                         *(times(pgset.loads[place], server.loads[place]) for server in peers)])
    head = ["review", "connections", *(f"{server.name}: rps, p50, p99, processor ms" for server in servers), *(f"times {server.name}" for server in peers)]
    table(f"Admission servers (median of {REPEAT} runs of {SECONDS} s; aims: 4 times controller-runtime, 10 times Gatekeeper; p99 5 ms at 25 with 2 kB)", head, rows)
    table("Memory and start", ["", *(server.name for server in servers)], [
        ["resident idle, MB", *(f"{statistics.median(server.idle):.1f}" for server in servers)],
        ["resident after the load, MB", *(f"{statistics.median(server.after):.1f}" for server in servers)],
        ["cold start to ready, ms", *(f"{statistics.median(server.cold) * 1000:.0f}" for server in servers)]])
