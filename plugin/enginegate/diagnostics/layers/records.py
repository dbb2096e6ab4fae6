"""Layers blamed, and repairs tried."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Blamed:
    """What one layer does to the embeddings.

    Attributes:
        layer: its name.
        kind: its most telling operation.
        position: its place in the order of execution, from 0.
        local_error: the damage when only this layer runs as in the engine, all others in fp32.
        repaired_share: share of the engine's damage that goes when only this layer runs in fp32.
    """

    layer: str
    kind: str
    position: int
    local_error: float
    repaired_share: float


@dataclass(frozen=True)
class Step:
    """An engine that was tried on the way to a repair.

    Attributes:
        kept: layers in fp32.
        recovered_share: share of the damage that is gone.
        speedup: time of the reference / its own.
        enough: whether it is within the limits.
    """

    kept: tuple[str, ...]
    recovered_share: float
    speedup: float
    enough: bool


@dataclass(frozen=True)
class Repair:
    """The fewest layers to keep in fp32, found by search.

    Attributes:
        kept: their names; empty where no set of layers is enough.
        recovered_share: share of the damage that goes with them.
        speedup_before, speedup_after: time of the reference / the engine's, at batch 8.
        configuration: lines for pyproject.toml that keep them; empty where none is enough.
        steps: what was tried, fewest layers first.
    """

    kept: tuple[str, ...]
    recovered_share: float
    speedup_before: float
    speedup_after: float
    configuration: str
    steps: tuple[Step, ...]
