"""The controller with many sets: StatefulSets that are injected, with two pods each, and no nodes.

The controllers of Kubernetes are stopped, so that only what is measured is at work; the pods are made by the bench.
"""

import json
import os
import signal
import time
from datetime import datetime, timezone

import objects
from cluster import ControlPlane, free_ports, install, post_all, serve, serve_controller, wait_ready
from tools import release_binary, run, save, say, table, wait_for

SIZES = [int(size) for size in os.environ.get("SETS", "1000,10000").split(",")]
WINDOW = int(os.environ.get("WINDOW", "60"))  # seconds at rest that are watched
PER_NAMESPACE = 10
ACCOUNT = "system:serviceaccount:pgset-system:pgset-controller"
POD_MAKER = "system:serviceaccount:kube-system:statefulset-controller"  # pgset's policy lets nobody else make members
LIMIT = int(os.environ.get("LIMIT", "3600"))  # seconds that a settling may take: with 10,000 sets and other work beside it more than an hour
QUIET = 5  # seconds without a request: everything is done


def namespace(number):
    return f"team-{number // PER_NAMESPACE:05}"


def name(number):
    return f"set-{number:05}"


class Audit:
    """What pgset asked the API server, from the audit log, read on as it grows; old files are rotated away."""

    def __init__(self, plane):
        self.folder = plane.folder
        self.place, self.inode = 0, None
        self.counts, self.last, self.grown = {}, None, None

    def read(self):
        path = self.folder / "audit.log"
        with open(path, encoding="utf-8") as log:
            inode = os.fstat(log.fileno()).st_ino
            if inode != self.inode:
                self.inode, self.place = inode, 0
            log.seek(self.place)
            for line in iter(log.readline, ""):
                if not line.endswith("\n"):
                    break  # being written
                self.place += len(line.encode())
                self.take(json.loads(line))
        return self

    def take(self, event):
        if event["user"]["username"] != ACCOUNT or event["stage"] == "ResponseStarted":
            return
        resource = event.get("objectRef", {}).get("resource", "-")
        at = datetime.fromisoformat(event["requestReceivedTimestamp"].replace("Z", "+00:00"))
        key = (event["verb"], resource)
        self.counts[key] = self.counts.get(key, 0) + 1
        own_lease = event.get("objectRef", {}).get("namespace") == "pgset-system"
        if event["verb"] != "watch" and not own_lease:
            self.last = max(at, self.last or at)
            self.grown = datetime.now(timezone.utc)

    def fresh(self):
        self.read()
        self.counts, self.last, self.grown = {}, None, None
        return self

    def total(self):
        return sum(count for (verb, _), count in self.counts.items() if verb != "watch")


def stop_controllers(plane):
    """Kubernetes' own controllers would make pods, at their own pace."""
    path = plane.folder / "pid/kube-controller-manager"
    os.kill(int(path.read_text()), signal.SIGKILL)


def injected(binary):
    # two words that stand nowhere else
    text = run(binary, "inject", "-o", "json", "-f", "-", text=json.dumps(objects.stateful_set(namespace="set-team", name="set-name")))
    template = json.dumps(json.loads(text))
    return lambda number: json.loads(template.replace("set-team", namespace(number)).replace("set-name", name(number)))


def pod(set_object, ordinal):
    """A member, as far as anybody reads it."""
    metadata = set_object["metadata"]
    template = set_object["spec"]["template"]
    return {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": f"{metadata['name']}-{ordinal}", "namespace": metadata["namespace"],
                         "labels": {**template["metadata"]["labels"], "statefulset.kubernetes.io/pod-name": f"{metadata['name']}-{ordinal}"},
                         "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": metadata["name"],
                                              "uid": metadata["uid"], "controller": True, "blockOwnerDeletion": True}]},
            "spec": {**template["spec"], "automountServiceAccountToken": False}}


def settle(audit, process, started, limit):
    """Seconds from the start to the last request of the work that it started."""
    def quiet():
        audit.read()
        if process.process.poll() is not None:
            raise SystemExit(f"bench: pgset ended: {process.tail()}")
        now = datetime.now(timezone.utc)
        # the work begins when it has the Lease; a busy API server logs late what it received early
        begun = ("list", "statefulsets") in audit.counts
        return begun and (now - max(audit.last, audit.grown)).total_seconds() > QUIET
    wait_for(limit, "everything reconciled", quiet, lambda: str(audit.counts), pause=0.5)
    return audit.last.timestamp() - started


