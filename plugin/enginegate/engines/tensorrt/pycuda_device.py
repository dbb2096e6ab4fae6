"""The device protocols by pycuda. The only module that imports it, and never its `autoinit`."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pycuda.driver as cuda

from enginegate.engines.tensorrt.device import Array, Event, Memory, Stream
from enginegate.errors import EngineError
from enginegate.machine import first_gpu


class PycudaMemory:
    """A block of device memory."""

    def __init__(self, size_bytes: int) -> None:
        self._allocation: Any = cuda.mem_alloc(size_bytes)
        self.address = int(self._allocation)

    def free(self) -> None:
        """Give it back."""
        self._allocation.free()


class PycudaStream:
    """A stream of its own."""

    def __init__(self) -> None:
        self._stream: Any = cuda.Stream()
        self.handle: int = self._stream.handle
        self.raw = self._stream

    def synchronize(self) -> None:
        """Wait for all that was enqueued."""
        self._stream.synchronize()


class PycudaEvent:
    """An event that takes times."""

    def __init__(self) -> None:
        self._event: Any = cuda.Event()

    def record(self, stream: Stream) -> None:
        """Take the moment on `stream`."""
        self._event.record(_raw(stream))

    def seconds_until(self, later: Event) -> float:
        """Time until another event of this kind; CUDA counts milliseconds."""
        if not isinstance(later, PycudaEvent):
            raise TypeError(f"{type(later).__name__} is not an event of pycuda")
        return float(self._event.time_till(later._event)) / 1000


class PycudaDevice:
    """CUDA's device 0, its primary context current."""

    def __init__(self) -> None:
        first_gpu()  # raises EngineError where there is none

    def stream(self) -> PycudaStream:
        """A new stream."""
        return PycudaStream()

    def event(self) -> PycudaEvent:
        """A new event."""
        return PycudaEvent()

    def allocate(self, size_bytes: int) -> PycudaMemory:
        """Device memory."""
        return PycudaMemory(size_bytes)

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A page-locked host array."""
        array: Array = cuda.pagelocked_empty(shape, dtype)
        return array

    def copy_in(self, target: Memory, source: Array, stream: Stream) -> None:
        """Enqueue a copy to the device."""
        cuda.memcpy_htod_async(target.address, source, _raw(stream))

    def copy_out(self, target: Array, source: Memory, stream: Stream) -> None:
        """Enqueue a copy from the device."""
        cuda.memcpy_dtoh_async(target, source.address, _raw(stream))


def _raw(stream: Stream) -> Any:
    if not isinstance(stream, PycudaStream):
        raise TypeError(f"{type(stream).__name__} is not a stream of pycuda")
    return stream.raw


@contextlib.contextmanager
def open_pycuda() -> Iterator[PycudaDevice]:
    """Retain the primary context, which TensorRT uses too, and make it current meanwhile.

    Raises EngineError for every CUDA error that occurs inside.
    """
    first_gpu()
    try:
        with _primary_context():
            yield PycudaDevice()
    except cuda.Error as error:
        raise EngineError(f"CUDA: {error}") from error


@contextlib.contextmanager
def _primary_context() -> Iterator[None]:
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    try:
        yield
    finally:
        context.detach()  # releases it, and makes the one before it current again
