"""The gate under simulation: false alarms, coverage, and predicted against achieved power.

    python benchmarks/level.py [runs]

Synthetic replicates with a spread of 2 %, of five kinds. `alarms` is the share of runs called
regressed whose true slowdown is exactly the limit, the worst unchanged case, and `looks` how often
they looked on average; `passes` the share that pass although they are 1.5 points over it.
`covers` is the share of intervals, at the end of the sequential looks, that hold the truth.
`predicted` is the smallest visible slowdown that a run of twelve replicates states (median),
`achieved` the one that four of five such runs find.
"""

import math
import sys
import time

import numpy as np

from enginegate.baselines.calibration import Drawn
from enginegate.speed.rules import P50, Question, Rules
from enginegate.speed.sequential import SequentialTest
from enginegate.speed.stats import Anchor, Errors, change_of
from enginegate.verdicts import Verdict

LIMIT, SPREAD, EACH_S, MAX_TIME_S = 0.05, 0.02, 1.0, 48.0
ALARM, MISS = 0.01, 0.05


def normal(rng, n):
    return rng.normal(size=n)


def drift(rng, n):
    """A slow trend of one standard deviation over sixty replicates, up or down."""
    return rng.normal(size=n) + rng.choice([-1, 1]) * np.linspace(-0.5, 0.5, 60)[:n]


def bursts(rng, n):
    """One replicate in ten is disturbed, four times as restless."""
    return rng.normal(size=n) * np.where(rng.random(n) < 0.1, 4, 1)


def heavy(rng, n):
    """Student's t with 3 degrees of freedom."""
    return rng.standard_t(3, size=n)


def skewed(rng, n):
    """Disturbances that only slow down: exponential, centred."""
    return rng.exponential(size=n) - 1


KINDS = {"normal": normal, "drift": drift, "bursts": bursts, "heavy tails": heavy, "skewed": skewed}


def run(kind, true: float, rng):
    """Verdict, last interval and number of looks of one run."""
    values = iter(math.log1p(true) + SPREAD * KINDS[kind](rng, 60))
    taken = 0

    def measure(batches):
        nonlocal taken
        taken += 1
        return {batch: Drawn(float(next(values))) for batch in batches}

    trial = SequentialTest(Rules(8, MAX_TIME_S, ALARM, MISS), lambda: taken * EACH_S)
    question = Question(Anchor(), LIMIT, scale_s=1.0)
    finding = trial.run(measure, [1], {(1, P50): question}).findings[1, P50]
    return finding.judgement.verdict, finding.change, taken


def main(runs: int) -> None:
    print(f"{time.strftime('%Y-%m-%d')}, {runs} runs of each kind, limit {LIMIT:.0%}")
    print("kind         alarms  looks  passes  covers  predicted  achieved")
    for kind in KINDS:
        rng = np.random.default_rng(0)
        at_limit = [run(kind, LIMIT, rng) for _ in range(runs)]
        over = [run(kind, LIMIT + 0.015, rng) for _ in range(runs)]
        alarms = share(verdict is Verdict.REGRESSED for verdict, _, _ in at_limit)
        looks = np.mean([taken for _, _, taken in at_limit])
        passes = share(verdict in (Verdict.PASS, Verdict.IMPROVED) for verdict, _, _ in over)
        covers = share(change.low <= 1 + LIMIT <= change.high for _, change, _ in at_limit)
        predicted, achieved = visible(kind, runs)
        print(
            f"{kind:12} {alarms:6.2%}  {looks:5.1f}  {passes:6.2%}  {covers:6.1%}  "
            f"{predicted:9.2%}  {achieved:8.2%}"
        )


def visible(kind: str, runs: int) -> tuple[float, float]:
    """Smallest visible slowdown of twelve replicates, as stated and as found."""
    rng = np.random.default_rng(1)
    samples = SPREAD * np.array([KINDS[kind](rng, 12) for _ in range(runs)])
    errors = Errors(ALARM / 2, MISS / 2)
    stated = [change_of(s.tolist(), Anchor(), LIMIT, errors).visible for s in samples]
    lows = [change_of(s.tolist(), Anchor(), LIMIT, errors).low for s in samples]
    # a slowdown moves every lower bound alike: found is what lies over the limit then
    achieved = (1 + LIMIT) / np.quantile(lows, 0.2) - 1
    return float(np.median(stated)), float(achieved)


def share(found) -> float:
    return float(np.mean(list(found)))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
