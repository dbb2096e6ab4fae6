"""What early looks and giving up cost and save: the same played runs with and without.

    python benchmarks/looks.py [--runs 300] > results/looks.txt

One batch size beside the baseline's engine, normal replicates of the given spread, one second each.
A row: the share of each verdict, and the mean number of replicates, when every screening is
measured whole and when it ends where it is clear.
"""

import argparse
import collections
import math

import numpy as np
from user_project import heading

from enginegate.baselines.calibration import Drawn
from enginegate.speed.rules import P50, Question, Rules
from enginegate.speed.sequential import SequentialTest
from enginegate.speed.stats import Anchor

LIMIT, PLANNED = 0.05, 12
CASES = (  # slowdown, spread, seconds
    (0.0, 0.007, 60), (0.0, 0.02, 60), (0.0, 0.04, 60), (0.0, 0.10, 60), (0.05, 0.02, 60),
    (0.06, 0.01, 60), (0.08, 0.02, 60), (0.10, 0.01, 30), (0.10, 0.02, 30), (0.10, 0.04, 60),
    (0.20, 0.02, 30),
)  # fmt: skip


def play(rng, slowdown: float, spread: float, time_s: float, *, early: bool) -> tuple[str, int]:
    """The verdict of one run and the replicates that it took."""
    taken = 0

    def measure(batches):
        nonlocal taken
        taken += 1
        return {batch: Drawn(math.log1p(slowdown) + spread * rng.normal()) for batch in batches}

    trial = SequentialTest(Rules(PLANNED, time_s, 0.01, 0.05, early), lambda: float(taken))
    question = Question(Anchor(), LIMIT, scale_s=1.0)
    finding = trial.run(measure, [1], {(1, P50): question}).findings[1, P50]
    return str(finding.judgement.verdict), taken


def row(slowdown: float, spread: float, time_s: float, runs: int, *, early: bool) -> str:
    """The verdicts of so many runs, and what they took."""
    rng = np.random.default_rng(0)
    found = [play(rng, slowdown, spread, time_s, early=early) for _ in range(runs)]
    counted = collections.Counter(verdict for verdict, _ in found)
    said = ", ".join(f"{n / runs:.1%} {verdict}" for verdict, n in sorted(counted.items()))
    mean = np.mean([taken for _, taken in found])
    looks = "early" if early else "whole"
    return f"{slowdown:+8.1%}  {spread:6.1%}  {time_s:3} s  {looks}  {mean:5.1f}  {said}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=300)
    runs = parser.parse_args().runs
    print(heading(f"limit {LIMIT:.0%}, {runs} played runs a row"))
    print("slowdown  spread  time  looks  taken  verdicts")
    for case in CASES:
        for early in (False, True):
            print(row(*case, runs, early=early), flush=True)


if __name__ == "__main__":
    main()
