"""What all parts of the bench need: commands, processes that end with it, and tables."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
WORK = TOP / "target/bench"
WORK.mkdir(parents=True, exist_ok=True)


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Failed(SystemExit):
    """Something that was asked for did not happen: ends the bench, unless a part of it can go on without."""


def run(*command, text=None, check=True, limit=900, env=None):
    """Runs a command to its end; its standard output."""
    done = subprocess.run([str(word) for word in command], input=text, capture_output=True, text=True, timeout=limit, env=env)
    if check and done.returncode != 0:
        raise Failed(f"bench: {' '.join(map(str, command))[:200]}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout.strip()


def wait_for(limit, what, look, why=lambda: "", pause=0.1):
    """Until `look` answers; when the time is over, `why` says what there was instead."""
    deadline = time.monotonic() + limit
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise Failed(f"bench: {what}: not within {limit} s\n{why()}")
        time.sleep(pause)


def need(program, package):
    """A program of a Debian package, which is installed if it is missing and may be."""
    if shutil.which(program) is None:
        if os.geteuid() != 0:
            raise SystemExit(f"bench: {program} is missing: install the Debian package {package}")
        run("apt-get", "-qq", "update")
        run("apt-get", "-qq", "install", "--yes", "--no-install-recommends", package)


def release_binary():
    """The program as it is shipped: static, optimised. BINARY names another one instead, as from before a change."""
    if binary := os.environ.get("BINARY"):
        return Path(binary).resolve()
    say("building pgset's release")
    run("make", "--directory", TOP, "binary", "PROFILE=release", limit=3600)
    return TOP / f"target/{os.uname().machine}-unknown-linux-gnu/release/pgset"


def peer(name):
    say(f"the peer {name}: built, if it is not there yet")
    return Path(run(TOP / "tests/peers/build", name, limit=3600))


class Process:
    """A program in the background, with its standard error in a file; it ends with the `with` that started it."""

    def __init__(self, name, *command, env=None):
        WORK.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log = WORK / f"{name}.log"
        self.started = time.monotonic()
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            env={**os.environ, **(env or {})})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """Asks it to end, and waits until it has."""
        self.process.terminate()
        self.process.wait(60)

    def ready(self, limit, probe):
        """Seconds from the start until the probe succeeds."""
        def look():
            if self.process.poll() is not None:
                raise SystemExit(f"bench: {self.name} ended: {self.tail()}")
            return probe()
        wait_for(limit, f"{self.name} that is ready", look, self.tail, pause=0.005)
        return time.monotonic() - self.started

    def tail(self):
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def processor_seconds(self):
        """Time on a processor so far: a figure that other work on the machine hardly touches."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self):
        """Resident memory in MB, and its highest so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        def field(key):
            return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) / 1024
        return field("VmRSS:"), field("VmHWM:")


def table(title, head, rows):
    """A table that Markdown reads as well as people do."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    def line(cells):
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"
    print(f"\n{title}\n")
    print(line(head))
    print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    for row in rows:
        print(line(row))
    sys.stdout.flush()


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def save(name, figures):
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
