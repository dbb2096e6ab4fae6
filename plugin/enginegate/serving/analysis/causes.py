"""Why a range of levels is slow, by the evidence there is, and what to change.

What is relied on of Triton's dynamic batcher (`GetDynamicBatch` in its dynamic_batch_scheduler.cc):
a preferred size that the queue reaches is sent at once; else the batch waits, idle instance or not,
until its oldest request is as old as the delay, and then all of it is sent; without a delay,
whatever waits is sent when an instance can take it. So up to the smallest preferred size, and only
there, a closed loop waits for the delay.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from enginegate.config import Deployment
from enginegate.serving.analysis.queue_model import mean_batch, model_of, request_batch, utilisation
from enginegate.serving.records import Cause, Level

CLIENT_BUSY = 0.9  # of a processor: a client process above it may be the bottleneck
_WAITED = 0.5  # of the delay: later requests of a batch wait less than its oldest
_MATERIAL_WAIT = 0.2  # of the latency
_IDLE = 0.8  # of their time at most: then the instances could have run what waited
_BUSY = 0.9
_PLATEAU = 1.25  # largest / smallest latency of levels that wait for the same delay
_PROPORTIONAL = 0.8  # exponent of throughput over concurrency
_NOISE_WORDS = ("nois", "throttl", "disturb")
_UNSTABLE = "unstable"
_EXPLAINED = 1.25  # a level so near to what was reached in its best window may be noise

_NO_DELAY = (
    "set max_queue_delay_microseconds to 0 and leave preferred_batch_size out: whatever waits "
    "is then sent as soon as an instance is free"
)


@dataclass(frozen=True)
class Finding:
    """A cause; the fields are those of `Cliff`."""

    cause: Cause
    proven: bool
    evidence: str
    advice: str


_UNKNOWN = Finding(
    Cause.UNKNOWN,
    proven=False,
    evidence="neither the server's nor the client's figures show why",
    advice="measure again with the server's statistics and levels close to each other",
)


@dataclass(frozen=True)
class Neighbourhood:
    """A slow range and the levels beside it.

    Attributes:
        inside: its levels, ascending.
        before: the level below it, None if there is none.
        after: the level above it, None if there is none.
    """

    inside: tuple[Level, ...]
    before: Level | None
    after: Level | None


def find_cause(place: Neighbourhood, deployment: Deployment | None) -> Finding:
    """The first cause that the evidence speaks for; `unknown` if none."""
    return (
        _client(place)
        or _proven_delay(place, deployment)
        or _noise(place)
        or _saturated(place, deployment)
        or _suspected_delay(place, deployment)
        or _isolated(place)
        or _UNKNOWN
    )


def waits(level: Level, deployment: Deployment | None) -> bool:
    """Tell if the server's figures show that requests waited for the delay beside idle instances.

    Mean queue time at least half of the delay and a fifth of the latency, batches below the
    smallest preferred size, and instances that execute less than 0.8 of their time.
    """
    if not (deployment and deployment.max_queue_delay_us and level.breakdown and level.batches):
        return False
    queue_s, delay_s = level.breakdown.queue_s, deployment.max_queue_delay_us * 1e-6
    return (
        queue_s >= max(_WAITED * delay_s, _MATERIAL_WAIT * level.latency.mean_s)
        and request_batch(level) < _smallest_preferred(deployment)
        and utilisation(level, deployment.instances) < _IDLE
    )


def promise(
    levels: Sequence[Level], slow: Sequence[Level], deployment: Deployment
) -> dict[int, float]:
    """Texts a second without delay, at each slow level whose figures tell; one instance only."""
    if deployment.instances > 1:
        return {}
    try:
        model = model_of(levels, slow, deployment.max_batch_size)
    except ValueError:
        return {}
    return {
        level.concurrency: model.throughput_per_s(level.concurrency, level.breakdown.turnaround_s)
        for level in slow
        if level.breakdown
    }


def _smallest_preferred(deployment: Deployment) -> int:
    return min(deployment.preferred_batch_sizes, default=deployment.max_batch_size)


def _client(place: Neighbourhood) -> Finding | None:
    bound = [level for level in place.inside if _client_bound(level)]
    if 2 * len(bound) <= len(place.inside):
        return None
    shares = [level.client_share for level in bound if level.client_share is not None]
    used = f", which used up to {max(shares):.0%} of a processor" if shares else ""
    return Finding(
        Cause.CLIENT,
        proven=False,
        evidence=f"{_of(bound, place)} marked as bound by the client{used}",
        advice="give the clients more processes, or processors of their own, and measure again",
    )


def _client_bound(level: Level) -> bool:
    busy = level.client_share is not None and level.client_share >= CLIENT_BUSY
    return busy or any("client" in mark.lower() for mark in level.marks)


def _proven_delay(place: Neighbourhood, deployment: Deployment | None) -> Finding | None:
    waiting = [level for level in place.inside if waits(level, deployment)]
    if deployment is None or 2 * len(waiting) <= len(place.inside):
        return None
    queue_ms = [1e3 * level.breakdown.queue_s for level in waiting if level.breakdown]
    batches = [mean_batch(level) for level in waiting]
    evidence = (
        f"requests waited {_span(queue_ms, '.1f')} ms in the queue, the configured delay is "
        f"{deployment.max_queue_delay_us / 1e3:g} ms; batches of {_span(batches, '.1f')} ran, "
        f"below the preferred {_smallest_preferred(deployment)}, beside idle instances"
    )
    return Finding(Cause.QUEUE_DELAY, proven=True, evidence=evidence, advice=_NO_DELAY)


def _saturated(place: Neighbourhood, deployment: Deployment | None) -> Finding | None:
    if not deployment or not all(level.breakdown and level.batches for level in place.inside):
        return None
    used = [utilisation(level, deployment.instances) for level in place.inside]
    if min(used) < _BUSY:
        return None
    return Finding(
        Cause.SATURATED,
        proven=True,
        evidence=f"instances execute {_span(used, '.0%')} of their time and still do less",
        advice="look for batch sizes or threads that run slower than at the levels beside",
    )


def _noise(place: Neighbourhood) -> Finding | None:
    noisy = [level for level in place.inside if _is_noisy(level, place.before or place.after)]
    if 2 * len(noisy) <= len(place.inside):
        return None
    words = "; ".join(sorted({mark for level in noisy for mark in level.marks}))
    evidence = f"{_of(noisy, place)} marked: {words}"
    return Finding(Cause.NOISE, proven=False, evidence=evidence, advice="measure again when quiet")


def _is_noisy(level: Level, sound: Level | None) -> bool:
    """Tell if its marks explain it: the machine's, or windows as good as the level beside."""
    marks = " ".join(level.marks).lower()
    if any(word in marks for word in _NOISE_WORDS):
        return True
    reached_per_s = sound.throughput_per_s if sound else 0.0
    return (
        _UNSTABLE in marks and level.throughput_per_s * level.spread >= reached_per_s / _EXPLAINED
    )


