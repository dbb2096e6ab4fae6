"""When a level is believed and what it is marked with, on a generator that gives windows."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest

from enginegate.config.serving import Arrivals
from enginegate.errors import ServingError
from enginegate.serving.load.sweep import LevelRules, closed_window, run_level, run_open
from enginegate.serving.load.windows import Fault, OpenWindow, Window
from enginegate.serving.triton.statistics import PHASES, Phase, ServerStatistics


def no_statistics():
    return None


class FakeGenerator:
    """Windows as they are given; the last again and again."""

    def __init__(self, *windows):
        self.windows = list(windows)

    @contextlib.contextmanager
    def closed(self, _concurrency):
        yield self

    def window(self, time_s):
        window = self.windows.pop(0) if len(self.windows) > 1 else self.windows[0]
        return replace(window, duration_s=time_s, answered=window.answered * time_s)

    def open(self, *_arguments):
        return self.windows[0]


def seen(rate, concurrency=4, share=0.1, **more):
    """A second at a rate, with as many outstanding as there should be."""
    latencies = np.full(rate, concurrency / rate)
    return Window(latencies, 1.0, rate, 1.0, share, **more)


class OneRate(FakeGenerator):
    """Whatever was outstanding, in proportion to the window."""

    def __init__(self, concurrency, *windows):
        super().__init__(*windows)
        self.concurrency = concurrency

    def window(self, time_s):
        return replace(super().window(time_s), outstanding_s=self.concurrency * time_s)


RULES = LevelRules()
GOOD, BAD = seen(100), seen(100, wrong=Fault(2, "text 7: differs by 0.3"))


def test_steady_level_has_no_mark():
    found = run_level(OneRate(4, seen(100)), 4, no_statistics, "fake", RULES)
    assert found.marks == ()
    assert found.throughput_per_s == pytest.approx(100)
    assert found.latency.mean_s == pytest.approx(0.04)


def test_warm_up_and_unsteady_beginning_are_left_out():
    generator = OneRate(4, seen(10), seen(50), seen(100))
    found = run_level(generator, 4, no_statistics, "fake", RULES)
    assert found.throughput_per_s == pytest.approx(100)
    assert found.marks == ()


def test_level_that_never_agrees_is_unstable():
    generator = OneRate(4, *[seen(rate) for rate in (100, 100, 150) * 20])
    found = run_level(generator, 4, no_statistics, "fake", RULES)
    assert found.marks == ("unstable: 100 to 150 infer/s in its last windows",)


def test_client_that_was_the_bottleneck_is_marked():
    found = run_level(OneRate(4, seen(100, share=0.95)), 4, no_statistics, "fake", RULES)
    assert found.marks == ("client-bound: a client process was busy 95% of the time",)


def test_littles_law_is_checked():
    found = run_level(OneRate(3.7, seen(100)), 4, no_statistics, "fake", RULES)
    (mark,) = found.marks
    assert mark == "client-bound: by Little's law 3.70 requests were outstanding, not 4"


def test_wrong_answer_ends_the_level():
    with pytest.raises(ServingError, match=r"2 sampled answers are wrong .* text 7: differs by"):
        run_level(OneRate(4, BAD), 4, no_statistics, "fake", RULES)


def test_breakdown_adds_up_to_the_latency():
    def counted(times):
        phase = Phase(100 * times, 100 * times * 2_000_000)
        return ServerStatistics(**dict.fromkeys(PHASES, phase), batches={4: 25 * times})

    calls = iter(range(100))
    generator = OneRate(4, seen(100, client_s=0.3))  # of the 60 requests of a window
    found = run_level(generator, 4, lambda: counted(next(calls)), "fake", RULES)
    assert found.breakdown is not None
    assert found.breakdown.queue_s == pytest.approx(0.002)
    assert found.breakdown.client_s == pytest.approx(0.005)
    assert found.breakdown.network_s == pytest.approx(0.040 - 4 * 0.002 - 0.005)
    assert sum(vars(found.breakdown).values()) == pytest.approx(found.latency.mean_s)
    assert found.batches == {4: 75}


def test_closed_window_is_long_enough_for_the_fewest_answers():
    """At 20 infer/s the 60 answers take 3 s; at 100 they take less than the window has anyway."""
    for rate_per_s, length_s in ((20, 3), (100, 1)):
        window = closed_window(OneRate(4, seen(rate_per_s)), 4, 0.3, 1, 60)
        assert window.duration_s == pytest.approx(length_s)
        assert window.throughput_per_s == pytest.approx(rate_per_s)


def test_a_window_without_an_answer_is_followed_by_more():
    silent = replace(seen(50), latencies_s=np.array([]))
    window = closed_window(OneRate(4, seen(50), silent, silent, seen(50)), 4, 0.3, 1, 60)
    assert window.requests == 50
    assert window.duration_s == pytest.approx(3 * 60 / 50)


def test_a_server_that_stands_still_is_an_error():
    silent = replace(seen(50), latencies_s=np.array([]))
    with pytest.raises(
        ServingError, match="no answer for 10 s at concurrency 4: the server stands"
    ):
        closed_window(OneRate(4, seen(50), silent), 4, 0.3, 1, 60)


@pytest.mark.parametrize("windows", [(BAD,), (GOOD, BAD)], ids=["warm-up", "window"])
def test_wrong_answer_ends_a_closed_window(windows):
    with pytest.raises(ServingError, match="wrong at concurrency 4, the first: text 7: differs"):
        closed_window(OneRate(4, *windows), 4, 0.3, 1, 60)


def test_open_marks():
    seconds = np.array([0.1, 0.2])
    window = OpenWindow(seconds, seconds, 1.0, 3, 1, held=True, client_share=0.95)
    found = run_open(FakeGenerator(window), 3, Arrivals.CONSTANT, 1, 0)
    assert found.marks == (
        "1 of 3 requests were never answered",
        "requests waited for one of 256 connections",
        "client-bound: a client process was busy 95% of the time",
    )
