"""What the models cost, and what the machine allows: FLOPs, and the roofline with its points."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from enginegate.report.numbers import NOTHING, milliseconds, percent, short, whole
from enginegate.report.page import Chart, Row, Table
from enginegate.report.saved_run import SavedRun
from enginegate.report.sections.vega import (
    Spec,
    apart,
    colour,
    decades,
    layer,
    points,
    shape,
    titled,
)

_PARTS = ("total", "backbone", "head")
_CONVENTIONS = {"true": "all arithmetic", "matmul": "multiply-adds alone", "thop": "as thop counts"}
_HEIGHT = 360  # pixels
_BESIDE = 3.0  # factor of intensity that roofs are drawn beyond the points
_BOUND = {"never": "at no batch", "always": "at every batch"}

Engine = Mapping[str, Any]


def cost_tables(run: SavedRun) -> Iterator[Table]:
    """FLOPs of one text by every convention that was counted, and parameters."""
    rows = []
    for model, cost in run.whole.get("costs", {}).items():
        if "flops" in cost:
            rows += [_flops(model, name, cost) for name in _CONVENTIONS if name in cost["flops"]]
        else:
            rows.append((model, str(cost.get("not_counted", "")), *[NOTHING] * 5))
    header = ("model", "counted", "FLOPs of a text", "backbone", "head", "tokens", "parameters")
    if rows:
        yield Table("What one text costs", header, tuple(rows))


def _flops(model: str, name: str, cost: Mapping[str, Any]) -> Row:
    counts = (whole(cost["flops"][name].get(part)) for part in _PARTS)
    return (model, _CONVENTIONS[name], *counts, whole(cost["seq_len"]), whole(cost["parameters"]))


def rooflines(run: SavedRun) -> Iterator[Chart]:
    """A chart per model whose machine's ceilings are known."""
    found = run.whole.get("rooflines", {})
    for model, roofline in found.items():
        if roofline["engines"]:
            yield _chart(model if len(found) > 1 else "", roofline)


def _chart(model: str, roofline: Mapping[str, Any]) -> Chart:
    device, engines = roofline["device"], roofline["engines"]
    rows = tuple(_point(engine, point) for engine in engines for point in engine["points"])
    header = ("engine", "batch", "FLOP/byte", "floor ms", "measured ms", "reached", "efficiency")
    return Chart(
        title=titled(model, "roofline"),
        reading=(
            f"Ceilings of {device['name']} ({device['source']}); traffic counted: "
            f"{roofline['traffic']}. A point on its line uses all that the machine has; left of "
            "the bend memory is the limit. Numbers are batch sizes, where there is room for them."
        ),
        spec=_spec(engines),
        table=Table(titled(model, "roofline, measured points"), header, rows),
        height=_HEIGHT,
    )


def _point(engine: Engine, point: Mapping[str, Any]) -> Row:
    reached = point["flops_per_s"]
    return (
        engine["precision"],
        str(point["batch"]),
        short(point["intensity"]),
        milliseconds(point["floor_s"]),
        milliseconds(point["measured_s"]),
        NOTHING if reached is None else f"{short(reached / 1e9)} GFLOP/s",
        percent(point["efficiency"]),
    )


def _spec(engines: Sequence[Engine]) -> Spec:
    names = [engine["precision"] for engine in engines]
    measured = [value for engine in engines for value in _measured(engine)]
    roofs = [value for engine in engines for value in _roof(engine, measured)]
    intensity = decades(value["intensity"] for value in roofs)
    reached = decades(value["reached"] for value in [*roofs, *measured])
    x = {"field": "intensity", "title": "FLOP per byte", **intensity}
    y = {"field": "reached", "title": "GFLOP/s", **reached}
    places = [(value["intensity"], value["reached"]) for value in measured]
    batches = [str(value["batch"]) for value in measured]
    shown = apart(batches, places, (intensity, reached), _HEIGHT)
    measured = [{**value, "shown": text} for value, text in zip(measured, shown, strict=True)]
    named = {"text": {"field": "shown"}, "color": {"value": "var(--soft)"}}
    along = {"order": {"field": "intensity"}}
    return {
        "data": {"values": measured},
        "encoding": {"x": x, "y": y, "color": colour(names)},
        "layer": [
            {"data": {"values": roofs}, **layer("line", along, strokeWidth=2)},
            points({"shape": shape(names)}),
            layer("text", named, align="left", dx=8, dy=4, fontSize=11),
        ],
    }


def _measured(engine: Engine) -> Iterator[dict[str, Any]]:
    for point in engine["points"]:
        if point["flops_per_s"]:
            yield {
                "name": engine["precision"],
                "batch": point["batch"],
                "intensity": point["intensity"],
                "reached": point["flops_per_s"] / 1e9,
                "said": f"{engine['precision']}, batch {point['batch']}: "
                f"{percent(point['efficiency'])} of the limit",
            }


def _roof(engine: Engine, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """From the left through the ridge to the right, as far as there are points and ridges."""
    ridge = engine["ridge_flops_per_byte"]
    around = [ridge, *(point["intensity"] for point in points)]
    places = (min(around) / _BESIDE, ridge, max(around) * _BESIDE)
    peak, bandwidth = engine["peak_per_s"], engine["bytes_per_s"]
    return [
        {
            "name": engine["precision"],
            "intensity": place,
            "reached": min(peak, bandwidth * place) / 1e9,
        }
        for place in places
    ]


def bound_tables(run: SavedRun) -> Iterator[Table]:
    """Up to which batch each part waits for memory."""
    rows = tuple(
        (
            model,
            engine["precision"],
            part["name"],
            _BOUND.get(part["memory_bound"], f"up to batch {part['up_to_batch']}"),
        )
        for model, roofline in run.whole.get("rooflines", {}).items()
        for engine in roofline["engines"]
        for part in engine["parts"]
    )
    if rows:
        header = ("model", "engine", "part", "memory-bound")
        yield Table("Memory-bound up to which batch", header, rows, folded=True)
