"""The roofline: what work and traffic of a model allow on a device, at every batch. Pure.

A call takes at least max(FLOPs / peak, bytes / bandwidth), and part after part at least the sum of
that over the parts (Williams, Waterman, Patterson: Roofline, 2009). Intensity is FLOPs / bytes; the
ridge, peak / bandwidth, is the intensity from which on work is the limit and not traffic.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from enginegate.diagnostics.roofline.device import Device, Memory
from enginegate.diagnostics.roofline.flops import (
    BACKBONE,
    HEAD,
    Cost,
    Layer,
    matmul_flops,
    thop_flops,
    true_flops,
)
from enginegate.diagnostics.roofline.polynomial import Polynomial, constant, total

Count = Callable[[Iterable[Layer]], Polynomial]

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_COUNTS: dict[str, Count] = {"true": true_flops, "matmul": matmul_flops, "thop": thop_flops}
_FAR = 1 << 40


class Traffic(StrEnum):
    """What travels from and to memory in a call.

    WEIGHTS: every weight once; activations stay in a cache.
    FUSED: weights, and what matrix products read and write; the rest is done on the way.
    UNFUSED: weights, and what every operator reads and writes that is no mere view.
    """

    WEIGHTS = "weights"
    FUSED = "fused"
    UNFUSED = "unfused"


@dataclass(frozen=True)
class Bound:
    """Up to which batch size traffic is the limit.

    Attributes:
        kind: `never`, `up to` or `always`.
        up_to: the batch size of `up to`; None otherwise.
    """

    kind: str
    up_to: int | None = None

    def __str__(self) -> str:
        """In words."""
        if self.up_to is None:
            return f"{self.kind} memory-bound"
        return f"memory-bound up to batch {self.up_to}"


@dataclass(frozen=True)
class Setting:
    """What a roofline is of.

    Attributes:
        device: its ceilings.
        precision: whose peak counts.
        element_bytes: of a weight and of an activation.
        traffic: what is assumed to travel.
        seq: tokens of a text.
    """

    device: Device
    precision: str
    element_bytes: int
    traffic: Traffic
    seq: int

    @property
    def peak_per_s(self) -> float:
        """FLOP/s. Raises OptionError if the device has none for the precision."""
        return self.device.peak_per_s(self.precision)


@dataclass(frozen=True)
class Point:
    """One batch size of a whole model.

    Attributes:
        batch: texts in a call.
        intensity: FLOP per byte.
        flops: true FLOPs of a call.
        floor_s: seconds that no call is faster than.
        measured_s: what a call takes; None where that was not measured.
    """

    batch: int
    intensity: float
    flops: int
    floor_s: float
    measured_s: float | None

    @property
    def efficiency(self) -> float | None:
        """Share of the limit that was reached; above 1 a ceiling is wrong."""
        return self.floor_s / self.measured_s if self.measured_s else None

    @property
    def flops_per_s(self) -> float | None:
        """FLOP/s that were reached."""
        return self.flops / self.measured_s if self.measured_s else None

    @property
    def warning(self) -> str:
        """A warning about it; empty for none."""
        if self.efficiency is None or self.efficiency <= 1:
            return ""
        return (
            f"batch {self.batch} is {self.efficiency:.2f} x as fast as the limit: that cannot be, "
            "a ceiling is stated or measured too low; measure it again on a quiet machine (remove "
            "`ceiling` from the engine cache)"
        )


@dataclass(frozen=True)
class Roofline:
    """The roofline of a model in one setting.

    Attributes:
        cost: of the model.
        setting: device, precision, traffic and length.
    """

    cost: Cost
    setting: Setting

    @property
    def memory(self) -> Memory:
        """The level that holds all weights: a call reads each once, so no smaller one helps."""
        elements = sum(layer.weights for layer in self.cost.layers)
        return self.setting.device.holding(elements * self.setting.element_bytes)

    @property
    def ridge(self) -> float:
        """FLOP per byte from which on work is the limit."""
        return self.setting.peak_per_s / self.memory.bytes_per_s

    @property
    def parts(self) -> dict[str, tuple[Layer, ...]]:
        """Backbone, head and each block that there is, by name."""
        named = {BACKBONE: self.cost.of(BACKBONE), HEAD: self.cost.of(HEAD), **self.cost.blocks}
        return {name: layers for name, layers in named.items() if true_flops(layers)}

    def bytes_of(self, layers: Sequence[Layer]) -> Polynomial:
        """Bytes that layers move in a call."""
        weights = constant(sum(layer.weights for layer in layers))
        moved = {
            Traffic.WEIGHTS: Polynomial(),
            Traffic.FUSED: total(layer.fused for layer in layers),
            Traffic.UNFUSED: total(layer.unfused for layer in layers),
        }
        return (weights + moved[self.setting.traffic]).scaled(self.setting.element_bytes)

    def intensity(self, layers: Sequence[Layer], batch: int) -> float:
        """FLOP per byte; infinite where nothing travels."""
        seq = self.setting.seq
        moved = self.bytes_of(layers)(batch, seq)
        return true_flops(layers)(batch, seq) / moved if moved else math.inf

    def bound(self, layers: Sequence[Layer]) -> Bound:
        """Up to which batch size traffic limits layers. Intensity never falls with the batch."""
        if self.intensity(layers, 1) >= self.ridge:
            return Bound("never")
        if self.intensity(layers, _FAR) < self.ridge:
            return Bound("always")
        low, high = 1, _FAR  # bound by traffic, not bound by it
        while high - low > 1:
            middle = (low + high) // 2
            is_bound = self.intensity(layers, middle) < self.ridge
            low, high = (middle, high) if is_bound else (low, middle)
        return Bound("up to", low)

    def floor_s(self, batch: int) -> float:
        """Seconds that no call with so many texts is faster than: the sum over the layers."""
        return sum(self._layer_s(layer, batch) for layer in self.cost.layers)

    def point(self, batch: int, measured_s: float | None = None) -> "Point":
        """A batch size, with what was measured there."""
        flops = true_flops(self.cost.layers)(batch, self.setting.seq)
        intensity = self.intensity(self.cost.layers, batch)
        return Point(batch, intensity, flops, self.floor_s(batch), measured_s)

    def _layer_s(self, layer: Layer, batch: int) -> float:
        seq = self.setting.seq
        work_s = layer.flops(batch, seq) / self.setting.peak_per_s
        return max(work_s, self.bytes_of([layer])(batch, seq) / self.memory.bytes_per_s)


def cost_as_json(cost: Cost, seq_len: int) -> dict[str, Any]:
    """All counts at one text of `seq_len` tokens, and the formulas for every other size."""
    parts = {"total": cost.layers, BACKBONE: cost.of(BACKBONE), HEAD: cost.of(HEAD)}
    counted = {
        name: {part: count(layers) for part, layers in parts.items()}
        for name, count in _COUNTS.items()
    }
    return {
        "seq_len": seq_len,
        "parameters": sum(layer.parameters for layer in cost.layers),
        "flops": {n: {p: f(1, seq_len) for p, f in by.items()} for n, by in counted.items()},
        "formulas": {n: {p: str(f) for p, f in by.items()} for n, by in counted.items()},
        "uncounted": list(cost.uncounted),
        "layers": [_layer(layer, seq_len) for layer in cost.layers],
    }


def _layer(layer: Layer, seq_len: int) -> dict[str, Any]:
    flops = layer.flops(1, seq_len)
    matmul, thop = layer.matmul(1, seq_len), layer.thop(1, seq_len)
    return {
        "name": layer.name,
        "block": layer.block,
        "part": layer.part,
        "kinds": list(layer.kinds),
        "parameters": layer.parameters,
        "flops": {"true": flops, "matmul": matmul, "thop": thop},
        "flops_per_token": flops / seq_len,
    }


def engine_as_json(asked: str, roofline: Roofline, measured: Mapping[int, float]) -> dict[str, Any]:
    """The roofline of an engine, with its seconds of a call by batch size."""
    setting, memory = roofline.setting, roofline.memory
    points = [roofline.point(b, measured.get(b)) for b in sorted({*BATCHES, *measured})]
    return {
        "precision": asked,
        "computes_in": setting.precision,
        "element_bytes": setting.element_bytes,
        "peak_per_s": setting.peak_per_s,
        "memory": memory.name,
        "bytes_per_s": memory.bytes_per_s,
        "ridge_flops_per_byte": roofline.ridge,
        "parts": [_part(roofline, *part) for part in roofline.parts.items()],
        "points": [_point(point) for point in points],
        "warnings": [point.warning for point in points if point.warning],
    }


def _part(roofline: Roofline, name: str, layers: tuple[Layer, ...]) -> dict[str, Any]:
    bound = roofline.bound(layers)
    found = ((batch, roofline.intensity(layers, batch)) for batch in BATCHES)
    return {
        "name": name,
        "memory_bound": bound.kind,
        "up_to_batch": bound.up_to,
        "intensities": [
            {"batch": b, "flops_per_byte": x if math.isfinite(x) else None} for b, x in found
        ],
    }


def _point(point: Point) -> dict[str, Any]:
    return {
        "batch": point.batch,
        "intensity": point.intensity if math.isfinite(point.intensity) else None,
        "floor_s": point.floor_s,
        "measured_s": point.measured_s,
        "flops_per_s": point.flops_per_s,
        "efficiency": point.efficiency,
    }
