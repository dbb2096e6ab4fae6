"""Where the time of a call on a GPU goes, and how it was taken: records, and their medians."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median


@dataclass(frozen=True)
class Phases:
    """Times of one call, in seconds, the first three from CUDA events.

    Attributes:
        h2d_s: inputs to the device.
        compute_s: the inference.
        d2h_s: outputs to the host.
        enqueue_s: what the processor needs to hand the inference over.
    """

    h2d_s: float
    compute_s: float
    d2h_s: float
    enqueue_s: float


@dataclass(frozen=True)
class GpuTimes:
    """Phases of an engine on a GPU.

    Attributes:
        mode: transfers in or out, CUDA graph on or off, how the host waits.
        phases: medians by batch size.
    """

    mode: str
    phases: Mapping[int, Phases]


def median_phases(calls: Sequence[Phases]) -> Phases:
    """The median of each phase over some calls, one at least."""
    return Phases(**{f.name: median(getattr(c, f.name) for c in calls) for f in fields(Phases)})
