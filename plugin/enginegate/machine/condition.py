"""What else the machine did while something was timed."""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginegate.machine.nvml import GpuState, disturbance_of, state_as_json

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_STAT = Path("/proc/stat")
_PRESSURE = Path("/proc/pressure/memory")
_CGROUP = Path("/sys/fs/cgroup/cpu.stat")
_FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_STEAL_COLUMN = 8
_MOST_SWITCHES_PER_S = 100.0
_MOST_AWAY = 0.1  # share of the time in which this process was not on a processor


def throttled_s() -> float:
    """Time in which the container's CPU quota stopped its processes; 0 without a quota."""
    for line in _read(_CGROUP).splitlines():
        name, _, value = line.partition(" ")
        if name == "throttled_usec":
            return int(value) / 1e6
    return 0.0


@dataclass(frozen=True)
class Condition:
    """Counters of the machine and of this process at one moment.

    Attributes:
        time_s: monotonic clock.
        cpu_s: processor time of this process.
        steal_s: time that the host gave to others, of all processors.
        switches: times this process was put off its processor.
        throttled_s: time in which the container's CPU quota stopped it.
    """

    time_s: float
    cpu_s: float
    steal_s: float
    switches: int
    throttled_s: float

    @classmethod
    def now(cls) -> "Condition":
        """Read all counters; those that the system lacks are 0."""
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0
        return cls(
            time.perf_counter(),
            time.process_time(),
            _steal_s(),
            switches,
            throttled_s(),
        )


def disturbance(
    before: Condition, after: Condition, *, own: bool, gpu: Sequence[GpuState | None] = ()
) -> str:
    """The disturbance of the time between; empty if none.

    `own`: this process was at work. `gpu`: states of the GPU, each right after it was at work.
    """
    elapsed_s = after.time_s - before.time_s
    found = {
        "throttled": after.throttled_s > before.throttled_s,
        "steal": after.steal_s - before.steal_s > _MOST_AWAY * elapsed_s,
        "preempted": own
        and after.switches - before.switches > 1 + _MOST_SWITCHES_PER_S * elapsed_s,
        "off the processor": own and after.cpu_s - before.cpu_s < (1 - _MOST_AWAY) * elapsed_s,
    }
    names = [name for name, is_so in found.items() if is_so]
    return ", ".join([*names, *disturbance_of(gpu)])


def describe_machine() -> dict[str, Any]:
    """Load, memory pressure, frequency, governor, affinity and GPU now; None where unknown."""
    load = getattr(os, "getloadavg", None)
    affinity = getattr(os, "sched_getaffinity", None)
    frequency = _read(_FREQUENCY).strip()
    return {
        "load_1min": round(load()[0], 2) if load else None,
        "memory_pressure": _read(_PRESSURE).partition("\n")[0] or None,
        "frequency_khz": int(frequency) if frequency else None,
        "governor": _read(_GOVERNOR).strip() or None,
        "affinity": sorted(affinity(0)) if affinity else None,
        "gpu": state_as_json(),
    }


def _steal_s() -> float:
    fields = _read(_STAT).partition("\n")[0].split()
    ticks = int(fields[_STEAL_COLUMN]) if len(fields) > _STEAL_COLUMN else 0
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8")
    return ""
