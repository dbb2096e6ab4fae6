"""Levels of load: how long each is watched, when it is believed, and where its time went."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from enginegate.config import Arrivals
from enginegate.errors import ServingError
from enginegate.serving.load.generator import MOST_CONNECTIONS
from enginegate.serving.load.windows import Fault, OpenWindow, Window, latency_of, pool
from enginegate.serving.records import Breakdown, Level, OpenLevel
from enginegate.serving.triton.statistics import ServerStatistics

CLIENT_BOUND = "client-bound"
UNSTABLE = "unstable"
_SILENCE_S = 10.0


class RunningLevel(Protocol):
    """Closed-loop load that is running."""

    def window(self, time_s: float) -> Window:
        """Measure the next seconds; windows follow each other without a gap."""


class LoadGenerator(Protocol):
    """What makes the load; `load.Generator`, or a fake of it."""

    def closed(self, concurrency: int) -> AbstractContextManager[RunningLevel]:
        """Keep so many requests outstanding."""

    def open(self, rate_per_s: float, arrivals: Arrivals, time_s: float, seed: int) -> OpenWindow:
        """Send requests at times fixed beforehand."""


Statistics = Callable[[], ServerStatistics | None]


@dataclass(frozen=True)
class LevelRules:
    """When a level is believed.

    With these a level takes 2 to 5 s, and 32 of them less than 3 minutes.

    Attributes:
        warm_up_s: not counted; it also lasts until each connection has had an answer.
        min_window_s: shortest window.
        window_requests: requests that a window is to hold, as far as `limit_s` lets it.
        agreeing: so many last windows must agree.
        tolerance: by how much they may differ, largest / smallest - 1, in throughput and in mean
            latency; that of perf_analyzer.
        limit_s: seconds of counted windows after which the level is taken as it is.
        littles_tolerance: by how much throughput x mean latency / concurrency may miss 1.
        most_client_share: of a processor, above which the client is the bottleneck.
    """

    warm_up_s: float = 0.3
    min_window_s: float = 0.5
    window_requests: int = 60
    agreeing: int = 3
    tolerance: float = 0.1
    limit_s: float = 4.0
    littles_tolerance: float = 0.02
    most_client_share: float = 0.9


RULES = LevelRules()


def run_level(
    generator: LoadGenerator,
    concurrency: int,
    statistics: Statistics,
    driver: str,
    rules: LevelRules = RULES,
) -> Level:
    """Keep `concurrency` requests outstanding until the last windows agree, or the limit is over.

    `statistics` reads what the server has counted so far, or gives None where that is unknown.
    Raises ServingError for an answer that is wrong or missing: its level is worth nothing.
    """
    with generator.closed(concurrency) as running:
        length_s = _length_s(_checked(running.window(rules.warm_up_s), concurrency), rules)
        windows: list[Window] = []
        counts = [statistics()]
        while not _agree(windows, rules) and len(windows) * length_s < rules.limit_s:
            windows.append(_checked(running.window(length_s), concurrency))
            counts.append(statistics())
    last = windows[-rules.agreeing :]
    whole, counted = pool(last), _between(counts[-len(last) - 1], counts[-1])
    marks = _marks(whole, concurrency, rules)
    if not _agree(last, rules):
        marks = (_unstable(last), *marks)
    rates = [window.throughput_per_s for window in last]
    spread = max(rates) / max(min(rates), 1e-9)
    return replace(_level(whole, concurrency, driver, counted, marks), spread=spread)


def closed_window(
    generator: LoadGenerator, concurrency: int, warm_up_s: float, time_s: float, fewest: int
) -> Window:
    """Closed-loop load after a warm-up, of `fewest` answers about at least.

    A window without any is followed by more. Raises ServingError for an answer that is wrong or
    missing, and if there is none for `_SILENCE_S`.
    """
    with generator.closed(concurrency) as running:
        rate_per_s = _checked(running.window(warm_up_s), concurrency).throughput_per_s
        length_s = min(max(time_s, fewest / max(rate_per_s, 1e-9)), _SILENCE_S)
        windows = [_checked(running.window(length_s), concurrency)]
        while not windows[-1].requests:
            if len(windows) * length_s >= _SILENCE_S:
                raise ServingError(
                    f"no answer for {_SILENCE_S:.0f} s at concurrency {concurrency}: "
                    "the server stands still; look into its log"
                )
            windows.append(_checked(running.window(length_s), concurrency))
        return pool(windows)


def _length_s(warm_up: Window, rules: LevelRules) -> float:
    """Long enough for the requests, but so that enough windows fit into the limit."""
    wanted_s = rules.window_requests / max(warm_up.throughput_per_s, 1e-9)
    return min(max(rules.min_window_s, wanted_s), rules.limit_s / (rules.agreeing + 1))


def _checked(window: Window, concurrency: int) -> Window:
    _check(window.wrong, window.errors, f"at concurrency {concurrency}")
    return window


def _check(wrong: Fault, errors: Fault, where: str) -> None:
    if errors.count:
        raise ServingError(
            f"{errors.count} requests failed {where}, the first: {errors.first}; "
            "look into the server's log"
        )
    if wrong.count:
        raise ServingError(
            f"{wrong.count} sampled answers are wrong {where}, the first: {wrong.first}; "
            "what is served is not what was built, so its speed means nothing"
        )


def _agree(windows: Sequence[Window], rules: LevelRules) -> bool:
    last = windows[-rules.agreeing :]
    return len(last) == rules.agreeing and all(
        max(values) <= min(values) * (1 + rules.tolerance)
        for values in ([w.throughput_per_s for w in last], [w.mean_s for w in last])
    )


def _unstable(windows: Sequence[Window]) -> str:
    rates = [window.throughput_per_s for window in windows]
    return f"{UNSTABLE}: {min(rates):.0f} to {max(rates):.0f} infer/s in its last windows"


def _marks(whole: Window, concurrency: int, rules: LevelRules) -> tuple[str, ...]:
    found = []
    if whole.client_share > rules.most_client_share:
        found.append(_client_bound(whole.client_share))
    kept = whole.throughput_per_s * whole.mean_s
    if abs(kept / concurrency - 1) > rules.littles_tolerance:
        found.append(
            f"{CLIENT_BOUND}: by Little's law {kept:.2f} requests were outstanding, "
            f"not {concurrency}"
        )
    return tuple(found)


def _client_bound(share: float) -> str:
    return f"{CLIENT_BOUND}: a client process was busy {share:.0%} of the time"


def _between(
    earlier: ServerStatistics | None, later: ServerStatistics | None
) -> ServerStatistics | None:
    return later.since(earlier) if earlier is not None and later is not None else None


def _level(
    whole: Window,
    concurrency: int,
    driver: str,
    counted: ServerStatistics | None,
    marks: tuple[str, ...],
) -> Level:
    return Level(
        concurrency=concurrency,
        throughput_per_s=whole.throughput_per_s,
        latency=whole.latency,
        driver=driver,
        requests=whole.requests,
        duration_s=whole.duration_s,
        breakdown=breakdown_of(whole, counted) if counted else None,
        batches=dict(counted.batches) if counted else {},
        client_share=whole.client_share,
        marks=marks,
    )


def breakdown_of(whole: Window, counted: ServerStatistics) -> Breakdown:
    """Mean seconds of a request: the server's by phase, the client's; the rest is network."""
    phases = (counted.queue, counted.compute_input, counted.compute_infer, counted.compute_output)
    server_s = [phase.mean_s for phase in phases]
    return Breakdown.of(whole.mean_s, whole.mean_client_s, server_s)


def run_open(
    generator: LoadGenerator,
    rate_per_s: float,
    arrivals: Arrivals,
    time_s: float,
    seed: int,
) -> OpenLevel:
    """Send at a rate for `time_s`, whatever the server does.

    Requests that were never answered are marked, and count with the time they had waited. Raises
    ServingError for an answer that is wrong or an error.
    """
    window = generator.open(rate_per_s, arrivals, time_s, seed)
    _check(window.wrong, window.errors, f"at {rate_per_s:.0f} infer/s")
    return OpenLevel(
        rate_per_s=rate_per_s,
        arrivals=arrivals,
        throughput_per_s=window.throughput_per_s,
        latency=latency_of(window.latencies_s),
        latency_from_send=latency_of(window.latencies_from_send_s),
        requests=window.requests,
        duration_s=window.duration_s,
        client_share=window.client_share,
        marks=_open_marks(window),
    )


def _open_marks(window: OpenWindow) -> tuple[str, ...]:
    found = []
    if window.unanswered:
        found.append(f"{window.unanswered} of {window.requests} requests were never answered")
    if window.held:
        found.append(f"requests waited for one of {MOST_CONNECTIONS} connections")
    if window.client_share > RULES.most_client_share:
        found.append(_client_bound(window.client_share))
    return tuple(found)
