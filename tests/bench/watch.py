"""What clients see of a set of members: one that writes through its Service, and one that asks each member itself."""

import os
import subprocess
import sys
import threading
import time
from collections import namedtuple

import postgres
import tools
from postgres import SPACE
from tools import WORK, run

# A row a moment, so that a gap is seen to the hundredth.
PAUSE = 0.005
# Between two questions to a member.
EVERY = 0.02
# What the client waits for an address that swallows its packets.
CONNECT = 1

# How many replicas stream, on a member that accepts writes. A clone streams too, under another name or with nothing replayed.
STREAMING = """select case when not pg_is_in_recovery() then (select count(*) from pg_stat_replication
    where state = 'streaming' and application_name ~ '-[0-9]+$' and replay_lsn is not null) end"""

Answer = namedtuple("Answer", "at member streaming")
Refusal = namedtuple("Refusal", "began ended why")


def driver():
    """psycopg from PyPI, for clients that cost the machine little."""
    place = WORK / "python"
    if not (place / "psycopg").is_dir():
        tools.need("pip3", "python3-pip")
        run(sys.executable, "-m", "pip", "install", "--quiet", "--target", place, "psycopg[binary]==3.2.13")
    sys.path.insert(0, str(place))
    import psycopg.connection
    psycopg.connection.timeout_from_conninfo = lambda params: CONNECT  # psycopg rounds 1 up to 2
    return psycopg


def parameters(host, password):
    return {"host": host, "user": "postgres", "dbname": "postgres", "password": password, "autocommit": True,
            "keepalives_idle": 1, "keepalives_interval": 1, "keepalives_count": 2, "tcp_user_timeout": 2000}


def longest(times):
    return max((later - earlier for earlier, later in zip(times, times[1:])), default=float("nan"))


class Writer:
    """Writes until it is told to stop; when each row was acknowledged, and what it met instead."""

    def __init__(self, psycopg, host, password):
        self.psycopg, self.written, self.refused, self.on, self.number = psycopg, [], [], True, 0
        self.parameters = parameters(host, password)
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
                self.refused.append(Refusal(began, time.time(), str(why).strip().splitlines()[-1]))
                time.sleep(PAUSE)

    def gap(self, since):
        """The longest time without an acknowledgement since then."""
        return longest([at for at, _ in list(self.written) if at >= since - 1])

    def writes_since(self, moment):
        return bool(self.written) and self.written[-1][0] > moment

    def stop(self):
        self.on = False
        self.thread.join(30)


class Members:
    """Asks every member at its own address, a connection each, what it is: the way to it is none but the network of pods."""

    def __init__(self, psycopg, names, password):
        self.psycopg, self.password, self.on = psycopg, password, True
        self.addresses, self.answers = dict.fromkeys(names, ""), []
        self.kubectl = None
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self):
        """Which address each has now: a pod that is made anew has another, and is asked by somebody who doesn't wait for the old one."""
        template = '--output=jsonpath={.metadata.name} {.status.podIP}{"\\n"}'
        while self.on:
            command = ["kubectl", "--namespace", SPACE, "get", "pods", "--watch", template]
            self.kubectl = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for line in self.kubectl.stdout:
                name, _, address = line.strip().partition(" ")
                if self.addresses.get(name, address) != address:
                    self.addresses[name] = address
                    if address:
                        threading.Thread(target=self.ask, args=(name, address), daemon=True).start()
            self.kubectl.wait()

    def ask(self, name, address):
        while self.on and self.addresses[name] == address:
            try:
                with self.psycopg.connect(**parameters(address, self.password)) as connection:
                    while self.on and self.addresses[name] == address:
                        streaming = connection.execute(STREAMING).fetchone()[0]
                        if streaming is not None:
                            self.answers.append(Answer(time.monotonic(), name, streaming))
                        time.sleep(EVERY)
            except self.psycopg.Error:
                time.sleep(EVERY)

    def master(self):
        """Who accepted writes last."""
        return self.answers[-1].member

    def gap(self, since):
        """The longest time since then in which no member accepted writes."""
        return longest([answer.at for answer in list(self.answers) if answer.at >= since - 1])

    def streaming_since(self, replicas):
        """Since when the master has had so many without a break; None if it has not now."""
        since, until = None, time.monotonic()
        for answer in reversed(list(self.answers)):
            if answer.streaming < replicas or until - answer.at > 1:
                break
            since = until = answer.at
        return since

    def stop(self):
        self.on = False
        if self.kubectl:
            self.kubectl.terminate()
