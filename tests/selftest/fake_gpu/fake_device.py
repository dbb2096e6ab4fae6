"""A GPU that is not there: CUDA's rules, checked, on host memory.

Work on a stream is done only when something synchronises it; until then its results are poison.
What a real GPU would answer with a crash or with garbage is a `Misuse` here.
"""

import contextlib
import ctypes
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

POISON = 0xFF  # NaN in every float type
_FIRST_ADDRESS, _ALIGNMENT = 0x7F0000000000, 256


class Misuse(BaseException):
    """What would be undefined on real hardware. Not an Exception: no `except` may swallow it."""


@dataclass
class State:
    """The device and all that is done to it; `reset` for a new test."""

    boot: int = 0  # objects of an earlier one do nothing any more
    gpu: str = "NVIDIA Fake 9000"
    gpus: int = 1
    cuda_init: int = 0
    capability: tuple[int, int] = (9, 0)
    driver: int = 13000
    pci: str = "0000:41:00.0"
    sm_mhz: int = 1755
    throttling: int = 0  # bits, as NVML has them
    power_limit_mw: int = 700_000
    tensorrt: str = "11.4.0.106"
    run_instead: str = ""  # type that the builder's kernels compute in, whatever is asked for
    run_instead_of_many: str = ""  # the same, where a batch has more than two rows
    logger: Any = None  # the first that TensorRT was given
    warns: tuple[str, ...] = ()  # what the parser warns of
    profiles: list[int] = field(default_factory=list)  # of every inference
    largest_message: int = 1 << 31  # bytes of a file that the parser can read
    parsed: list[str] = field(default_factory=list)  # outputs of the graph that the parser got
    sticky: str = ""  # an error of a kernel, which every later call answers
    sticks_at: str = ""  # the error that the next inference makes
    fails: set[str] = field(default_factory=set)  # calls that answer False or None
    contexts: list[str] = field(default_factory=list)  # the driver's stack of this thread
    pycuda_contexts: list[Any] = field(default_factory=list)  # pycuda's own, beside it
    retained: int = 0  # of the primary context
    made: int = 0  # times that it was made from nothing
    streams: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    events: dict[int, "Moment"] = field(default_factory=dict)  # of cuda-bindings
    graphs: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    host: dict[int, np.ndarray] = field(default_factory=dict)  # page-locked, by address
    capturing: dict[int, list[Callable[[], None]]] = field(default_factory=dict)  # by stream
    closed: list[str] = field(default_factory=list)
    said: bytes = b""  # of the latest error
    memory: dict[int, np.ndarray] = field(default_factory=dict)
    staged: dict[int, bytes] = field(default_factory=dict)  # host memory at the first event
    pinned: list[weakref.ref[np.ndarray]] = field(default_factory=list)
    next_address: int = _FIRST_ADDRESS
    alive: dict[str, int] = field(default_factory=dict)  # TensorRT's objects by kind
    freed: list[str] = field(default_factory=list)
    misused: bool = False  # on purpose
    faults: list[str] = field(default_factory=list)  # of destructors, which cannot raise
    log: list[str] = field(default_factory=list)  # calls worth asserting on


STATE = State()


def reset() -> None:
    """A new device, with nothing on it."""
    boot = STATE.boot + 1
    STATE.__dict__.update(State().__dict__)
    STATE.boot = boot


def need_context(what: str) -> None:
    """Every call of CUDA and TensorRT needs a current context in this thread, one that lives."""
    if not STATE.contexts:
        raise Misuse(f"{what} without a current CUDA context: push the primary context first")
    if not STATE.retained:
        raise Misuse(f"{what} in a primary context that was released, and is current still")


class CudaError(Exception):
    """What a call of CUDA answers; the fake pycuda makes an error of its own of it."""


def need_health(what: str) -> None:
    """After an error of a kernel every call of the process has that error."""
    if STATE.sticky:
        raise CudaError(f"{what} failed: {STATE.sticky}")


def retain() -> None:
    """As cuDevicePrimaryCtxRetain."""
    STATE.made += not STATE.retained
    STATE.retained += 1


def release() -> None:
    """As cuDevicePrimaryCtxRelease: the last one ends the context, and pops it from no stack."""
    if any(STATE.streams.values()):
        raise Misuse("CUDA context released with work on a stream")
    alive = {kind: count for kind, count in STATE.alive.items() if count}
    if STATE.retained == 1 and (alive or (STATE.memory and not STATE.sticky)):
        raise Misuse(f"CUDA context released before TensorRT's objects: {alive}, {STATE.memory}")
    STATE.retained -= 1


def stacks_are_empty() -> None:
    """When a process ends: pycuda aborts it for a context on its stack."""
    if STATE.pycuda_contexts:
        STATE.faults.append("pycuda's stack of contexts was not empty when the process ended")
    if STATE.contexts:
        STATE.faults.append("a context stayed on the driver's stack")


