"""CUDA by pycuda, never by its `autoinit`, which makes a context of its own. It has no graphs.

pycuda's `detach` of a primary context releases it without taking it from the driver's stack, where
it would stay current although it is gone. So it is popped, and released when the process ends.
"""

import atexit
import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycuda import driver

from enginegate.engines.tensorrt.device import NON_BLOCKING, Bytes, Graph, Memory, Stream


class _Stream:
    def __init__(self) -> None:
        self.own = driver.Stream(NON_BLOCKING)
        self.handle = int(self.own.handle)

    def synchronize(self) -> None:
        self.own.synchronize()

    def close(self) -> None:
        del self.own


class _Event:
    def __init__(self) -> None:
        self.own = driver.Event()

    def record(self, stream: Stream) -> None:
        self.own.record(stream.own)  # type: ignore[attr-defined]

    def seconds_until(self, later: "_Event") -> float:
        return float(self.own.time_till(later.own)) / 1000  # it counts milliseconds

    def close(self) -> None:
        del self.own


class _Memory:
    def __init__(self, size: int) -> None:
        self.own = driver.mem_alloc(size)
        self.address = int(self.own)

    def free(self) -> None:
        self.own.free()


class _Pinned:
    def __init__(self, size: int) -> None:
        self.array: Bytes = driver.pagelocked_empty((size,), np.uint8)

    def free(self) -> None:
        del self.array


@dataclass(frozen=True)
class PyCuda:
    """pycuda's driver."""

    error: type[Exception] = driver.Error
    has_graphs: bool = False

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """The primary context, pushed and popped."""
        primary_context().push()
        try:
            yield
        finally:
            driver.Context.pop()

    def stream(self) -> _Stream:
        """A stream."""
        return _Stream()

    def event(self) -> _Event:
        """An event."""
        return _Event()

    def memory(self, size: int) -> _Memory:
        """Memory of the GPU."""
        return _Memory(size)

    def pinned(self, size: int) -> _Pinned:
        """Page-locked memory, freed with its last view."""
        return _Pinned(size)

    def copy_in(self, target: Memory, source: Any, stream: Any) -> None:
        """Copy to the GPU."""
        driver.memcpy_htod_async(target.address, source, stream.own)

    def copy_out(self, target: Any, source: Memory, stream: Any) -> None:
        """Copy to the host."""
        driver.memcpy_dtoh_async(target, source.address, stream.own)

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Refuse: pycuda has no graphs."""
        raise NotImplementedError("pycuda has no CUDA graphs")

    def free_bytes(self) -> int:
        """Free memory of the GPU."""
        return int(driver.mem_get_info()[0])


def cuda() -> PyCuda:
    """Reach the driver."""
    return PyCuda()


@functools.cache
def primary_context() -> Any:
    """The primary context of CUDA's device 0, retained until the process ends."""
    driver.init()
    context = driver.Device(0).retain_primary_context()
    atexit.register(primary_context.cache_clear)  # nothing on a stack: pycuda may release it
    return context
