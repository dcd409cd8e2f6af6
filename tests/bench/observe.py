"""What is watched while something else is measured: the memory of a pod's processes, and how long segments of the WAL wait."""

import threading
import time
from pathlib import Path

import postgres
from postgres import SPACE, wait_for
from tools import run


class Repeated:
    """Looks again and again in the background, until the `with` that began it ends."""

    pause = 0.1

    def __enter__(self):
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.go, daemon=True)
        self.thread.start()
        return self

    def go(self):
        while not self.over.wait(self.pause):
            self.look()

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


class Memory(Repeated):
    """The memory in MB of those of a pod's processes that `is_of_it` knows by their command lines. All that are alive at once are added,
    each with its own highest: what they share is in each. And the same without that (Pss), as it was when it was looked at."""

    def __init__(self, pod, is_of_it):
        name = postgres.container_id(SPACE, pod, "postgres")
        tasks = run("ctr", "--address", postgres.CONTAINERD, "--namespace", "k8s.io", "task", "ls")
        first = next(line.split()[1] for line in tasks.splitlines() if line.startswith(name))
        # what kubectl starts in a container is a child not of its first process, but of that one's parent
        self.top = self.field(first, "status", "PPid:")
        self.is_of_it, self.resident, self.proportional = is_of_it, 0, 0

    @staticmethod
    def field(process, file, key):
        return int(next(line for line in Path(f"/proc/{process}/{file}").read_text().splitlines() if line.startswith(key)).split()[1])

    def below(self, process):
        try:
            children = [child for task in Path(f"/proc/{process}/task").iterdir() for child in (task / "children").read_text().split()]
        except OSError:  # it has ended
            return
        for child in children:
            yield child
            yield from self.below(child)

    def look(self):
        resident = proportional = 0
        for process in self.below(self.top):
            try:
                words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
                if self.is_of_it(words):
                    resident += self.field(process, "status", "VmHWM:") / 1024
                    proportional += self.field(process, "smaps_rollup", "Pss:") / 1024
            except (OSError, StopIteration):  # it has ended
                continue
        self.resident, self.proportional = max(self.resident, resident), max(self.proportional, proportional)

    def __str__(self):
        return f"{self.resident:.0f} (Pss {self.proportional:.0f})"


class Waits(Repeated):
    """How long each segment of a server waits until PostgreSQL knows that it is archived: the mark that it makes for a segment is renamed
    then, by which the file system changes the mark's time of change, and not that of its contents."""

    def __init__(self, marks):
        self.marks, self.since, self.seconds = marks, time.time(), {}

    def look(self):
        for mark in self.marks.glob("*.done"):
            try:
                status = mark.stat()
            except OSError:  # the next checkpoint takes it away
                continue
            if status.st_mtime > self.since:
                self.seconds[mark.stem] = status.st_ctime - status.st_mtime

    def __exit__(self, kind, *rest):
        try:
            if kind is None:
                archived(self.marks)
        finally:
            super().__exit__(kind, *rest)
        self.look()


def archived(marks):
    """Until nothing waits to be archived."""
    wait_for(600, "an archive of all WAL", lambda: not any(marks.glob("*.ready")))
