"""Arms: what is timed beside each other, in this process or another."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from enginegate.engines import Engine, call_s
from enginegate.models import Batch, Workload

_MOST_PADDING_BYTES = 1 << 20

Turn = tuple[float, ...]


class Arm(Protocol):
    """Something loaded that can be timed."""

    def run(self, batch: int, time_s: float) -> Turn:
        """Seconds of each call with `batch` texts, until `time_s` has passed; one at least."""


OpenArm = Callable[[Mapping[int, Batch], random.Random], AbstractContextManager[Arm]]


@dataclass(frozen=True)
class LocalArm:
    """An engine in this process with its own, randomly placed inputs by batch size."""

    engine: Engine
    inputs: Mapping[int, Batch]

    def run(self, batch: int, time_s: float) -> Turn:
        """Seconds of each call until `time_s` has passed; one at least."""
        taken: list[float] = []
        inputs = self.inputs[batch]
        end = time.perf_counter() + time_s
        while not taken or time.perf_counter() < end:
            taken.append(call_s(self.engine, inputs))
        return tuple(taken)


def local_arm(open_engine: Callable[[], AbstractContextManager[Engine]]) -> OpenArm:
    """An arm in this process."""

    @contextlib.contextmanager
    def opened(inputs: Mapping[int, Batch], rng: random.Random) -> Iterator[Arm]:
        with open_engine() as engine:
            yield LocalArm(engine, {size: placed(batch, rng) for size, batch in inputs.items()})

    return opened


@contextlib.contextmanager
def open_arms(
    openers: Mapping[str, OpenArm],
    workload: Workload,
    batches: Sequence[int],
    rng: random.Random,
    *,
    at_once: bool = False,
) -> Iterator[Mapping[str, Arm]]:
    """Every arm loaded, in random order, among arrays of random size; `at_once`: by threads."""
    names = list(openers)
    rng.shuffle(names)
    inputs = {size: workload.batch(size) for size in batches}
    own = {name: random.Random(rng.getrandbits(64)) for name in names}  # noqa: S311 - placement
    padding = []
    with contextlib.ExitStack() as stack:

        def load(name: str) -> Arm:
            padding.append(bytearray(own[name].randrange(_MOST_PADDING_BYTES)))
            return stack.enter_context(openers[name](inputs, own[name]))

        with ThreadPoolExecutor(len(names)) as pool:
            loaded = list((pool.map if at_once else map)(load, names))
        yield dict(zip(names, loaded, strict=True))


def placed(batch: Batch, rng: random.Random) -> Batch:
    """A copy of the arrays, each at a random multiple of 64 bytes in a larger buffer."""
    return {name: _placed(array, rng) for name, array in batch.items()}


def _placed(array: np.ndarray, rng: random.Random) -> np.ndarray:
    room = np.empty(array.nbytes + 8192, np.uint8)
    start = 64 * rng.randrange(128)
    view = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view
