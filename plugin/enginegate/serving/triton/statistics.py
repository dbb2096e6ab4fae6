"""What a server counted of a model's requests: records, and how they are read from its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from enginegate.errors import ServingError

_NS = 1e9
PHASES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Phase:
    """What a server counted of one phase of its requests.

    Attributes:
        count: how often.
        ns: nanoseconds in all.
    """

    count: int = 0
    ns: int = 0

    @property
    def mean_s(self) -> float:
        """Mean seconds; 0 where there was none."""
        return self.ns / self.count / _NS if self.count else 0.0

    def since(self, earlier: "Phase") -> "Phase":
        """The counts added after `earlier`."""
        return Phase(self.count - earlier.count, self.ns - earlier.ns)


@dataclass(frozen=True)
class ServerStatistics:
    """What a server counted for one model since it loaded it, or between two moments.

    Attributes:
        success: whole requests, from arrival to answer.
        fail: requests answered with an error.
        queue, compute_input, compute_infer, compute_output: parts of the successful requests.
        batches: number of executions by their batch size.
    """

    success: Phase
    fail: Phase
    queue: Phase
    compute_input: Phase
    compute_infer: Phase
    compute_output: Phase
    batches: Mapping[int, int] = field(default_factory=dict)

    def since(self, earlier: "ServerStatistics") -> "ServerStatistics":
        """The counts added after `earlier`; ServingError if the model was loaded anew meanwhile."""
        phases = {name: getattr(self, name).since(getattr(earlier, name)) for name in PHASES}
        sizes = sorted({*self.batches, *earlier.batches})
        counts = {s: self.batches.get(s, 0) - earlier.batches.get(s, 0) for s in sizes}
        if min([*(phase.count for phase in phases.values()), *counts.values()]) < 0:
            raise ServingError(
                "the server's statistics went backwards: the model was loaded anew while it was "
                "measured; measure again, and leave the server alone meanwhile"
            )
        return ServerStatistics(**phases, batches={size: n for size, n in counts.items() if n})


def read_statistics(answer: Mapping[str, Any]) -> ServerStatistics:
    """The counts in an answer of Triton's statistics extension, all versions together."""
    models = answer.get("model_stats", [])
    phases = {name: _phase(models, name) for name in PHASES}
    return ServerStatistics(**phases, batches=_batches(models))


def _phase(models: Sequence[Any], name: str) -> Phase:
    found = [model.get("inference_stats", {}).get(name, {}) for model in models]
    return Phase(
        sum(int(f.get("count", 0)) for f in found), sum(int(f.get("ns", 0)) for f in found)
    )


def _batches(models: Sequence[Any]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for entry in (entry for model in models for entry in model.get("batch_stats", [])):
        size = int(entry["batch_size"])
        counts[size] = counts.get(size, 0) + int(entry["compute_infer"]["count"])
    return counts
