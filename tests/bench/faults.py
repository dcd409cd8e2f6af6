"""What happens to a master in `make bench-failover`. Each takes the session and the master's name; what it returns, if anything, undoes it."""

import os
import time
from collections import namedtuple
from pathlib import Path

import postgres
from postgres import CONTAINERD, SPACE, get, kubectl
from tools import Failed, run

# `ready` brings about what the case begins with; the aim is pgset's, in seconds.
Case = namedtuple("Case", "name fault aim ready", defaults=[None])


def ctr(*words):
    run("ctr", "--address", CONTAINERD, "--namespace", "k8s.io", *words)


def container(session, pod):
    return postgres.container_id(SPACE, pod, session.contender.container)


def processes(session, pod):
    """The processes of its container, by the node's numbers, with their command lines."""
    identity = container(session, pod)
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and identity in (entry / "cgroup").read_text():
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended


def restarts(session, pod):
    statuses = get(f"pod {pod}")["status"]["containerStatuses"]
    return next(status["restartCount"] for status in statuses if status["name"] == session.contender.container)


def other(session, pod):
    return next(member for member in session.contender.members if member != pod)


# === what happens ===

def switchover(session, pod):
    session.contender.switchover(pod, other(session, pod), time.time_ns())


def pod_deleted(_, pod):
    kubectl(f"delete pod {pod} --wait=false")


def pod_deleted_by_force(_, pod):
    kubectl(f"delete pod {pod} --wait=false --force --grace-period=0")


def postmaster_killed(session, pod):
    number = next((number for number, command in processes(session, pod) if command.startswith("/usr/lib/postgresql/")), None)
    if number is None:
        raise Failed(f"bench: {pod} runs no postmaster")
    os.kill(number, 9)


def container_killed(session, pod):
    ctr("task", "kill", "--signal", "SIGKILL", container(session, pod))


def cut_off(session, pod):
    """Nothing but its loopback reaches it, and it reaches nothing; nobody is told. The network stays the pod's whatever becomes of its containers."""
    number, _ = next(processes(session, pod))
    network = os.open(f"/proc/{number}/ns/net", os.O_RDONLY)

    def nft(*rules):
        run("nsenter", f"--net=/proc/{os.getpid()}/fd/{network}", "nft", "; ".join(rules))

    nft("add table inet cut",
        "add chain inet cut in { type filter hook input priority 0; }", "add rule inet cut in iifname != lo drop",
        "add chain inet cut out { type filter hook output priority 0; }", "add rule inet cut out oifname != lo drop")

    def heal():
        nft("delete table inet cut")
        os.close(network)
    return heal


def frozen(session, pod):
    """Its node stands still, as far as a node of one can. A frozen process' kernel goes on acknowledging packets: so it is cut off, too."""
    identity = container(session, pod)
    heal = cut_off(session, pod)
    ctr("task", "pause", identity)

    def thaw():
        ctr("task", "resume", identity)
        heal()
    return thaw


# === what a case begins with ===

def never_restarted(session):
    """A master whose container has not been started again yet: the kubelet does that at once, but once only."""
    for _ in range(6):
        master = session.members.master()
        if restarts(session, master) == 0:
            return
        pod_deleted(session, master)
        session.settle()
    raise Failed("bench: no master whose container was never restarted")


def restarted_once(session):
    """A master whose container the kubelet has just restarted: the next time it waits for 10 seconds."""
    for _ in range(6):
        never_restarted(session)
        master = session.members.master()
        container_killed(session, master)
        session.settle()
        if session.members.master() == master and restarts(session, master) == 1:
            return
    raise Failed("bench: no master whose container was restarted once")


CASES = [
    Case("switchover", switchover, "0.5"),
    Case("pod deleted", pod_deleted, "0.5"),
    Case("postmaster killed", postmaster_killed, "1.5"),
    Case("container killed", container_killed, "1.5", never_restarted),
    Case("container killed again", container_killed, "", restarted_once),
    Case("pod deleted by force", pod_deleted_by_force, ""),
    Case("node cut off", cut_off, "8"),
    Case("node frozen", frozen, "8"),
]
