"""Three admission servers under the same load, in turn: pgset, a thin handler on controller-runtime, Gatekeeper.

Everybody gets the same reviews over TLS and makes the same of them: pgset's whole injection. The others also make, beside it, only the
least that a set needs (`objects.LEAST`): see docs/performance.md.
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
WHOLE, LEAST, UNTOUCHED = "whole", "least", "left alone"  # the last for pgset alone: what a review costs in which nothing is to be done
SIZES = {"2 kB": 0, "18 kB": 170}  # by the number of extra variables
# Who is to add only the least is told by the namespace.
NAMESPACES = {WHOLE: "shop", LEAST: "shop-least"}
ROWS = [(size, WHOLE) for size in SIZES] + [(size, LEAST) for size in SIZES] + [("2 kB", UNTOUCHED)]


def review(size, work):
    text = objects.review(SIZES[size], NAMESPACES.get(work, "shop"))
    return text.replace("pgset.dev/", "somebody.else/") if work == UNTOUCHED else text


class Server:
    """Somebody who answers reviews, and what was seen of him."""

    def __init__(self, name, paths, port, start):
        self.name, self.paths, self.port, self.start = name, paths, port, start
        self.process = None
        self.cold, self.idle, self.after = [], [], []
        self.loads = {}

    def rows(self):
        return [row for row in ROWS if row[1] in self.paths]

    def check(self, operations):
        """Whether the mutation is what it should be is looked at before it is timed."""
        for size, work in self.rows():
            asked = review(size, work)
            response = ask(self.port, self.paths[work], asked)
            patch = json.loads(base64.b64decode(response.get("patch", "")) or "[]")
            before = json.loads(asked)["request"]["object"]
            after, wanted = objects.patched(before, patch), objects.patched(before, operations.get(work, []))
            if not response.get("allowed") or not objects.covers(after, wanted) or (work == UNTOUCHED and patch):
                raise SystemExit(f"bench: {self.name} does not do the mutation ({work}): {json.dumps(response)[:1500]}\n"
                                 f"made:   {json.dumps(after)}\nwanted: {json.dumps(wanted)}")
            say(f"{self.name}, {size}, {work}: a patch of {len(json.dumps(patch, separators=(',', ':')))} bytes to a review of {len(asked)}")


def ask(port, path, text):
    """One answer, read."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=ssl._create_unverified_context())
    connection.request("POST", path, body=text, headers={"Content-Type": "application/json"})
    return json.loads(connection.getresponse().read())["response"]


def whole(port):
    """pgset's own mutation, as it answers it; of the object that all get it only adds."""
    return json.loads(base64.b64decode(ask(port, "/mutate", objects.review())["patch"]))


def additions(operations):
    """The files that tell tests/peers/thin what to add."""
    files = []
    for work, added in operations.items():
        files.append(WORK / f"{work}.json")
        files[-1].write_text(json.dumps(objects.alone(added)), encoding="utf-8")
    return files


def wrk(server, row, connections, seconds):
    """Requests per second, p50 and p99 in ms, and the server's processor time for each in ms."""
    before = server.process.processor_seconds()
    out = run("wrk", "--threads", min(2, connections), "--connections", connections, "--duration", f"{seconds}s", "--timeout", "10s",
              "--latency", "--script", script_of(row), f"https://127.0.0.1:{server.port}{server.paths[row[1]]}?timeout=10s")
    bad = re.search(r"Non-2xx.*|Socket errors.*", out)
    def milliseconds(pattern):
        number, unit = re.search(pattern + r"\s+([\d.]+)(us|ms|s|m)\b", out).groups()
        return float(number) * {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}[unit]
    count = int(re.search(r"(\d+) requests in", out).group(1))
    return {"cpu": (server.process.processor_seconds() - before) * 1000 / max(count, 1), "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)), "p50": milliseconds("50%"), "p99": milliseconds("99%"),
            "bad": bad.group(0) if bad else ""}


def script_of(row):
    return WORK / f"review-{'-'.join(row).replace(' ', '')}.lua"


def lua_scripts():
    for row in ROWS:
        script_of(row).write_text(
            'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[' + review(*row) + "]==]\n", encoding="utf-8")


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


