"""Advice against a queue delay that was tried: what it gave, and what it should give elsewhere.

The model of `closed_loop` takes its times from levels that waited for the delay. Everything wakes
slowly after that, and clients share processors with the server, so the model is off by a factor
that changes slowly with concurrency. Some levels tried without the delay tell that factor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from enginegate.config import Deployment
from enginegate.serving.records import Cause, Cliff, Level

ADVISED = "advised"  # the model's name on the server
_TRIED = 8  # levels of a cliff at most


def is_curable(cliff: Cliff) -> bool:
    """Tell if there is advice to try: the queue delay is proven to be the cause."""
    return cliff.proven and cliff.cause is Cause.QUEUE_DELAY


def without_delay(deployment: Deployment) -> Deployment:
    """The deployment as `causes` advises it: whatever waits is sent when an instance is free."""
    return replace(deployment, preferred_batch_sizes=(), max_queue_delay_us=0)


def tried(cliff: Cliff, swept: Sequence[int], run: Callable[[int], Level]) -> Cliff:
    """The cliff with what `run` gave at some of its levels, and the promise corrected by it.

    `swept` are all concurrencies of the sweep; `run` loads the engine as advised.
    """
    if not is_curable(cliff):
        return cliff
    inside = [n for n in sorted(swept) if cliff.first <= n <= cliff.last]
    found = {n: run(n).throughput_per_s for n in _spread(inside)}
    return replace(cliff, tried_per_s=found, promised_per_s=corrected(cliff.promised_per_s, found))


def _spread(levels: Sequence[int]) -> list[int]:
    """The first, the last, and some between, evenly in logarithms."""
    wanted = np.geomspace(levels[0], levels[-1], min(len(levels), _TRIED))
    nearest = (min(levels, key=lambda n: abs(np.log(n / goal))) for goal in wanted)
    return sorted(set(nearest))


def corrected(
    promised_per_s: Mapping[int, float], tried_per_s: Mapping[int, float]
) -> dict[int, float]:
    """The promise times tried / promised, on lines between the tried levels, in logarithms."""
    known = sorted(set(promised_per_s) & set(tried_per_s))
    if not known:
        return dict(tried_per_s)
    factors = np.log([tried_per_s[n] / promised_per_s[n] for n in known])
    return {
        n: float(per_s * np.exp(np.interp(np.log(n), np.log(known), factors)))
        for n, per_s in promised_per_s.items()
    }