def measure(binary, count):
    figures = {"sets": count}
    with ControlPlane() as plane:
        https, http, other = free_ports(3)
        install(plane, binary, https, webhook=False)
        stop_controllers(plane)
        client = plane.client()
        for number in range(0, count, PER_NAMESPACE):
            client.post("/api/v1/namespaces", json.dumps({"metadata": {"name": namespace(number)}}))
        say(f"{count} sets: making them")
        made = injected(binary)
        post_all(plane, ((f"/apis/apps/v1/namespaces/{namespace(n)}/statefulsets", made(n)) for n in range(count)))
        audit = Audit(plane).fresh()

        say(f"{count} sets: everything around them is made")
        started = time.time()
        with serve_controller(plane, binary, http) as pgset:
            figures["first"] = settle(audit, pgset, started, LIMIT)
            figures["first_requests"] = audit.total()
            figures["first_rss"], figures["first_peak"] = pgset.memory()
            say(f"{count} sets: reconciled in {figures['first']:.1f} s with {audit.total()} requests, {figures['first_rss']:.1f} MB: {audit.counts}")
            missing = check(plane, count)
            if missing:
                raise SystemExit(f"bench: not everything was made: {missing}\n{pgset.tail()}")

            stored = {}
            client = plane.client()  # the API server has closed the one that rested meanwhile
            for number in range(0, count, PER_NAMESPACE):
                path = f"/apis/apps/v1/namespaces/{namespace(number)}/statefulsets"
                for item in json.loads(client.ask("GET", path)[1])["items"]:
                    stored[item["metadata"]["name"]] = item
            post_all(plane, ((f"/api/v1/namespaces/{namespace(n)}/pods", pod(stored[name(n)], ordinal)) for n in range(count) for ordinal in (0, 1)),
                     user=POD_MAKER)
            stored.clear()
            settle(audit, pgset, started, LIMIT)
            # the next one finds the Lease free
            pgset.stop()

        audit.fresh()
        started = time.time()
        with serve_controller(plane, binary, http) as pgset:
            wait_ready(pgset, http)
            figures["again"] = settle(audit, pgset, started, LIMIT)
            figures["again_requests"] = audit.total()
            say(f"{count} sets: seen again in {figures['again']:.1f} s with {audit.total()} requests: {audit.counts}")
            time.sleep(QUIET)
            audit.fresh()
            before = pgset.processor_seconds()
            time.sleep(WINDOW)
            audit.read()
            figures["rest_requests"] = audit.total() / WINDOW
            figures["rest_cpu"] = (pgset.processor_seconds() - before) / WINDOW
            figures["rss"], figures["peak"] = pgset.memory()
            with serve(plane, binary, https, other, name="pgset-webhook") as webhook:
                wait_ready(webhook, other)
                figures["both"] = figures["rss"] + webhook.memory()[0]
            say(f"{count} sets: {figures['rss']:.1f} MB at rest (highest {figures['peak']:.1f}), {figures['rest_requests']:.2f} requests a second: {audit.counts}")
    return figures


def check(plane, count):
    """Kinds of which there are fewer than sets."""
    kinds = {"roles": "apis/rbac.authorization.k8s.io/v1", "rolebindings": "apis/rbac.authorization.k8s.io/v1", "leases": "apis/coordination.k8s.io/v1",
             "serviceaccounts": "api/v1", "services": "api/v1", "secrets": "api/v1", "poddisruptionbudgets": "apis/policy/v1"}
    client, missing = plane.client(), {}
    for kind, group in kinds.items():
        page = json.loads(client.ask("GET", f"/{group}/{kind}?limit=1")[1])
        there = len(page["items"]) + page["metadata"].get("remainingItemCount", 0)
        if there < count:
            missing[kind] = there
    return missing


def main():
    binary = release_binary()
    results = [measure(binary, size) for size in SIZES]
    save("controller", results)
    def row(what, key, form="{:.1f}"):
        return [what, *(form.format(result[key]) for result in results)]
    table(f"The controller (sets with two pods each, {PER_NAMESPACE} a namespace; aim: below 20 MB with 1,000, with the webhook below 40)", ["sets", *(f"{r['sets']:,}" for r in results)], [
        row("start to all reconciled, everything to be made, s", "first"),
        row("  requests for that", "first_requests", "{:.0f}"),
        row("start to all reconciled, everything there, s", "again"),
        row("  requests for that", "again_requests", "{:.0f}"),
        row("resident memory at rest, MB", "rss"),
        row("  its highest, at the start", "peak"),
        row("  with a webhook's beside it", "both"),
        row("requests a second at rest", "rest_requests", "{:.2f}"),
        row("processor time at rest, share of a core", "rest_cpu", "{:.3f}")])
