"""Seconds of a call, and its phases on a GPU."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from enginegate.engines.api import Engine, Phases, ReportsPhases
from enginegate.models import Batch

_PHASED_CALLS = 10


@dataclass(frozen=True)
class GpuTimes:
    """Phases of an engine on a GPU.

    Attributes:
        mode: transfers in or out, CUDA graph on or off, how the host waits, memory of the runtime.
        phases: medians by batch size.
    """

    mode: str
    phases: Mapping[int, Phases]


def median_call_s(engine: Engine, batch: Batch, calls: int) -> float:
    """Median seconds of `calls` calls after two untimed ones; for choosing, not for judging."""
    for _ in range(2):
        engine.embed(batch)
    return statistics.median(call_s(engine, batch) for _ in range(calls))


def call_s(engine: Engine, batch: Batch) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    engine.embed(batch)
    return time.perf_counter() - start


def gpu_times(engine: Engine, inputs: Mapping[int, Batch]) -> GpuTimes | None:
    """Phases of an engine on a GPU by batch size; None for one that does not tell."""
    if not isinstance(engine, ReportsPhases):
        return None
    phases = {size: median_phases(_phases(engine, batch)) for size, batch in inputs.items()}
    return GpuTimes(engine.mode, phases)


def _phases(engine: Any, batch: Batch) -> list[Phases]:
    """Of some calls, after as many to warm up."""
    found = []
    for _ in range(2 * _PHASED_CALLS):
        engine.embed(batch)
        found.append(engine.phases)
    return found[_PHASED_CALLS:]


def median_phases(calls: Sequence[Phases]) -> Phases:
    """The median of each phase over some calls, one at least."""
    taken = {f.name: [getattr(call, f.name) for call in calls] for f in fields(Phases)}
    return Phases(**{name: statistics.median(values) for name, values in taken.items()})
