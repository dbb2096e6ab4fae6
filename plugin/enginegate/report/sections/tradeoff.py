"""Speed against quality: which engine is worth its loss."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from enginegate.accuracy import Deltas
from enginegate.report.numbers import listed, loss, span, times, whole
from enginegate.report.page import Chart, Table
from enginegate.report.saved_run import SavedRun
from enginegate.report.sections.vega import (
    Spec,
    colour,
    drawn_loss,
    layer,
    least_in_words,
    losses,
    number,
    points,
    shape,
    titled,
)
from enginegate.results import Result
from enginegate.speed import Speed


@dataclass(frozen=True)
class Point:
    """An engine by its loss and its speed.

    Attributes:
        name: as on every picture.
        loss: distance to the reference.
        speed: more is faster.
        said: both in words.
        low, high: interval of the speed; NaN where it is not known.
    """

    name: str
    loss: float
    speed: float
    said: str
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Axes:
    """Titles; `even` is the speed of the reference, where it is known."""

    loss: str
    speed: str
    even: float | None = None


def speed_against_quality(run: SavedRun) -> Iterator[Chart]:
    """One chart per model that has two engines at least, each with deltas and speeds."""
    for _, model, members in run.by_model():
        found = [found for result in members for found in measured(result)]
        if len(found) > 1:
            beside = found[0][0].context.timed_beside
            axes = Axes("1 - min cosine", f"times as fast as {beside}", 1.0)
            yield pareto(model, [_point(*engine) for engine in found], axes, _table(model, found))


def measured(result: Result) -> Iterator[tuple[Result, Deltas, Speed]]:
    """The engine with its deltas and its speed at the largest batch, beside the reference."""
    deltas = result.accuracy.deltas if result.accuracy else None
    beside_reference = not (result.variant.served or result.context.against)
    if deltas and result.speeds and beside_reference:
        yield result, deltas, max(result.speeds, key=lambda speed: speed.batch)


def _point(result: Result, deltas: Deltas, speed: Speed) -> Point:
    name, (estimate, low, high) = str(result.variant.precision), relative_speed(speed)
    said = f"{name}: {times(estimate)}, 1 - min cosine {loss(deltas.cosine_worst)}"
    return Point(name, 1 - deltas.cosine_worst, estimate, said, low, high)


def _table(model: str, found: Sequence[tuple[Result, Deltas, Speed]]) -> Table:
    rows, counted = [], f"{found[0][0].context.words.row}s"
    for result, deltas, speed in found:
        estimate, low, high = relative_speed(speed)
        told = (loss(deltas.cosine_worst), times(estimate), span(low, high))
        measured = (whole(speed.texts_per_s), str(speed.batch))
        rows.append((str(result.variant.precision), *told, *measured))
    beside = found[0][0].context.timed_beside.removeprefix("the ")
    header = ("engine", "1 - min cosine", f"speed to {beside}", "95 % interval", f"{counted}/s")
    return Table(titled(model, "speed against quality"), (*header, "batch"), tuple(rows))


def relative_speed(speed: Speed) -> tuple[float, float, float]:
    """The speedup with its interval of 95 %, each end NaN where it is not known."""
    low, estimate, high = speed.speedup
    return estimate, low or math.nan, high if math.isfinite(high) else math.nan


def frontier(engines: Sequence[Point]) -> list[Point]:
    """Those that no other one beats in both loss and speed, by loss."""
    best: list[Point] = []
    for point in sorted(engines, key=lambda point: (point.loss, -point.speed)):
        if not best or point.speed > best[-1].speed:
            best.append(point)
    return best


def pareto(model: str, engines: Sequence[Point], axes: Axes, table: Table) -> Chart:
    """Engines by loss and speed, with the line of those that no other one beats in both."""
    kept = [point.name for point in frontier(engines)]
    beaten = [point.name for point in engines if point.name not in kept]
    said = f"Worth having: {listed(kept)}."
    if beaten:
        said += f" Another engine is as near and faster, or nearer and as fast, as {_any(beaten)}."
    return Chart(
        title=titled(model, "speed against quality"),
        reading="Up is faster, left is nearer to the reference. "
        f"{said}{least_in_words(point.loss for point in engines)}",
        spec=_spec(engines, axes),
        table=table,
        height=320,
    )


def _any(names: Sequence[str]) -> str:
    return f"each of {listed(names)}" if len(names) > 1 else names[0]


def _values(engines: Sequence[Point]) -> list[dict[str, Any]]:
    return [
        {
            "name": point.name,
            "loss": drawn_loss(point.loss),
            "speed": point.speed,
            "low": point.low if math.isfinite(point.low) else point.speed,
            "high": point.high if math.isfinite(point.high) else point.speed,
            "said": point.said,
        }
        for point in engines
    ]


def _spec(engines: Sequence[Point], axes: Axes) -> Spec:
    names = [point.name for point in engines]
    x = losses(axes.loss, (point.loss for point in engines))
    y, ink = number("speed", axes.speed), colour(names)
    bar = {"y": number("low", axes.speed), "y2": {"field": "high"}, "color": ink}
    return {
        "data": {"values": _values(engines)},
        "encoding": {"x": x},
        "layer": [
            *([] if axes.even is None else [_even(axes.even)]),
            _edge(engines, y),
            layer("rule", bar, strokeWidth=2),
            points({"y": y, "color": ink, "shape": shape(names)}, size=130),
        ],
    }


def _even(speed: float) -> Spec:
    """A line where the reference is."""
    line = layer("rule", {"x": None, "y": {"datum": speed}}, strokeDash=[4, 4])
    return {"data": {"values": [{"one": 1}]}, **line}


def _edge(engines: Sequence[Point], y: Spec) -> Spec:
    edge = [{"loss": drawn_loss(point.loss), "speed": point.speed} for point in frontier(engines)]
    along = {"y": y, "order": {"field": "loss"}}
    line = layer("line", along, color="var(--soft)", interpolate="step-after")
    return {"data": {"values": edge}, **line}
