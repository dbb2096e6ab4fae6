"""Costs and rooflines as JSON; `docs/report.schema.json` describes both."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from enginegate.diagnostics.roofline.flops import (
    BACKBONE,
    HEAD,
    Cost,
    Layer,
    matmul_flops,
    thop_flops,
    true_flops,
)
from enginegate.diagnostics.roofline.polynomial import Polynomial
from enginegate.diagnostics.roofline.roofline import Point, Roofline

Count = Callable[[Iterable[Layer]], Polynomial]

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_COUNTS: dict[str, Count] = {"true": true_flops, "matmul": matmul_flops, "thop": thop_flops}


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