def allocate(size: int) -> int:
    need_context("cuMemAlloc")
    address = STATE.next_address
    STATE.next_address += -(-size // _ALIGNMENT) * _ALIGNMENT
    STATE.memory[address] = np.full(size, POISON, np.uint8)
    return address


def free(address: int) -> None:
    need_context("cuMemFree")
    STATE.freed.append("memory")
    need_health("cuMemFree")
    if any(STATE.streams.values()):
        raise Misuse("device memory freed while a stream uses it")
    if STATE.memory.pop(address, None) is None:
        raise Misuse("device memory freed twice")


def memory_at(address: int, size: int) -> np.ndarray:
    if address not in STATE.memory:
        raise Misuse(f"illegal address {address:#x}: not allocated, or freed")
    if STATE.memory[address].size < size:
        raise Misuse(f"illegal access: {size} bytes in a buffer of {STATE.memory[address].size}")
    return STATE.memory[address][:size]


def pin(array: np.ndarray) -> np.ndarray:
    array.view(np.uint8).fill(POISON)
    STATE.pinned.append(weakref.ref(array))
    return array


def need_pinned(array: np.ndarray) -> None:
    first, last = _range_of(array)
    ranges = map(_range_of, _all_pinned())
    if not any(low <= first and last <= high for low, high in ranges):
        raise Misuse("asynchronous copy of pageable memory, which may be gone when it happens")


def _all_pinned() -> list[np.ndarray]:
    STATE.pinned = [reference for reference in STATE.pinned if reference() is not None]
    return [array for reference in STATE.pinned if (array := reference()) is not None]


def _range_of(array: np.ndarray) -> tuple[int, int]:
    start = array.__array_interface__["data"][0]
    return start, start + array.nbytes


def enqueue(handle: int, work: Callable[[], None]) -> None:
    if handle not in STATE.streams:
        raise Misuse(f"{handle} is not a stream")
    STATE.capturing.get(handle, STATE.streams[handle]).append(work)


def make_stream() -> int:
    handle = 1 + max(STATE.streams, default=0)
    STATE.streams[handle] = []
    return handle


def make_event() -> int:
    handle = 1 + max(STATE.events, default=0)
    STATE.events[handle] = Moment()
    return handle


def begin_capture(handle: int) -> None:
    need_context("cuStreamBeginCapture")
    if STATE.streams[handle]:
        raise Misuse("a capture began with work on the stream")
    STATE.capturing[handle] = []


def end_capture(handle: int) -> int:
    work = STATE.capturing.pop(handle)
    if "capture" in STATE.fails:
        raise CudaError("cuStreamEndCapture failed: operation not permitted when capturing")
    graph = 1 + max(STATE.graphs, default=0)
    STATE.graphs[graph] = work
    return graph


def instantiate(graph: int) -> int:
    made = 1 + max(STATE.graphs)
    STATE.graphs[made] = STATE.graphs[graph]
    return made


def close(kind: str, handle: int) -> None:
    """Streams, events and graphs are given up once, while the context is current."""
    need_context(f"end of a {kind}")
    need_health(f"end of a {kind}")
    everything: dict[str, Any] = {
        "stream": STATE.streams,
        "event": STATE.events,
        "graph": STATE.graphs,
    }
    if handle not in everything[kind]:
        raise Misuse(f"a {kind} given up twice")
    del everything[kind][handle]
    STATE.closed.append(kind)


def synchronize(handle: int) -> None:
    need_context("cuStreamSynchronize")
    if handle in STATE.capturing:
        raise Misuse("a stream was synchronised while it was captured")
    queue = STATE.streams[handle]
    while queue and not STATE.sticky:
        queue.pop(0)()
    if STATE.sticky:
        queue.clear()
    need_health("cuStreamSynchronize")


def copy_in(address: int, source: np.ndarray, handle: int) -> None:
    need_context("cuMemcpyHtoDAsync")
    need_pinned(source)
    _need_staged(source)

    def work() -> None:
        memory_at(address, source.nbytes)[...] = np.ascontiguousarray(source).view(np.uint8).ravel()

    enqueue(handle, work)


def _need_staged(source: np.ndarray) -> None:
    """What the host does between two events is time of the GPU's in every figure."""
    first, last = _range_of(source)
    for start, content in STATE.staged.items():
        offset = first - start
        if 0 <= offset < len(content) and content[offset : last - start] != source.tobytes():
            raise Misuse("host memory written after the first event, in the time of the transfer")


def copy_out(target: np.ndarray, address: int, handle: int) -> None:
    need_context("cuMemcpyDtoHAsync")
    need_pinned(target)
    flat = target.reshape(-1).view(np.uint8)
    flat.fill(POISON)

    def work() -> None:
        flat[...] = memory_at(address, target.nbytes)

    enqueue(handle, work)


class Moment:
    """When a stream came by."""

    def __init__(self) -> None:
        self.time_s: float | None = None

    def record(self, handle: int) -> None:
        need_context("cuEventRecord")
        self.time_s = None
        if handle in STATE.capturing:
            raise Misuse("an event was recorded into a graph, which has no time")
        if not STATE.streams[handle]:
            STATE.staged = {_range_of(a)[0]: a.tobytes() for a in _all_pinned()}
        enqueue(handle, lambda: setattr(self, "time_s", time.perf_counter()))


class Counted:
    """A TensorRT object: counted while alive, and checked when it goes."""

    kind = ""

    def _born(self) -> None:
        STATE.alive[self.kind] = STATE.alive.get(self.kind, 0) + 1
        self._lives = True

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            if self._lives:
                self._gone()

    def _gone(self) -> None:
        self._lives = False
        STATE.alive[self.kind] = STATE.alive.get(self.kind, 0) - 1
        STATE.freed.append(self.kind)
        if not (STATE.contexts and STATE.retained):
            STATE.faults.append(f"{self.kind} freed after its CUDA context")


class FakeDriver:
    """Stands for `libcuda.so.1` as ctypes shows it."""

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return STATE.cuda_init

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = STATE.gpus
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = STATE.gpu.encode()
        return 0

    def cuDeviceGetPCIBusId(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = STATE.pci.encode()
        return 0

    def cuDeviceGetUuid_v2(self, number: Any, device: Any) -> int:  # noqa: N802
        number.raw = bytes(range(16))
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, device: ctypes.c_int) -> int:  # noqa: N802
        value._obj.value = STATE.capability[{75: 0, 76: 1}[which]]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = STATE.driver
        return 0
