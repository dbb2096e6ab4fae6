"""Intervals and e-values on distributions with known answers, and the verdicts drawn from them."""

import math

import numpy as np
import pytest

from enginegate.speed.change import TOO_NOISY, describe, judge_change
from enginegate.speed.stats import (
    FEWEST_FOR_P99,
    Anchor,
    Change,
    Errors,
    alarm_share,
    anchor_of,
    bounds,
    change_of,
    critical_t,
    e_value,
    quantile,
    quantile_interval,
    replicates_to_decide,
)
from enginegate.verdicts import Verdict

ERRORS = Errors(alarm=0.05, miss=0.05)


def looks(rng, mean, most, draw=None):
    """Growing lists of replicates with a standard deviation of 2 %."""
    values = mean + 0.02 * (draw or rng.normal)(size=most)
    return (values[:n].tolist() for n in range(3, most + 1))


def test_quantile_interpolates():
    assert quantile([1.0, 2.0, 3.0], 0.25) == 1.5


@pytest.mark.parametrize("mean", [0.0, -0.01])
def test_looking_after_every_replicate_does_not_inflate_the_alarms(mean):
    rng = np.random.default_rng(1)
    alarms = sum(
        any(e_value(values, 0.0) >= 20 for values in looks(rng, mean, 40)) for _ in range(1000)
    )
    assert alarms <= 72  # 5 % of 1000 and three standard deviations


def test_the_usual_t_test_would_be_inflated_by_the_same_looks():
    rng = np.random.default_rng(1)
    alarms = sum(
        any(bounds(values, ERRORS, once=True)[0] > 0 for values in looks(rng, 0.0, 40))
        for _ in range(1000)
    )
    assert alarms > 120


def test_heavy_tails_do_not_inflate_the_alarms():
    rng = np.random.default_rng(2)

    def student(size):
        return rng.standard_t(2.5, size=size)

    alarms = sum(
        any(e_value(values, 0.0) >= 20 for values in looks(rng, 0.0, 40, student))
        for _ in range(1000)
    )
    assert alarms <= 72


def test_the_mean_of_an_e_value_is_at_most_one():
    rng = np.random.default_rng(3)
    found = [e_value(rng.normal(size=4).tolist(), 0.0) for _ in range(20000)]
    assert np.mean(found) == pytest.approx(1.0, abs=0.1)


def test_e_values_and_bounds_say_the_same():
    values = np.random.default_rng(4).normal(0.03, 0.02, size=9).tolist()
    low, _ = bounds(values, ERRORS, once=False)
    assert e_value(values, low - 1e-6) > 20 > e_value(values, low + 1e-6)


def test_a_clear_slowdown_is_found_with_few_replicates():
    rng = np.random.default_rng(5)
    needed = [
        next(len(v) for v in looks(rng, 0.15, 60) if bounds(v, ERRORS, once=False)[0] > 0.05)
        for _ in range(200)
    ]
    assert np.median(needed) <= 6


def test_interval_covers_the_true_change_as_often_as_it_says():
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(2000):
        change = change_of(
            (0.1 + 0.02 * rng.normal(size=8)).tolist(), Anchor(), 0.05, ERRORS, once=True
        )
        hits += change.low <= math.exp(0.1) <= change.high
    assert 1760 <= hits <= 1840  # 90 % of 2000, three standard deviations around it


@pytest.mark.parametrize("stored", [1, 3])
def test_the_spread_between_sessions_is_in_the_interval(stored):
    rng = np.random.default_rng(7)

    def session():
        return (rng.normal(scale=0.02) + rng.normal(scale=0.02, size=8)).tolist()

    hits = 0
    for _ in range(1000):
        anchor = anchor_of([session() for _ in range(stored)])
        change = change_of(session(), anchor, 0.05, ERRORS, once=True)
        hits += change.low <= 1 <= change.high
    assert hits >= 880


def test_more_sessions_make_the_anchor_surer():
    rng = np.random.default_rng(8)
    sessions = [(0.001 * rng.normal(size=8)).tolist() for _ in range(6)]
    assert anchor_of(sessions).error < anchor_of(sessions[:1]).error


def sessions_of(rng, ratio, within=0.02, count=3):
    """Sessions that scatter `ratio` times as much as the replicates in them."""
    means = ratio * within * rng.normal(size=count)
    return [(mean + within * rng.normal(size=8)).tolist() for mean in means]


def test_steady_sessions_of_the_other_cells_make_the_anchor_surer_and_restless_ones_do_not():
    rng = np.random.default_rng(12)
    own = sessions_of(rng, 1.0)
    alone = anchor_of(own)
    steady = anchor_of(own, [sessions_of(rng, 0.0) for _ in range(8)])
    restless = anchor_of(own, [sessions_of(rng, 3.0) for _ in range(8)])
    assert steady.error < alone.error < restless.error
    assert steady.freedom > alone.freedom
    assert anchor_of(own, [own[:1]]) == alone  # one session tells of no spread between them


@pytest.mark.parametrize("cells", [(0.3, 0.3, 0.3, 0.3), (0.2, 0.3, 0.6, 1.2)])
def test_pooled_sessions_raise_no_more_alarms(cells):
    rng = np.random.default_rng(13)
    alarms = 0
    for _ in range(400):
        stored = [sessions_of(rng, ratio) for ratio in cells]
        for ratio, own in zip(cells, stored, strict=True):
            anchor = anchor_of(own, [cell for cell in stored if cell is not own])
            (now,) = sessions_of(rng, ratio, count=1)
            alarms += change_of(now, anchor, 0.0, Errors(0.005, 0.025)).low > 1
    assert alarms <= 16  # of 1600: 1 %, twice what is spent on each


