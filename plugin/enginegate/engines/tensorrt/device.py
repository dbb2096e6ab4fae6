"""What the GPU's driver does for a plan: a context, streams, memory, copies, events, graphs.

Two packages reach the driver: cuda-bindings, NVIDIA's own, which has graphs, and pycuda. The
primary context, which TensorRT uses too, is retained once in a process by either, pushed and
popped around every use, and released when the process ends.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from enginegate.errors import EngineError
from enginegate.machine import first_gpu

Bytes = npt.NDArray[np.uint8]
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: it does not wait for the default stream
_CHOICE = "ENGINEGATE_CUDA"
_PACKAGES = {
    "cuda-bindings": ("cuda.bindings", "bindings_device"),
    "pycuda": ("pycuda", "pycuda_device"),
}


class Stream(Protocol):
    """Work in order."""

    handle: int

    def synchronize(self) -> None:
        """Wait for all of it."""

    def close(self) -> None:
        """Give it up."""


class Event(Protocol):
    """A moment of a stream."""

    def record(self, stream: Stream) -> None:
        """Take the moment when the work before is done."""

    def seconds_until(self, later: Any) -> float:
        """Seconds between two moments of a stream that was synchronised."""

    def close(self) -> None:
        """Give it up."""


class Memory(Protocol):
    """Memory of the GPU."""

    address: int

    def free(self) -> None:
        """Give it back."""


class Pinned(Protocol):
    """Page-locked memory of the host, bytes [size]."""

    array: Bytes

    def free(self) -> None:
        """Give it back; nobody may have a view of it then."""


class Graph(Protocol):
    """Work that was captured once."""

    def launch(self, stream: Stream) -> None:
        """Do it again."""

    def close(self) -> None:
        """Give it up."""


class Cuda(Protocol):
    """A package that reaches the driver.

    Attributes:
        error: what it raises.
        has_graphs: whether `capture` can be called.
    """

    error: type[Exception]
    has_graphs: bool

    def current(self) -> AbstractContextManager[None]:
        """The primary context of CUDA's device 0, current inside."""

    def stream(self) -> Stream:
        """A stream that does not wait for the default one."""

    def event(self) -> Event:
        """An event."""

    def memory(self, size: int) -> Memory:
        """Memory of so many bytes."""

    def pinned(self, size: int) -> Pinned:
        """Page-locked memory of so many bytes."""

    def copy_in(self, target: Memory, source: Any, stream: Stream) -> None:
        """Copy page-locked memory to the GPU, when the stream comes to it."""

    def copy_out(self, target: Any, source: Memory, stream: Stream) -> None:
        """Copy to page-locked memory, when the stream comes to it."""

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """What `work` puts on the stream, which is not done yet."""

    def free_bytes(self) -> int:
        """Free memory of the GPU."""


@contextlib.contextmanager
def open_device() -> Iterator[Cuda]:
    """Make the primary context of CUDA's device 0 current, which TensorRT uses too.

    Raises EngineError for every CUDA error that occurs inside.
    """
    first_gpu()
    cuda = _chosen()
    try:
        with cuda.current():
            yield cuda
    except cuda.error as error:
        raise EngineError(f"CUDA: {error}") from error


def _chosen() -> Cuda:
    """What $ENGINEGATE_CUDA names, else cuda-bindings where it is installed, else pycuda."""
    there = [name for name, (package, _) in _PACKAGES.items() if _is_there(package)]
    name = os.environ.get(_CHOICE) or next(iter(there), "cuda-bindings")
    if name not in _PACKAGES:
        raise EngineError(f"${_CHOICE} is {name!r}, and may be {' or '.join(_PACKAGES)}")
    if name not in there:
        raise EngineError(f"{name} is not installed: pip install {name}")
    module = importlib.import_module(f"enginegate.engines.tensorrt.{_PACKAGES[name][1]}")
    cuda: Cuda = module.cuda()
    return cuda


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
