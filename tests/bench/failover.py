"""How long clients can't write when a master goes, through the Service to it; `make bench-failover`.

One client on the node writes a row at a time, each in its own transaction, and connects anew as soon as it is refused. The gap is the
longest time between two acknowledgements from the fault on, until all members stream again and a few seconds more. Beside it every
member is asked at its own address whether it accepts writes: what the gap there is shorter by is the Service's way.
REPEAT repetitions (5), CASES and CONTENDERS for some of them; TRACE tells what the client met in each gap, to be laid beside the
members' logs.
"""

import itertools
import os
import statistics
import time

import postgres
import tools
from contenders import CONTENDERS, MEMBERS
from faults import CASES
from postgres import get, wait_for
from tools import Failed, say
from watch import Members, Writer, driver, parameters

REPEAT = int(os.environ.get("REPEAT", "5"))
# After a fault, until the next: so that no case meets what the last one left. pgset's master that handed over stands again after 5.
REST = 6
NOTE = """The client waits 1 s for an address that does not answer, and 2 s for one that no longer acknowledges. "container killed": the kubelet
restarts it at once; "killed again": after 10 s. "pod deleted by force": the kubelet still sends SIGTERM first. "node cut off": all packets of
the pod are dropped but its loopback's; "node frozen": its processes stand still, too; both end when the client writes again. Patroni: ttl 30,
loop_wait 10, retry_timeout 10; tuned: 20, 5, 3. All members are asked every 20 ms, which costs each contender the same."""


def chosen(variable, all_of_them):
    names = [name for name in os.environ.get(variable, "").split(",") if name]
    if unknown := set(names) - {one.name for one in all_of_them}:
        raise SystemExit(f"bench: {variable}: there is no {', '.join(unknown)}, but {', '.join(one.name for one in all_of_them)}")
    return [one for one in all_of_them if not names or one.name in names]


def moment(at):
    return time.strftime("%M:%S", time.gmtime(at)) + f"{at % 1:.3f}"[1:]


class Session:
    """A contender's set, from a bare namespace on, and its clients."""

    def __init__(self, contender, psycopg):
        self.contender, self.psycopg, self.writer = contender, psycopg, None
        postgres.fresh()
        self.password = contender.start()
        self.members = Members(psycopg, contender.members, self.password)
        try:
            self.settle(rest=0)
            with self.connection() as connection:
                connection.execute("create table gaps (n bigint)")
            self.writer = Writer(psycopg, self.address(), self.password)
            wait_for(30, "a client that writes", lambda: self.writer.written)
        except BaseException:
            self.stop()
            raise

    def address(self):
        return get(f"service {self.contender.service}")["spec"]["clusterIP"]

    def connection(self):
        return self.psycopg.connect(**parameters(self.address(), self.password))

    def settled(self):
        return self.members.streaming_since(MEMBERS - 1) is not None \
            and get(f"statefulset {self.contender.set}")["status"].get("readyReplicas") == MEMBERS

    def settle(self, rest=REST):
        wait_for(180, f"{MEMBERS} members that stream and are Ready", self.settled, pause=0.5)
        time.sleep(rest)

    def once(self, case):
        """A repetition; its figures."""
        if case.ready:
            case.ready(self)
        wait_for(30, "a client that writes", lambda: self.writer.writes_since(time.monotonic() - 0.2))
        self.writer.refused.clear()
        before, since, undo = self.members.master(), time.monotonic(), None
        try:
            undo = case.fault(self, before)
            # Until it writes again after a gap, or is known to have had none.
            wait_for(120, "a client that writes again",
                     lambda: time.monotonic() > since + 4 and self.writer.writes_since(time.monotonic() - 0.2))
        finally:
            if undo:
                undo()
        self.settle()
        if os.environ.get("TRACE"):
            for why, alike in itertools.groupby(self.writer.refused, lambda refusal: refusal.why):
                alike = list(alike)
                say(f"  {moment(alike[0].began)} to {moment(alike[-1].ended)}, {len(alike)} times: {why}")
        after = self.members.master()
        return {"since": since, "service": self.writer.gap(since), "members": self.members.gap(since),
                "streaming": max(0, self.members.streaming_since(MEMBERS - 1) - since), "before": before, "after": after}

    def missing(self):
        """The acknowledged rows that are not there, with the times of their acknowledgement."""
        self.writer.stop()
        with self.connection() as connection:
            there = {number for number, in connection.execute("select n from gaps")}
        return [at for at, number in self.writer.written if number not in there]

    def stop(self):
        self.members.stop()
        if self.writer:
            self.writer.on = False


