"""Intervals on distributions with known answers, and the verdicts drawn from them."""

import numpy as np
import pytest

from enginegate.stats import Change, change_between, log_ratio, quantile
from enginegate.verdict import Verdict, describe, judge_change


def replicates(rng, count, *, slowdown=1.0, instance=0.02, noise=0.03):
    """Synthetic timings: each replicate has its own bias, shared by all of its rounds."""
    made = []
    for _ in range(count):
        bias = np.exp(rng.normal(scale=instance))
        reference = np.exp(rng.normal(scale=noise, size=20))
        candidate = slowdown * bias * np.exp(rng.normal(scale=noise, size=20))
        made.append((candidate.tolist(), reference.tolist()))
    return made


def test_log_ratio_is_the_median_of_paired_ratios():
    assert log_ratio(([2.0, 2.0, 9.0], [1.0, 1.0, 1.0])) == pytest.approx(np.log(2))


def test_quantile_interpolates():
    assert quantile([1.0, 2.0, 3.0], 0.25) == 1.5


def test_interval_covers_the_true_change_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        change = change_between(replicates(rng, 4, slowdown=1.1), replicates(rng, 4))
        assert change
        hits += change.low <= 1.1 <= change.high
    assert 930 <= hits <= 985  # 95 % of 1000, four standard deviations around it


def test_unchanged_code_is_hardly_ever_called_regressed():
    rng = np.random.default_rng(1)
    alarms = sum(
        judge_change(change_between(replicates(rng, 4), replicates(rng, 4)), 0.05).verdict
        is Verdict.REGRESSED
        for _ in range(1000)
    )
    assert alarms <= 10


def test_twenty_per_cent_slower_is_found():
    rng = np.random.default_rng(2)
    found = sum(
        judge_change(
            change_between(replicates(rng, 4, slowdown=1.2), replicates(rng, 4)), 0.05
        ).verdict
        is Verdict.REGRESSED
        for _ in range(200)
    )
    assert found >= 180


def test_rounds_of_one_instance_add_no_certainty():
    """More rounds in the same two replicates must not narrow the interval as new replicates do."""
    rng = np.random.default_rng(3)
    few = change_between(replicates(rng, 2, noise=1e-6), replicates(rng, 2, noise=1e-6))
    many = change_between(replicates(rng, 8, noise=1e-6), replicates(rng, 8, noise=1e-6))
    assert few
    assert many
    assert few.high - few.low > 2 * (many.high - many.low)


def test_one_replicate_tells_nothing():
    rng = np.random.default_rng(4)
    assert change_between(replicates(rng, 1), replicates(rng, 4)) is None
    assert judge_change(None, 0.05).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (Change(1.20, 1.10, 1.30), Verdict.REGRESSED),
        (Change(1.06, 1.01, 1.11), Verdict.UNDECIDED),
        (Change(1.00, 0.97, 1.03), Verdict.PASS),
        (Change(0.97, 0.90, 1.04), Verdict.PASS),
        (Change(0.80, 0.75, 0.85), Verdict.IMPROVED),
    ],
)
def test_only_a_whole_interval_beyond_the_limit_decides(change, verdict):
    assert judge_change(change, 0.05).verdict is verdict


def test_a_change_in_words():
    assert describe(Change(1.123, 1.098, 1.149)) == "12.3 % slower (+9.8 … +14.9 %)"
    assert describe(Change(0.9, 0.8, 0.95)) == "10.0 % faster (-20.0 … -5.0 %)"
