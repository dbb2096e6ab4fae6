"""Which GPUs there are, asked of the CUDA driver alone, through ctypes.

TensorRT's bindings abort or segfault in some ways on a machine without a device. So this is asked
before any of them is imported. Error numbers and calls: CUDA Driver API, `cuda.h`.
"""

import ctypes
import functools
import os
import re
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginegate.errors import EngineError
from enginegate.variants import Precision

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_VERSION_FILE = Path("/proc/driver/nvidia/version")
_NAME_BYTES, _UUID_BYTES = 256, 16
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_BF16_SINCE = 8
_SUCCESS = 0
_FORKED = (
    "CUDA does not work in a process that was forked from one that uses it: run without what forks "
    "(pytest --forked, multiprocessing's fork), or start processes anew (spawn, pytest-xdist)"
)
_TOO_OLD = "the driver is too old for the CUDA that was installed: update the driver"
_FAULTS = {
    34: "only a stub of the driver is found: take .../lib64/stubs out of $LD_LIBRARY_PATH",
    35: _TOO_OLD,
    36: _TOO_OLD,
    46: "the GPU is busy or reserved by another process: look at `nvidia-smi`",
    100: "no GPU is visible: look at `nvidia-smi` and at $CUDA_VISIBLE_DEVICES",
    101: "no such GPU: look at $CUDA_VISIBLE_DEVICES",
    802: "the GPU's fabric is not ready: start nvidia-fabricmanager",
    803: "the driver's library and its kernel module differ in version: restart the machine",
    804: "the driver is too old for the CUDA compatibility package: update the driver",
    999: "the driver cannot reach the GPU: look at `nvidia-smi`, restart the machine",
}


@dataclass(frozen=True)
class Gpu:
    """A GPU that CUDA can use.

    Attributes:
        name: as the driver says it, `NVIDIA H100 80GB HBM3`.
        capability: compute capability, `9.0`.
        driver: version of the driver, `580.65.06`; where unknown the CUDA version it has.
        pci: address on the bus, `0000:41:00.0`.
        cuda: the newest CUDA that the driver has, (13, 0).
        uuid: `GPU-` or `MIG-` and its number, the same whatever order GPUs have.
    """

    name: str
    capability: str
    driver: str
    pci: str
    cuda: tuple[int, int] = (0, 0)
    uuid: str = ""

    @property
    def has_bf16(self) -> bool:
        """Tell if its tensor cores take bfloat16: from compute capability 8.0 on."""
        return int(self.capability.partition(".")[0]) >= _BF16_SINCE


@dataclass(frozen=True)
class Found:
    """The GPUs, in CUDA's order, or the reason why there is none.

    Attributes:
        process: id of the one that asked.
    """

    gpus: tuple[Gpu, ...]
    reason: str = ""
    process: int = field(default_factory=os.getpid)


@functools.cache
def find_gpus() -> Found:
    """Ask the driver once in a process. Never raises: a machine without a GPU is an answer.

    CUDA then works in this process and those that it starts anew, and in none that it forks.
    """
    try:
        library = load_library()
    except OSError:
        return Found((), f"no CUDA driver is installed: {LIBRARY} is not found")
    try:
        return Found(_gpus(library))
    except EngineError as error:
        return Found((), str(error))


def first_gpu() -> Gpu:
    """The GPU that engines run on: CUDA's device 0.

    Raises EngineError if there is none, and in a process forked after the driver was asked.
    """
    found = find_gpus()
    if not found.gpus:
        raise EngineError(f"no GPU can be used: {found.reason}")
    if found.process != os.getpid():
        raise EngineError(_FORKED)
    return found.gpus[0]


def precisions_here(precisions: tuple[Precision, ...]) -> tuple[Precision, ...]:
    """Of these precisions, those that the GPU of engines has arithmetic for; all without a GPU."""
    gpus = find_gpus().gpus
    lacking = {Precision.BF16} if gpus and not gpus[0].has_bf16 else set()
    return tuple(precision for precision in precisions if precision not in lacking)


def load_library() -> Any:
    """The driver's library. Raises OSError if it is not installed."""
    return ctypes.CDLL(LIBRARY)


def _gpus(library: Any) -> tuple[Gpu, ...]:
    _check(library.cuInit(0))
    count = ctypes.c_int()
    _check(library.cuDeviceGetCount(ctypes.byref(count)))
    if count.value == 0:
        raise EngineError(_FAULTS[100])
    cuda = _cuda_of(library)
    driver = _driver_version() or f"CUDA {cuda[0]}.{cuda[1]}"
    return tuple(_gpu(library, index, driver, cuda) for index in range(count.value))


def _gpu(library: Any, index: int, driver: str, cuda: tuple[int, int]) -> Gpu:
    device = ctypes.c_int()
    _check(library.cuDeviceGet(ctypes.byref(device), index))
    name = _text(library.cuDeviceGetName, device)
    pci = _text(library.cuDeviceGetPCIBusId, device)
    major, minor = (
        _attribute(library, device, which) for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
    )
    return Gpu(name, f"{major}.{minor}", driver, pci, cuda, _uuid(library, device, name))


def _uuid(library: Any, device: ctypes.c_int, name: str) -> str:
    """As nvidia-smi and Docker spell it; of a part of a GPU, which its name tells, that part's."""
    number = ctypes.create_string_buffer(_UUID_BYTES)
    _check(library.cuDeviceGetUuid_v2(number, device))
    return f"{'MIG' if ' MIG ' in name else 'GPU'}-{uuid.UUID(bytes=number.raw)}"


def _text(call: Any, device: ctypes.c_int) -> str:
    text = ctypes.create_string_buffer(_NAME_BYTES)
    _check(call(text, _NAME_BYTES, device))
    return text.value.decode()


def _attribute(library: Any, device: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    _check(library.cuDeviceGetAttribute(ctypes.byref(value), which, device))
    return value.value


def _driver_version() -> str:
    """`580.65.06` from the kernel module; empty where that is not to be read."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", _VERSION_FILE.read_text(encoding="utf-8"))
    except OSError:
        return ""
    return found[0] if found else ""


def _cuda_of(library: Any) -> tuple[int, int]:
    version = ctypes.c_int()
    _check(library.cuDriverGetVersion(ctypes.byref(version)))
    return version.value // 1000, version.value % 1000 // 10


def _check(code: int) -> None:
    if code != _SUCCESS:
        raise EngineError(_FAULTS.get(code, f"the CUDA driver answers error {code}"))