class Figures:
    """All that was seen: a list of repetitions, and of failures, for each contender and case."""

    def __init__(self):
        self.runs, self.failures, self.rows = {}, [], {}

    def of(self, contender, case):
        return self.runs.setdefault((contender.name, case.name), [])

    def add_rows(self, session, own):
        """What is missing, by the repetition before whose end it was acknowledged."""
        acknowledged, missing = self.rows.get(session.contender.name, (0, 0))
        try:
            times = session.missing()
        except (Exception, Failed) as why:
            self.fail(session.contender.name, "rows", why)
            return
        for run, later in zip(own, own[1:] + [{"since": float("inf")}]):
            run["missing"] = sum(1 for at in times if run["since"] <= at < later["since"])
        self.rows[session.contender.name] = acknowledged + len(session.writer.written), missing + len(times)

    def fail(self, contender, case, why):
        text = str(why).strip() or type(why).__name__
        self.failures.append((contender, case, text.splitlines()[0]))
        say(f"{contender}, {case}: {text}")

    def cell(self, contender, case, show):
        runs, failures = self.of(contender, case), sum(1 for failure in self.failures if failure[:2] == (contender.name, case.name))
        text = show(runs) if runs else ""
        return ", ".join(filter(None, (text, failures and f"{failures} failed")))

    def table(self, title, contenders, cases, show, aim=False):
        head = ["case", *(contender.name for contender in contenders), *(["aim of pgset"] if aim else [])]
        tools.table(title, head, [[case.name, *(self.cell(contender, case, show) for contender in contenders), *([case.aim] if aim else [])]
                                  for case in cases])

    def show(self, contenders, cases):
        def seconds(key, digits):
            def show(runs):
                times = [run[key] for run in runs]
                return f"{statistics.median(times):.{digits}f} / {max(times):.{digits}f}"
            return show

        def moved(runs):
            return f"{sum(1 for run in runs if run['before'] != run['after'])} of {len(runs)}"

        def missing(runs):
            known = [run["missing"] for run in runs if "missing" in run]
            return f"{sum(known)}" + (f", unknown of {len(runs) - len(known)}" if len(known) < len(runs) else "")

        self.table("Seconds without a write, through the Service: median / worst", contenders, cases, seconds("service", 2), aim=True)
        self.table("Seconds without a member that accepts writes, asked directly: median / worst", contenders, cases, seconds("members", 2))
        self.table("Seconds until all members stream again: median / worst", contenders, cases, seconds("streaming", 1))
        self.table("Repetitions after which another member led", contenders, cases, moved)
        self.table("Rows acknowledged and missing", contenders, cases, missing)
        for name, (acknowledged, gone) in self.rows.items():
            print(f"{name}: {gone} of {acknowledged} rows missing in all")
        print(f"\n{NOTE}")
        for contender, case, why in self.failures:
            print(f"\nfailed: {contender}, {case}: {why}")

    def save(self):
        tools.save("failover", {f"{contender}, {case}": runs for (contender, case), runs in self.runs.items()})


def contend(contender, cases, psycopg, figures):
    """All cases of a contender. Whatever fails costs itself only; a set that does not recover is made anew."""
    session, own, vain = None, [], 0

    def end():
        nonlocal session, own
        if session:
            figures.add_rows(session, own)
            session.stop()
        session, own = None, []

    try:
        for case in cases:
            for _ in range(REPEAT):
                if vain == 2:
                    figures.fail(contender.name, case.name, "its set does not come up")
                    break
                try:
                    vain += 1
                    session = session or Session(contender, psycopg)
                    vain = 0
                    run = session.once(case)
                except (Exception, Failed) as why:
                    figures.fail(contender.name, case.name, why)
                    try:
                        if session:
                            session.settle()
                    except (Exception, Failed):
                        end()
                    continue
                own.append(run)
                figures.of(contender, case).append(run)
                say(f"{contender.name}, {case.name}: no write for {run['service']:.2f} s, none accepted for {run['members']:.2f} s, "
                    f"all stream after {run['streaming']:.1f} s, {run['before']} to {run['after']}")
    finally:
        end()


def main():
    if not postgres.KUBECONFIG.exists():
        raise SystemExit(f"bench: no lab is up, there is no {postgres.KUBECONFIG}: run `make lab install`")
    contenders, cases, figures = chosen("CONTENDERS", CONTENDERS), chosen("CASES", CASES), Figures()
    try:
        psycopg = driver()
        for contender in contenders:
            contend(contender, cases, psycopg, figures)
    finally:
        figures.show(contenders, cases)
        figures.save()
        if not os.environ.get("KEEP"):
            postgres.clear()
