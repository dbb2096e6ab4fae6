"""CUDA by cuda-bindings, NVIDIA's own package: the driver's calls, graphs among them."""

import atexit
import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda.bindings import driver

from enginegate.engines.tensorrt.device import NON_BLOCKING, Bytes, Memory, Stream

_THREAD_LOCAL = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


class CudaError(Exception):
    """A call of the driver failed."""


def _call(name: str, *arguments: Any) -> Any:
    """What a call of the driver gives beside its success. Raises CudaError for all else."""
    code, *found = getattr(driver, name)(*arguments)
    if code != driver.CUresult.CUDA_SUCCESS:
        _, said = driver.cuGetErrorString(code)
        raise CudaError(f"{name} failed: {said.decode() if said else code}")
    return found[0] if len(found) == 1 else found


class _Stream:
    def __init__(self) -> None:
        self._own = _call("cuStreamCreate", NON_BLOCKING)
        self.handle = int(self._own)

    def synchronize(self) -> None:
        _call("cuStreamSynchronize", self._own)

    def close(self) -> None:
        _call("cuStreamDestroy", self._own)


class _Event:
    def __init__(self) -> None:
        self._own = _call("cuEventCreate", 0)

    def record(self, stream: Stream) -> None:
        _call("cuEventRecord", self._own, stream.handle)

    def seconds_until(self, later: "_Event") -> float:
        return float(_call("cuEventElapsedTime", self._own, later._own)) / 1000  # milliseconds

    def close(self) -> None:
        _call("cuEventDestroy", self._own)


class _Memory:
    def __init__(self, size: int) -> None:
        self.address = int(_call("cuMemAlloc", size))

    def free(self) -> None:
        _call("cuMemFree", self.address)


class _Pinned:
    def __init__(self, size: int) -> None:
        self._address = int(_call("cuMemHostAlloc", size, 0))
        content = (ctypes.c_uint8 * size).from_address(self._address)
        self.array: Bytes = np.ctypeslib.as_array(content)

    def free(self) -> None:
        del self.array
        _call("cuMemFreeHost", self._address)


class _Graph:
    """Work that was captured, ready to be launched."""

    def __init__(self, graph: Any) -> None:
        self._graph, self._own = graph, _call("cuGraphInstantiate", graph, 0)

    def launch(self, stream: Stream) -> None:
        _call("cuGraphLaunch", self._own, stream.handle)

    def close(self) -> None:
        _call("cuGraphExecDestroy", self._own)
        _call("cuGraphDestroy", self._graph)


@dataclass(frozen=True)
class Bindings:
    """NVIDIA's bindings of the driver."""

    error: type[Exception] = CudaError
    has_graphs: bool = True

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """The primary context, pushed and popped."""
        _call("cuCtxPushCurrent", primary_context())
        try:
            yield
        finally:
            _call("cuCtxPopCurrent")

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
        """Page-locked memory."""
        return _Pinned(size)

    def copy_in(self, target: Memory, source: Any, stream: Stream) -> None:
        """Copy to the GPU."""
        start = source.ctypes.data
        _call("cuMemcpyHtoDAsync", target.address, start, source.nbytes, stream.handle)

    def copy_out(self, target: Any, source: Memory, stream: Stream) -> None:
        """Copy to the host."""
        start = target.ctypes.data
        _call("cuMemcpyDtoHAsync", start, source.address, target.nbytes, stream.handle)

    def capture(self, stream: Stream, work: Callable[[], None]) -> _Graph:
        """What `work` puts on the stream; the stream is as before, also after an error."""
        _call("cuStreamBeginCapture", stream.handle, _THREAD_LOCAL)
        try:
            work()
        except BaseException:
            driver.cuStreamEndCapture(stream.handle)
            raise
        return _Graph(_call("cuStreamEndCapture", stream.handle))

    def free_bytes(self) -> int:
        """Free memory of the GPU."""
        return int(_call("cuMemGetInfo")[0])


def cuda() -> Bindings:
    """Reach the driver."""
    return Bindings()


@functools.cache
def primary_context() -> Any:
    """The primary context of CUDA's device 0, retained until the process ends."""
    _call("cuInit", 0)
    device = _call("cuDeviceGet", 0)
    atexit.register(driver.cuDevicePrimaryCtxRelease, device)
    return _call("cuDevicePrimaryCtxRetain", device)
