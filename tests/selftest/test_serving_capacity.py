"""The search for a capacity, on servers whose capacity is known and probes that stall."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from enginegate.config.serving import Arrivals, Slo
from enginegate.serving.load.capacity import SearchRules, find_capacity
from enginegate.serving.records import Latency, OpenLevel, SearchEnd

SLO = Slo("p99", 0.02)


def server_of(capacity, noise=0.0, client=1e9, seed=0):
    """p99 grows as it does before a queue, is beyond all limits above the capacity."""
    rng = np.random.default_rng(seed)

    def probe(rate):
        p99_s = 0.02 * (capacity / 2) / max(capacity - rate, 1e-9) * np.exp(noise * rng.normal())
        latency = Latency(p99_s / 4, p99_s / 4, p99_s / 2, p99_s / 2, p99_s, 2 * p99_s)
        marks = (
            ("client-bound: a client process was busy 95% of the time",) if rate > client else ()
        )
        return OpenLevel(rate, Arrivals.POISSON, rate, latency, latency, 100, 1.0, marks=marks)

    return probe  # holds p99 <= 20 ms up to half the capacity


@pytest.mark.parametrize("start", [1, 90, 5000])
def test_capacity_is_found_from_anywhere(start):
    found = find_capacity(server_of(200), SLO, start)
    assert found.end is SearchEnd.FOUND
    assert found.high_per_s is not None
    assert found.low_per_s <= 100 < found.high_per_s
    assert found.high_per_s <= 1.05 * found.low_per_s


def test_capacity_near_the_truth_with_noise():
    found = [find_capacity(server_of(200, 0.1, seed=s), SLO, 40).low_per_s for s in range(40)]
    assert np.median(found) == pytest.approx(100, rel=0.05)
    assert np.std(found) < 8


def test_noise_near_the_limit_is_probed_again():
    probes = find_capacity(server_of(200, 0.1), SLO, 40).probes
    rates = [level.rate_per_s for level in probes]
    assert max(map(rates.count, rates)) in (2, 3)
    assert rates.count(rates[0]) == 1  # far from the limit


def stalled_at(place, probe, p99_s=0.3):
    """The probe, with a stall in the level of that place."""
    seen = itertools.count()

    def stalling(rate):
        level = probe(rate)
        latency = replace(level.latency, p99_s=p99_s) if next(seen) == place else level.latency
        return replace(level, latency=latency)

    return stalling


@pytest.mark.parametrize("start", [1, 40, 5000])
def test_one_stall_in_any_probe_changes_nothing(start):
    clean = find_capacity(server_of(200), SLO, start)
    for place in range(len(clean.probes)):
        found = find_capacity(stalled_at(place, server_of(200)), SLO, start)
        assert (found.end, found.low_per_s) == (clean.end, clean.low_per_s), place
        assert found.high_per_s == clean.high_per_s, place


def test_one_lucky_probe_near_the_limit_changes_nothing():
    """It holds by chance, a little below the limit, at a rate that does not."""
    lucky = stalled_at(0, server_of(200), p99_s=0.95 * SLO.limit_s)
    found = find_capacity(lucky, SLO, 110)
    assert [level.rate_per_s for level in found.probes[:3]] == [110, 110, 110]
    assert found.high_per_s is not None
    assert found.low_per_s <= 100 < found.high_per_s <= 110


@pytest.mark.parametrize(
    ("rate", "most"),
    [(40, 1), (99, 2), (110, 2), (5000, 2)],
    ids=["clearly holds", "nearly fails", "nearly holds", "clearly fails"],
)
def test_two_equal_votes_decide_and_a_clear_one_that_holds(rate, most):
    probes = find_capacity(server_of(200), SLO, rate).probes
    assert [level.rate_per_s for level in probes].count(rate) == most


def test_capacity_that_never_holds():
    found = find_capacity(server_of(1e-3), SLO, 50)
    assert found.end is SearchEnd.NEVER
    assert found.low_per_s == 0
    assert found.high_per_s == SearchRules().least_per_s


def test_capacity_beyond_the_client():
    found = find_capacity(server_of(1e6, client=1000), SLO, 50)
    assert found.end is SearchEnd.CLIENT
    assert found.high_per_s is None
    assert 900 < found.low_per_s <= 1000


def test_capacity_beyond_the_highest_rate():
    found = find_capacity(server_of(1e6), SLO, 50, SearchRules(most_per_s=3000))
    assert found.end is SearchEnd.HIGHEST
    assert (found.low_per_s, found.high_per_s) == (3000, None)
