"""Advice that is tried: where, and what it does to the promise."""

from dataclasses import replace

import pytest

from enginegate.config.serving import Deployment
from enginegate.report.wording.sweeps import cliff_lines
from enginegate.serving.analysis.advice import corrected, tried, without_delay
from enginegate.serving.records import Cause, Cliff, Latency, Level

PROMISED = {n: 1000.0 * n for n in range(1, 16)}
CLIFF = Cliff(1, 15, 90.0, 900.0, Cause.QUEUE_DELAY, True, "waits", "no delay", PROMISED)


def level(concurrency, per_s):
    mean_s = concurrency / per_s
    return Level(concurrency, per_s, Latency(*[mean_s] * 6))


def run(concurrency):
    """A server that gives a fifth more than was promised at 1, and a fifth less at 15."""
    return level(concurrency, 1000.0 * concurrency * (1.2 if concurrency < 8 else 0.8))


def never(concurrency):
    raise AssertionError(f"tried at {concurrency}")


def test_levels_from_the_first_to_the_last_of_the_cliff_are_tried():
    found = tried(CLIFF, range(1, 33), run)
    assert set(found.tried_per_s) == {1, 2, 3, 5, 7, 10, 15}
    assert found.promised_per_s[1] == pytest.approx(1200)
    assert found.promised_per_s[15] == pytest.approx(12000)
    assert set(found.promised_per_s) == set(PROMISED)


def test_levels_between_the_tried_ones_are_corrected_between():
    found = corrected(PROMISED, {1: 1200.0, 4: 3200.0})
    assert found[1] == pytest.approx(1200)
    assert found[2] == pytest.approx(2000 * (1.2 * 0.8) ** 0.5)
    assert found[15] == pytest.approx(12000)


def test_without_a_promise_what_was_tried_is_promised():
    assert corrected({}, {3: 270.0}) == {3: 270.0}


def test_what_is_not_proven_to_be_the_delay_is_not_tried():
    for other in (replace(CLIFF, proven=False), replace(CLIFF, cause=Cause.SATURATED)):
        assert tried(other, range(1, 33), never) == other


def test_what_was_tried_is_told_as_such():
    told = "\n".join(cliff_lines(tried(CLIFF, [1, 2, 8, 15], run)))
    assert "advice: no delay; tried in this run, it gave 1200 at 1, 6400 at 8, 12000 at 15" in told
    assert "it should give 1000 at 1" in "\n".join(cliff_lines(CLIFF))


def test_the_advised_deployment_has_no_delay_and_is_the_same_otherwise():
    delayed = Deployment(16, (8, 16), 10_000, instances=2, threads=1)
    assert without_delay(delayed) == Deployment(16, (), 0, instances=2, threads=1)
