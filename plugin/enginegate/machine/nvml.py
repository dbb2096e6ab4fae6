"""Clocks, throttling, temperature and power of CUDA's device 0, by NVML (nvidia-ml-py).

NVML numbers GPUs otherwise than CUDA does, so the one that CUDA uses is found by its PCI address.
"""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from enginegate.machine.gpus import find_gpus

_THROTTLING = MappingProxyType(  # bits of nvmlClocksEventReasons* that slow a GPU down
    {
        0x04: "power cap",
        0x08: "hardware slowdown",
        0x20: "thermal slowdown by software",
        0x40: "thermal slowdown by hardware",
        0x80: "power brake",
    }
)
_MOST_DRIFT = 0.02  # of the clock between two looks; locked clocks do not move at all
_MW_PER_W = 1000


@dataclass(frozen=True)
class GpuState:
    """A GPU at one moment.

    Attributes:
        sm_mhz, memory_mhz: clocks now.
        max_sm_mhz: largest clock of the multiprocessors.
        temperature_c: degrees Celsius.
        power_w, power_limit_w: power drawn and allowed, in watts.
        throttling: why it runs slower than it could; empty for nothing.
    """

    sm_mhz: int
    memory_mhz: int
    max_sm_mhz: int
    temperature_c: int
    power_w: float
    power_limit_w: float
    throttling: tuple[str, ...]


def read_state() -> GpuState | None:
    """The state now; None without a GPU, without nvidia-ml-py, or where NVML does not tell."""
    handle = _handle()
    if handle is None:
        return None
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        return _state(pynvml, handle)
    return None


def state_as_json() -> dict[str, Any] | None:
    """The state now as JSON values; None where it is not known."""
    state = read_state()
    return {**asdict(state), "throttling": list(state.throttling)} if state else None


def power_limit() -> str:
    """What the driver lets the GPU draw, all limits considered, `700 W`; empty where unknown."""
    state = read_state()
    return f"{state.power_limit_w:.0f} W" if state else ""


def disturbance_of(looks: Sequence[GpuState | None]) -> tuple[str, ...]:
    """Name what slowed the GPU down, or changed its clock, over some looks; empty for nothing."""
    states = [state for state in looks if state]
    reasons = dict.fromkeys(f"GPU {why}" for state in states for why in state.throttling)
    return (*reasons, *([] if is_steady(looks) else ["GPU clock drifted"]))


def is_steady(looks: Sequence[GpuState | None]) -> bool:
    """Tell if the clock of the multiprocessors stayed the same; true where it is not known."""
    clocks = [state.sm_mhz for state in looks if state]
    return not clocks or max(clocks) - min(clocks) <= _MOST_DRIFT * max(clocks)


@functools.cache
def _handle() -> Any:
    """NVML's handle of CUDA's device 0, or None."""
    gpus = find_gpus().gpus
    if not gpus or find_spec("pynvml") is None:
        return None
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByPciBusId(gpus[0].pci)
    return None


def _state(nvml: Any, handle: Any) -> GpuState:
    reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    return GpuState(
        sm_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        memory_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        max_sm_mhz=nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        temperature_c=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        power_w=nvml.nvmlDeviceGetPowerUsage(handle) / _MW_PER_W,
        power_limit_w=nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / _MW_PER_W,
        throttling=tuple(name for bit, name in _THROTTLING.items() if reasons & bit),
    )