def install_gatekeeper(plane, operations):
    modules = run("go", "env", "GOMODCACHE")
    module = f"{modules}/github.com/open-policy-agent/gatekeeper/v3@v3.23.1"
    manifests = Path(f"{module}/deploy/gatekeeper.yaml").read_text(encoding="utf-8").split("\n---\n")
    resources = [manifest for manifest in manifests if "\nkind: CustomResourceDefinition\n" in f"\n{manifest}"]
    plane.kubectl("create", "-f", "-", text="\n---\n".join(resources))
    plane.kubectl("create", "namespace", "gatekeeper-system")
    # it looks at the namespace of what it mutates
    for namespace in NAMESPACES.values():
        plane.kubectl("create", "namespace", namespace)
    for resource in ("assign", "assignmetadata"):
        wait_discovered(plane, f"/apis/mutations.gatekeeper.sh/v1/{resource}", "Gatekeeper's resources")
    for work, added in operations.items():
        plane.create(*objects.gatekeeper_mutators(work, NAMESPACES[work], added))


def main():
    need("wrk", "wrk")
    binary, thin, gatekeeper = release_binary(), peer("thin"), peer("gatekeeper")
    lua_scripts()
    folder, _ = certificates()
    with ControlPlane() as plane:
        https, http, thin_port, gatekeeper_port = free_ports(4)
        install(plane, binary, https)

        def start_pgset():
            process = serve(plane, binary, https, http)
            return process, lambda: wait_ready(process, http)

        process, ready = start_pgset()
        with process:
            ready()
            operations = {WHOLE: whole(https), LEAST: objects.LEAST}
        install_gatekeeper(plane, operations)

        def start_thin():
            process = Process("thin", thin, f"--port={thin_port}", f"--cert-dir={folder}", *additions(operations))
            return process, lambda: process.ready(60, lambda: listens(thin_port))

        servers = [Server("pgset", {work: "/mutate" for work in (WHOLE, UNTOUCHED)}, https, start_pgset),
                   Server("controller-runtime", {work: f"/{work}" for work in NAMESPACES}, thin_port, start_thin),
                   Server("Gatekeeper", {work: "/v1/mutate" for work in NAMESPACES}, gatekeeper_port,
                          start_gatekeeper(plane, gatekeeper, gatekeeper_port, folder))]
        for turn in range(REPEAT):
            with ExitStack() as stack:
                for server in servers:
                    server.process, ready = server.start()
                    stack.enter_context(server.process)
                    server.cold.append(ready())
                    server.check(operations)
                    server.idle.append(server.process.memory()[0])
                for row in ROWS:
                    for connections in CONNECTIONS:
                        for server in servers:
                            if row in server.rows():
                                wrk(server, row, connections, 1)
                                figures = wrk(server, row, connections, SECONDS)
                                server.loads.setdefault((*row, connections), []).append(figures)
                                say(f"{turn + 1}/{REPEAT} {', '.join(row)}, {connections} connections, {server.name}: {figures}")
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
                                     "loads": {", ".join(map(str, place)): runs for place, runs in server.loads.items()}}
                       for server in servers})
    def median(runs, what):
        return statistics.median(run[what] for run in runs)
    def cell(runs):
        if not runs:
            return ""
        bad = " (errors)" if any(run["bad"] for run in runs) else ""
        return f"{median(runs, 'rps'):.0f}, {median(runs, 'p50'):.2f}, {median(runs, 'p99'):.1f}, {median(runs, 'cpu'):.2f}{bad}"
    def times(ours, theirs):
        """Of each turn's own ratio: both saw the same machine."""
        return f"{statistics.median(our['rps'] / max(their['rps'], 0.1) for our, their in zip(ours, theirs)):.1f}" if theirs else ""
    pgset, *peers = servers
    rows = []
    for *row, connections in dict.fromkeys(place for server in servers for place in server.loads):
        place = (*row, connections)
        # whatever the others do less, it stands beside pgset's whole injection
        ours = pgset.loads.get(place) or pgset.loads[row[0], WHOLE, connections]
        rows.append([*place, cell(pgset.loads.get(place)), *(cell(server.loads.get(place)) for server in peers),
                     *(times(ours, server.loads.get(place)) for server in peers)])
    head = ["review", "mutation", "connections", *(f"{server.name}: rps, p50, p99, processor ms" for server in servers),
            *(f"times {server.name}" for server in peers)]
    table(f"Admission servers (median of {REPEAT} runs of {SECONDS} s; aims: 4 times controller-runtime, 10 times Gatekeeper; p99 5 ms at 25 with 2 kB)", head, rows)
    table("Memory and start", ["", *(server.name for server in servers)], [
        ["resident idle, MB", *(f"{statistics.median(server.idle):.1f}" for server in servers)],
        ["resident after the load, MB", *(f"{statistics.median(server.after):.1f}" for server in servers)],
        ["cold start to ready, ms", *(f"{statistics.median(server.cold) * 1000:.0f}" for server in servers)]])
