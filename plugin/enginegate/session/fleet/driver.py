"""A fleet's run on the driver: shards out to machines, reports in, one verdict."""

import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginegate.baselines import take_baselines
from enginegate.config import Options
from enginegate.errors import EngineGateError
from enginegate.report import fleet_files, merged
from enginegate.session.estimate import duration
from enginegate.session.fleet.cluster import Cluster, Stream, check_machines, connected
from enginegate.session.fleet.jobs import Job, excluded, jobs_of, order_of
from enginegate.session.fleet.kept import Kept
from enginegate.session.fleet.shard import Order
from enginegate.verdicts import exit_status

INTERRUPTED = 2  # exit status of pytest
_TRIES = 3  # of a shard whose machine dies
_WAIT_S = 1.0
_OWN = "enginegate: "  # how the lines of a run begin that tell of its steps

Say = Callable[[str], None]


def run_fleet(
    options: Options, started_in: Path, spoken: Sequence[str], show: Say, *, quiet: bool
) -> int:
    """Run the shards of a run on a cluster's machines; the exit status of the fleet.

    `spoken` are pytest's arguments, `show` prints a line. Raises EngineGateError.
    """
    fleet = options.fleet
    assert fleet  # noqa: S101 - asked for, or nobody is here
    kept = Kept(options.rootpath / ".enginegate" / "fleet", options.baselines)
    with connected(fleet.address, options.rootpath, list(excluded(options))) as cluster:
        machines = check_machines(cluster, fleet.kinds or {"": ""})
        jobs = jobs_of(options, machines)
        orders = {job: order_of(job, options, started_in, spoken) for job in jobs}
        kept.empty()
        run = FleetRun(cluster, orders, kept, (lambda _: None) if quiet else _saying(show))
        run.say(_plan(jobs, machines, options))
        with _ending_orderly():
            run.play()
    return _conclude(options, run, show)


def _saying(show: Say) -> Say:
    return lambda line: show(f"{_OWN}{line}")


def _plan(jobs: Sequence[Job], machines: Mapping[str, int], options: Options) -> str:
    kinds = f" of each of {len(machines)} kinds" if len(machines) > 1 else ""
    return (
        f"fleet: {len(options.variants)} engines in {jobs[0].shard.count} shards{kinds}, on "
        f"{sum(machines.values())} machines; the longest about {duration(jobs[0].cost_s)} where "
        "nothing is in the cache"
    )


