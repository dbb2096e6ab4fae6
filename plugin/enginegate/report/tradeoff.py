"""Speed against quality: which engine is worth its loss."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

from enginegate.report.drawing import colours, shapes
from enginegate.report.page import Chart, Table
from enginegate.report.wording import listed, loss, span, times, whole
from enginegate.results import Result, Speed
from enginegate.stats import Errors, bounds
from enginegate.variants import SERVED

_LEAST_LOSS = 1e-7  # what float32 leaves of 1 - cosine; the axis is logarithmic
_SIDES = Errors(0.025, 0.025)


@dataclass(frozen=True)
class Point:
    """An engine by its loss and its speed.

    Attributes:
        name: as on every picture.
        cosine: of the worst text.
        speed: times as fast as the reference.
        low, high: its 95 % interval over the replicates.
        texts_per_s: at the same batch size.
        batch: texts per call.
    """

    name: str
    cosine: float
    speed: float
    low: float
    high: float
    texts_per_s: float
    batch: int

    @property
    def loss(self) -> float:
        """1 - cosine, as drawn."""
        return max(1 - self.cosine, _LEAST_LOSS)


def speed_against_quality(results: Sequence[Result]) -> Iterator[Chart]:
    """One chart per model that has two engines at least, each with deltas and speeds."""
    for model, members in groupby(results, key=lambda result: result.variant.model):
        points = [point for result in members for point in _point(result)]
        if len(points) > 1:
            yield _chart(model, points)


def _point(result: Result) -> Iterator[Point]:
    deltas = result.accuracy.deltas if result.accuracy else None
    beside_reference = not (result.variant.key.endswith(SERVED) or result.context.against)
    if deltas and result.speeds and beside_reference:
        speed = max(result.speeds, key=lambda speed: speed.batch)
        estimate, low, high = relative_speed(speed)
        name = str(result.variant.precision)
        per_s, batch = speed.texts_per_s, speed.batch
        yield Point(name, deltas.cosine_worst, estimate, low, high, per_s, batch)


def relative_speed(speed: Speed) -> tuple[float, float, float]:
    """Time of the yardstick / time of the engine with its 95 % interval over the replicates."""
    logs = speed.log_ratios["p50"]
    low, high = bounds(logs, _SIDES, once=True)
    return math.exp(-fmean(logs)), _exp(-high), _exp(-low)


def _exp(value: float) -> float:
    return math.exp(value) if math.isfinite(value) else math.nan


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other one beats in both loss and speed, by loss."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.loss, -point.speed)):
        if not best or point.speed > best[-1].speed:
            best.append(point)
    return best


def _chart(model: str, points: Sequence[Point]) -> Chart:
    kept = [point.name for point in frontier(points)]
    beaten = [point.name for point in points if point.name not in kept]
    said = f"Worth having: {listed(kept)}."
    if beaten:
        said += f" Another engine is both nearer and faster than {listed(beaten)}."
    return Chart(
        title=f"{model}: speed against quality",
        reading=f"Up is faster, left is nearer to the reference. {said}",
        spec=_spec(points),
        table=_table(model, points),
        height=320,
    )


def _table(model: str, points: Sequence[Point]) -> Table:
    rows = (
        (
            point.name,
            loss(point.cosine),
            times(point.speed),
            span(point.low, point.high),
            whole(point.texts_per_s),
            str(point.batch),
        )
        for point in points
    )
    header = ("engine", "1 - worst cosine", "speed to reference", "95 % interval", "texts/s")
    return Table(f"{model}: speed against quality", (*header, "batch"), tuple(rows))


def _values(points: Sequence[Point]) -> list[dict[str, Any]]:
    return [
        {
            "name": point.name,
            "loss": point.loss,
            "speed": point.speed,
            "low": point.low if math.isfinite(point.low) else point.speed,
            "high": point.high if math.isfinite(point.high) else point.speed,
            "said": f"{point.name}: {times(point.speed)}, 1 - worst cosine {loss(point.cosine)}",
        }
        for point in points
    ]


def _spec(points: Sequence[Point]) -> dict[str, Any]:
    names = [point.name for point in points]
    edge = [{"loss": point.loss, "speed": point.speed} for point in frontier(points)]
    x = {"field": "loss", "type": "quantitative", "scale": {"type": "log"}, **_LOSS_AXIS}
    y = {"field": "speed", "type": "quantitative", "title": "times as fast as the reference"}
    colour = {"field": "name", "scale": colours(names), "legend": None}
    shape = {"field": "name", "scale": shapes(names), "legend": None}
    return {
        "data": {"values": _values(points)},
        "encoding": {"x": x},
        "layer": [
            {
                "data": {"values": [{"one": 1}]},
                "mark": {"type": "rule", "strokeDash": [4, 4]},
                "encoding": {"x": None, "y": {"datum": 1}},
            },
            {
                "data": {"values": edge},
                "mark": {"type": "line", "color": "var(--soft)", "interpolate": "step-after"},
                "encoding": {"y": y, "order": {"field": "loss"}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 130, "opacity": 1},
                "encoding": {"y": y, "color": colour, "shape": shape, **_DESCRIBED},
            },
            _labels(y, "datum.name != 'best'", dy=-9),
            _labels(y, "datum.name == 'best'", dy=14),
        ],
    }


def _labels(y: dict[str, Any], which: str, dy: int) -> dict[str, Any]:
    """Names beside the points; `best` lies where the precision lies that it took."""
    return {
        "transform": [{"filter": which}],
        "mark": {"type": "text", "align": "left", "dx": 11, "dy": dy, "fontWeight": 600},
        "encoding": {"y": y, "text": {"field": "name"}},
    }


_DESCRIBED = {"description": {"field": "said"}}
_DECADES = [10.0**power for power in range(-7, 1)]
_LOSS_AXIS = {
    "title": "1 - cosine of the worst text",
    "axis": {"format": ".0e", "values": _DECADES},
}
