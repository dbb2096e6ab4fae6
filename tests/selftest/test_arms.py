"""Arms are loaded one after another or by threads, and closed whatever happens."""

import contextlib
import random
import threading
from typing import Any

import pytest

from enginegate.speed import open_arms

NAMES = ("candidate", "yardstick", "sentinel")
LONG_S = 60.0


class Loads:
    """Openers that note what is loaded, and how many load at the same time at most."""

    def __init__(self, *, wait_for=1, broken=""):
        self.together = threading.Barrier(wait_for)
        self.broken, self.open, self.placed = broken, set(), {}
        self._loading, self.most, self._lock = 0, 0, threading.Lock()

    def opener(self, name):
        @contextlib.contextmanager
        def opened(inputs, rng):
            with self._lock:
                self._loading += 1
                self.most = max(self.most, self._loading)
            self.together.wait(LONG_S)
            self.placed[name] = rng.random()
            with self._lock:
                self._loading -= 1
            if name == self.broken:
                raise RuntimeError(f"{name} does not load")
            self.open.add(name)
            try:
                yield name
            finally:
                self.open.discard(name)

        return opened

    def arms(self, **how):
        openers: Any = {name: self.opener(name) for name in NAMES}
        workload: Any = None
        return open_arms(openers, workload, [], random.Random(7), **how)


def test_arms_are_loaded_one_after_another():
    loads = Loads()
    with loads.arms() as arms:
        assert arms == {name: name for name in NAMES}
        assert loads.open == set(NAMES)
    assert (loads.most, loads.open) == (1, set())


def test_threads_load_all_of_them_at_once():
    loads = Loads(wait_for=3)
    with loads.arms(at_once=True) as arms:
        assert {**arms} == {name: name for name in NAMES}
    assert (loads.most, loads.open) == (3, set())


def test_where_an_arm_lies_in_memory_does_not_depend_on_the_threads():
    one, other = Loads(), Loads(wait_for=3)
    with one.arms(), other.arms(at_once=True):
        assert one.placed == other.placed
    assert len(set(one.placed.values())) == 3


@pytest.mark.parametrize("at_once", [False, True])
def test_what_was_loaded_is_closed_when_another_arm_does_not_load(at_once):
    loads = Loads(wait_for=3 if at_once else 1, broken="yardstick")
    with pytest.raises(RuntimeError, match="yardstick does not load"), loads.arms(at_once=at_once):
        pytest.fail("an arm is missing")
    assert len(loads.placed) >= 1
    assert loads.open == set()