def _suspected_delay(place: Neighbourhood, deployment: Deployment | None) -> Finding | None:
    """Latency flat and throughput in proportion, until as many wait as a batch prefers."""
    if (deployment and not deployment.max_queue_delay_us) or not is_plateau(place.inside):
        return None
    means_ms = [1e3 * level.latency.mean_s for level in place.inside]
    evidence = (
        f"latency stays at {_span(means_ms, '.1f')} ms while throughput grows in proportion to "
        f"concurrency{_end_of_plateau(place)}, as with a queue delay of about "
        f"{np.median(means_ms):.0f} ms (one execution included) and a preferred batch of "
        f"{_first_size(place)}"
    )
    advice = f"if a queue delay is configured, {_NO_DELAY}; {_between(place)}"
    return Finding(Cause.QUEUE_DELAY, proven=False, evidence=evidence, advice=advice)


def is_plateau(levels: Sequence[Level]) -> bool:
    """Tell if latency is the same and throughput in proportion to concurrency; two at least."""
    if len(levels) == 1:
        return False
    means_s = [level.latency.mean_s for level in levels]
    first, last = levels[0], levels[-1]
    growth = np.log(last.throughput_per_s / first.throughput_per_s)
    exponent = growth / np.log(last.concurrency / first.concurrency)
    return bool(max(means_s) < _PLATEAU * min(means_s) and exponent > _PROPORTIONAL)


def _end_of_plateau(place: Neighbourhood) -> str:
    if place.after is None:
        return ""
    after_ms = 1e3 * place.after.latency.mean_s
    return f", and is {after_ms:.1f} ms at {place.after.concurrency}"


def _first_size(place: Neighbourhood) -> str:
    """The size that fills a batch: above the last slow level's concurrency, up to the next one."""
    low = place.inside[-1].concurrency + 1
    if place.after is None:
        return f"{low} or more"
    high = place.after.concurrency
    return f"{low}" if low == high else f"{low} to {high}"


def _between(place: Neighbourhood) -> str:
    """A range in words, for want of the server's figures."""
    ends = [level for level in (place.before, place.after) if level]
    words = " and ".join(f"{end.throughput_per_s:.0f} (at {end.concurrency})" for end in ends)
    bound = "between" if len(ends) > 1 else ("at least at" if place.before else "at most at")
    return f"throughput should then lie {bound} {words} infer/sec; the server's figures would tell"


def _isolated(place: Neighbourhood) -> Finding | None:
    """One level whose next neighbours on both sides are as they should be."""
    only = place.inside[0]
    if len(place.inside) > 1 or not place.before or not place.after:
        return None
    if (
        place.before.concurrency < only.concurrency - 1
        or place.after.concurrency > only.concurrency + 1
    ):
        return None
    evidence = f"level {only.concurrency} is alone: its neighbours on both sides are not slow"
    return Finding(Cause.NOISE, proven=False, evidence=evidence, advice="measure this level again")


def _of(some: Sequence[Level], place: Neighbourhood) -> str:
    return f"{len(some)} of {len(place.inside)} levels are"


def _span(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
