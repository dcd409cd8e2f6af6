"""What a user waits for: one server-side dry-run `create` of a StatefulSet at a real API server, with nothing, with the API server's own
policy, with a thin Go webhook, and with pgset. The requests take turns, one each, so that all see the same machine."""

import json
import os
import statistics
import time
from contextlib import ExitStack

import objects
from admission import LEAST, WHOLE, additions, certificates, listens, whole
from cluster import ControlPlane, free_ports, install, serve, wait_ready
from tools import Process, peer, percentile, release_binary, save, say, table, wait_for

WARM_UP, COUNT = 100, int(os.environ.get("COUNT", "800"))
REPEAT = int(os.environ.get("REPEAT", "3"))
WAYS = {
    "nothing": "nothing",
    "policy": "MutatingAdmissionPolicy (CEL in the API server)",
    "thin": "controller-runtime webhook",
    "pgset": "pgset",
    "policy-least": "MutatingAdmissionPolicy, only the least",
    "thin-least": "controller-runtime webhook, only the least",
    # of what pgset's time is made
    "larger": "nothing, but the object is the one that pgset makes",
    "call": "pgset, which leaves this one alone: the call",
}


def bare(metadata):
    return {field: metadata[field] for field in ("name", "labels", "annotations")}


def call_only(plane, https):
    """pgset's own configuration, for a namespace whose objects don't ask for it: without the conditions, so that it is called."""
    shipped = json.loads(plane.kubectl("get", "mutatingwebhookconfiguration", "pgset", "--output=json"))["webhooks"][0]
    entry = {**shipped, "name": "call.pgset.dev", "namespaceSelector": objects.only("call")}
    del entry["matchConditions"]
    return {**objects.webhook("call", "", ""), "webhooks": [entry]}


def main():
    binary, thin = release_binary(), peer("thin")
    folder, authority = certificates()
    with ExitStack() as stack:
        plane = stack.enter_context(ControlPlane())
        https, http, thin_port = free_ports(3)
        for way in WAYS:
            # pgset's own opt-out, so that all can get the same object
            labels = {} if way == "pgset" else {"pgset.dev/webhook": "disabled"}
            plane.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": way, "labels": labels}})
        install(plane, binary, https)
        pgset = stack.enter_context(serve(plane, binary, https, http))
        wait_ready(pgset, http)
        operations = {WHOLE: whole(https), LEAST: objects.LEAST}
        webhook = stack.enter_context(Process("thin", thin, f"--port={thin_port}", f"--cert-dir={folder}", *additions(operations)))
        webhook.ready(60, lambda: listens(thin_port))
        mutated = {"pgset": operations[WHOLE]}
        for work, suffix in ((WHOLE, ""), (LEAST, "-least")):
            mutated |= {f"policy{suffix}": operations[work], f"thin{suffix}": operations[work]}
            plane.create(*objects.policy(f"policy{suffix}", operations[work]),
                         objects.webhook(f"thin{suffix}", f"https://127.0.0.1:{thin_port}/{work}", authority))
        plane.create(call_only(plane, https))
        client = plane.client()
        bodies = {way: json.dumps(objects.stateful_set(namespace=way)) for way in WAYS}
        bodies["call"] = bodies["call"].replace("pgset.dev/", "somebody.else/")
        say(f"the StatefulSet has {len(bodies['pgset'])} bytes")

        def create(way):
            return client.post(f"/apis/apps/v1/namespaces/{way}/statefulsets?dryRun=All", bodies[way])

        def is_mutated(way):
            return objects.covers(json.loads(create(way)), objects.patched(json.loads(bodies[way]), mutated[way]))

        for way in mutated:
            wait_for(60, f"a mutation by {way}", lambda way=way: is_mutated(way), lambda way=way: create(way).decode()[:3000])
        made = json.loads(create("pgset"))
        bodies["larger"] = json.dumps({**made, "metadata": {**bare(made["metadata"]), "namespace": "larger"}})
        if any(json.loads(create(way))["spec"]["template"]["spec"].get("serviceAccountName") for way in ("nothing", "call")):
            raise SystemExit("bench: something mutates where nothing should")

        runs = []
        for turn in range(REPEAT):
            times = {way: [] for way in WAYS}
            for number in range(WARM_UP + COUNT):
                for way in WAYS:
                    started = time.perf_counter()
                    create(way)
                    if number >= WARM_UP:
                        times[way].append((time.perf_counter() - started) * 1000)
            runs.append({way: (percentile(t, 0.5), percentile(t, 0.99)) for way, t in times.items()})
            say(f"{turn + 1}/{REPEAT}: " + ", ".join(f"{way} {p50:.2f} {p99:.1f}" for way, (p50, p99) in runs[-1].items()))
    save("wait", runs)
    rows = []
    for way, name in WAYS.items():
        def median(index, minus=None, way=way):
            return statistics.median(run[way][index] - (run[minus][index] if minus else 0) for run in runs)
        rows.append([name, f"{median(0):.2f}", f"{median(1):.1f}", "" if way == "nothing" else f"+{median(0, 'nothing'):.2f}"])
    table(f"One dry-run `create` at the API server ({COUNT} each, in turn; median of {REPEAT} runs; aim: less than the policy costs)",
          ["mutated by", "p50 ms", "p99 ms", "cost at p50, ms"], rows)