@contextlib.contextmanager
def _ending_orderly() -> Iterator[None]:
    """Let SIGTERM end the fleet as Ctrl-C does; Ray has a handler of its own."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class FleetRun:
    """Shards on their way.

    Attributes:
        cluster: that runs them.
        orders: what is to be run, the longest first.
        kept: where reports and logs are.
        say: tells of a step.
        running: shards that machines have, or wait for one.
        places: where each was last seen.
        tries: how often the machine of each died.
        unrun: shards without a report, and why.
        done: shards with a report.
        is_interrupted: Ctrl-C or SIGTERM came.
        problems: what could not be kept.
    """

    cluster: Cluster
    orders: Mapping[Job, Order]
    kept: Kept
    say: Say
    running: dict[Stream, Job] = field(default_factory=dict)
    places: dict[Job, dict[str, Any]] = field(default_factory=dict)
    tries: Counter[Job] = field(default_factory=Counter)
    unrun: dict[Job, str] = field(default_factory=dict)
    done: int = 0
    is_interrupted: bool = False
    problems: list[str] = field(default_factory=list)

    def play(self) -> None:
        """Run all shards, until each has a report or a reason that there is none."""
        try:
            for job in self.orders:
                self._start(job)
            while self.running:
                for stream, event in self.cluster.events(list(self.running), _WAIT_S):
                    for what, value in event.items():
                        self._heard[what](stream, value)
                self._give_up_where_nobody_is()
        except KeyboardInterrupt:
            self._interrupt()

    @property
    def _heard(self) -> Mapping[str, Callable[[Stream, Any], None]]:
        """What is done at each event of a shard."""
        return {
            "node": self._node,
            "began": self._began,
            "line": self._line,
            "ended": self._ended,
            "lost": self._lost,
            "failed": self._failed,
            "cancelled": self._cancelled,
        }

    def _start(self, job: Job) -> None:
        stream = self.cluster.start(self.orders[job], job.resource, f"enginegate {job.name}")
        self.running[stream] = job

    def _interrupt(self) -> None:
        self.is_interrupted = True
        self.say(f"fleet: interrupted, {len(self.running)} shards are stopped")
        self.cluster.cancel(list(self.running))
        for stream in list(self.running):
            self._without(stream, "the fleet was interrupted")

    def _node(self, stream: Stream, node: str) -> None:
        self.places[self.running[stream]] = {"node": node}

    def _began(self, stream: Stream, where: Mapping[str, Any]) -> None:
        job = self.running[stream]
        self.places[job] |= where
        self.say(f"fleet: {job.name} runs on {self._place(job)}")

    def _line(self, stream: Stream, line: str) -> None:
        job = self.running[stream]
        self.kept.log(job, line)
        if line.startswith(_OWN):
            self.say(f"[{job.short}] {line.removeprefix(_OWN)}")

    def _ended(self, stream: Stream, found: Mapping[str, Any]) -> None:
        job = self.running[stream]
        if found["report"] is None:
            said = f"ended with exit status {found['status']} and no report"
            return self._without(stream, f"{said}: {self.kept.end_of_log(job)}")
        self.kept.keep(job, found, {**self.places[job], "tries": self.tries[job] + 1})
        self._take_baselines(job, found["baselines"])
        del self.running[stream]
        self.done += 1
        spent_s = found["ended_s"] - found["began_s"]
        return self.say(
            f"fleet: {job.name} is done after {spent_s:.0f} s, exit status {found['status']}; "
            f"{self.done} of {len(self.orders)}"
        )

    def _take_baselines(self, job: Job, found: Mapping[str, str]) -> None:
        try:
            for path in take_baselines(self.kept.baselines, found):
                self.say(f"fleet: {job.name} wrote {path}")
        except EngineGateError as error:
            self.problems.append(f"baselines of {job.name}: {error}")

    def _lost(self, stream: Stream, why: str) -> None:
        """Run it again elsewhere: what it measured is gone, so that nothing counts twice."""
        job = self.running[stream]
        self.tries[job] += 1
        if self.tries[job] >= _TRIES:
            return self._without(stream, f"its machine died {_TRIES} times, the last: {why}")
        del self.running[stream]
        self.say(f"fleet: {job.name} was lost with {self._place(job)} and is run again ({why})")
        return self._start(job)

    def _failed(self, stream: Stream, why: str) -> None:
        self._without(stream, f"it could not be run on {self._place(self.running[stream])}: {why}")

    def _cancelled(self, stream: Stream, _: str) -> None:
        self._without(stream, "somebody cancelled it in the cluster")

    def _without(self, stream: Stream, why: str) -> None:
        """There will be no report of this shard."""
        job = self.running.pop(stream)
        self.unrun[job] = why
        self.say(f"fleet: {job.name}: {why}")

    def _give_up_where_nobody_is(self) -> None:
        """A shard that waits for a machine of a kind that is gone would wait for ever."""
        for stream, job in list(self.running.items()):
            if not self.cluster.machines(job.resource):
                self.cluster.cancel([stream])
                self._without(stream, "no machine that could run it is left")

    def _place(self, job: Job) -> str:
        place = self.places.get(job, {})
        return f"{place.get('host', 'its machine')} (node {place.get('node', '?')[:8]})"


def _conclude(options: Options, run: FleetRun, show: Say) -> int:
    """Merge what came in, write what was asked for; the exit status."""
    lines = [*run.problems, *(f"{job.name}: {why}" for job, why in run.unrun.items())]
    reports = run.kept.reports()
    status = exit_status(["error"])
    if reports:
        fleet = merged(reports)
        status = int(fleet.status) or (exit_status(["error"]) if lines else 0)
        asked = (options.report_html, options.report_markdown, options.report_json)
        lines = [*fleet_files(fleet, *asked, text=False), *lines]
    for line in [*lines, f"reports and logs of the shards: {run.kept.shown}"]:
        show(line)
    return INTERRUPTED if run.is_interrupted else status