def test_rounds_of_one_instance_would_add_no_certainty_but_replicates_do():
    rng = np.random.default_rng(9)
    values = (0.02 * rng.normal(size=32)).tolist()
    few, many = (change_of(values[:n], Anchor(), 0.05, ERRORS) for n in (6, 32))
    assert few.high - few.low > 2 * (many.high - many.low)


def test_two_replicates_tell_nothing():
    change = change_of([0.5, 0.5], Anchor(), 0.05, ERRORS)
    assert (change.low, change.high, change.evidence) == (0.0, math.inf, 1.0)
    assert judge_change(change, 0.05).verdict is Verdict.UNDECIDED


def test_the_slowdown_that_it_says_it_sees_is_found_in_four_of_five():
    rng = np.random.default_rng(10)
    said = np.median(
        [
            change_of((0.02 * rng.normal(size=12)).tolist(), Anchor(), 0.05, ERRORS).visible
            for _ in range(200)
        ]
    )
    found = sum(
        change_of(
            (math.log1p(said) + 0.02 * rng.normal(size=12)).tolist(), Anchor(), 0.05, ERRORS
        ).low
        > 1.05
        for _ in range(1000)
    )
    assert 700 <= found <= 900


def test_the_replicates_that_it_asks_for_decide():
    rng = np.random.default_rng(11)
    values = (0.12 + 0.02 * rng.normal(size=4)).tolist()
    needed = replicates_to_decide(values, Anchor(), 0.05, ERRORS)
    assert needed
    spread = float(np.std(values, ddof=1))
    margin = float(np.mean(values)) - math.log(1.05)
    assert critical_t(needed, 0.05) * spread / math.sqrt(needed) < margin


def test_nothing_decides_what_lies_on_the_limit():
    values = (math.log(1.05) + np.array([-0.01, 0, 0.01])).tolist()
    assert replicates_to_decide(values, Anchor(), 0.05, ERRORS) is None


def test_the_alarm_error_of_a_run_is_shared_among_any_number_of_suspects():
    assert sum(alarm_share(0.01, k) for k in range(1, 10000)) <= 0.01


def test_a_p99_needs_459_samples_and_its_interval_covers():
    rng = np.random.default_rng(12)
    assert quantile_interval(rng.normal(size=FEWEST_FOR_P99 - 1).tolist(), 0.99) is None
    truth, hits = 2.3263, 0
    for _ in range(1000):
        interval = quantile_interval(rng.normal(size=800).tolist(), 0.99)
        assert interval
        hits += interval[0] <= truth <= interval[2]
    assert hits >= 970


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.10, 1.30, Verdict.REGRESSED),
        (1.01, 1.11, Verdict.UNDECIDED),
        (0.97, 1.03, Verdict.PASS),
        (0.90, 1.04, Verdict.PASS),
        (0.75, 0.85, Verdict.IMPROVED),
    ],
)
def test_only_a_whole_interval_beyond_the_limit_decides(low, high, verdict):
    assert judge_change(Change((low + high) / 2, low, high, 1.0, 0.1), 0.05).verdict is verdict


def test_a_rerun_multiplies_the_evidence():
    undecided = Change(1.08, 1.04, 1.13, evidence=30.0, visible=0.1)
    alone = judge_change(undecided, 0.05, alarm=0.005)
    again = judge_change(undecided, 0.05, alarm=0.005, earlier=10.0)
    assert (alone.verdict, again.verdict) == (Verdict.UNDECIDED, Verdict.REGRESSED)
    assert "e-values 30 now, 10 before" in again.reasons[0]


def test_a_change_in_words():
    assert describe(Change(1.123, 1.098, 1.149, 9, 0.1)) == "12.3 % slower (+9.8 … +14.9 %)"
    assert describe(Change(0.9, 0.8, 0.95, 0, 0.1)) == "10.0 % faster (-20.0 … -5.0 %)"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (Change(1.1, 1.05, 1.2, 1.0, 0.07), "10.0 % slower (+5.0 … +20.0 %)"),
        (Change(3.0, 2.5, 3.5, 1.0, 1.5), "200.0 % slower (+150.0 … +250.0 %)"),
        (Change(1.1, 0.6, 12.5, 1.0, 1.5), TOO_NOISY),
        (Change(1.1, 0.95, math.inf, 1.0, 0.07), TOO_NOISY),
        (Change(1.1, 0.0, 1.2, 1.0, 0.07), TOO_NOISY),
        (Change(1.5, 1.2, math.inf, 99.0, 9.0), "50.0 % slower (at least +20.0 %)"),
        (Change(1.5, 1.2, math.nan, 99.0, 9.0), "50.0 % slower (at least +20.0 %)"),  # a saved one
        (Change(0.5, 0.0, 0.8, 0.0, 9.0), "50.0 % faster (at most -20.0 %)"),
        (Change(4.0, 0.0, math.inf, 25.9, 9.0), "300.0 % slower (no interval)"),
        (Change(1.1, 0.9, 1.2, 1.0, math.nan), TOO_NOISY),
    ],
)
def test_noise_is_said_as_noise(changed, words):
    assert describe(changed) == words


def test_noise_contains_no_limit_and_other_intervals_do():
    noise = judge_change(Change(1.1, 0.6, 12.5, 1.0, 1.5), 0.05)
    assert (noise.verdict, noise.reasons) == (Verdict.UNDECIDED, (TOO_NOISY,))
    unsure = judge_change(Change(1.1, 0.9, 1.2, 1.0, 0.2), 0.05)
    assert unsure.reasons == ("10.0 % slower (-10.0 … +20.0 %) contains the limit of 5.0%",)
