"""What an engine needs of a GPU: memory, pinned arrays, streams, events. Seconds and bytes.

The protocols keep the engine free of the library that provides them; `open_device` gives the one
that is used.
"""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Memory(Protocol):
    """A block of device memory."""

    @property
    def address(self) -> int:
        """Its address on the device."""

    def free(self) -> None:
        """Give it back. Nothing may be using it."""


class Event(Protocol):
    """A moment on a stream."""

    def record(self, stream: "Stream") -> None:
        """Take the moment when all that was enqueued before is done."""

    def seconds_until(self, later: "Event") -> float:
        """Time between two moments; both must have passed."""


class Stream(Protocol):
    """A queue of work; what is enqueued is done only after `synchronize`."""

    @property
    def handle(self) -> int:
        """The `cudaStream_t`, for TensorRT."""

    def synchronize(self) -> None:
        """Wait for all that was enqueued."""


class Device(Protocol):
    """A GPU with its primary context current in this thread."""

    def stream(self) -> Stream:
        """A new stream that is not the default one."""

    def event(self) -> Event:
        """A new event."""

    def allocate(self, size_bytes: int) -> Memory:
        """Device memory. Raises EngineError if there is not enough."""

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A page-locked host array, which copies of a stream may read and write."""

    def copy_in(self, target: Memory, source: Array, stream: Stream) -> None:
        """Enqueue a copy from a pinned array; both must live until the stream is synchronised."""

    def copy_out(self, target: Array, source: Memory, stream: Stream) -> None:
        """Enqueue a copy into a pinned array; both must live until the stream is synchronised."""


def open_device() -> AbstractContextManager[Device]:
    """CUDA's device 0 by pycuda. EngineError for every CUDA error that occurs inside."""
    from enginegate.engines.tensorrt.pycuda_device import open_pycuda

    return open_pycuda()
