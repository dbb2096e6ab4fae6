"""Change against the baseline, and over time."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from enginegate.errors import BaselineError
from enginegate.history import Note, Series, read_history
from enginegate.report.drawing import colours
from enginegate.report.page import Chart, Row, Table
from enginegate.report.wording import NOTHING, times
from enginegate.results import Result, Speed
from enginegate.table import engine_name, milliseconds
from enginegate.variants import SERVED, precision_of
from enginegate.verdict import describe

_ROW_HEIGHT = 26  # pixels
_WIDEST = 1.0  # of a logarithm: an interval is drawn up to here, and told in the table


def against_baseline(results: Sequence[Result]) -> Iterator[Chart]:
    """A forest plot per model: ratio of time with its interval, a row per engine and batch size."""
    for model, members in groupby(results, key=lambda result: result.variant.model):
        rows = [(r, speed) for r in members for speed in r.speeds if speed.change]
        if rows:
            yield _forest(model, rows)


def _label(result: Result, speed: Speed) -> str:
    return f"{engine_name(result.variant)}, {result.cell} {speed.batch}"


def _forest(model: str, rows: Sequence[tuple[Result, Speed]]) -> Chart:
    return Chart(
        title=f"{model}: time now / time in the baseline",
        reading=(
            "Right of the line at 0 is slower. The bar is the interval that the verdict is made "
            "of: wholly beyond the limit is regressed."
        ),
        spec=_forest_spec([_forest_value(*row) for row in rows]),
        table=Table(
            f"{model}: change against the baseline",
            ("engine", "change with interval", "p50 ms", "verdict"),
            tuple(_forest_row(*row) for row in rows),
        ),
        height=_ROW_HEIGHT * len(rows) + 60,
    )


def _forest_row(result: Result, speed: Speed) -> Row:
    said = describe(speed.change) if speed.change else NOTHING
    return _label(result, speed), said, milliseconds(speed.p50_s), str(speed.verdict)


def _forest_value(result: Result, speed: Speed) -> dict[str, Any]:
    change = speed.change
    ratios = (change.ratio, change.low, change.high) if change else (1.0, 1.0, 1.0)
    middle, low, high = (100 * math.expm1(_bounded(ratio)) for ratio in ratios)
    return {
        "label": _label(result, speed),
        "name": str(result.variant.precision),
        "change": middle,
        "low": low,
        "high": high,
        "said": f"{_label(result, speed)}: {describe(change)}" if change else "",
    }


def _bounded(ratio: float) -> float:
    """Logarithm of a ratio within what is drawn; an unknown end lies at the edge."""
    if not math.isfinite(ratio):
        return _WIDEST
    return max(-_WIDEST, min(_WIDEST, math.log(ratio))) if ratio > 0 else -_WIDEST


def _forest_spec(values: list[dict[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(value["name"] for value in values))
    y = {"field": "label", "type": "nominal", "sort": None, "title": None}
    colour = {"field": "name", "scale": colours(names), "legend": None}
    axis = {"type": "quantitative", "title": "change of time, per cent"}
    return {
        "data": {"values": values},
        "encoding": {"y": {**y, "axis": {"labelLimit": 220, "ticks": False}}},
        "layer": [
            {"mark": {"type": "rule"}, "encoding": {"x": {"datum": 0}, "y": None}},
            {
                "mark": {"type": "rule", "strokeWidth": 3},
                "encoding": {
                    "x": {"field": "low", **axis},
                    "x2": {"field": "high"},
                    "color": colour,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {
                    "x": {"field": "change", **axis},
                    "color": colour,
                    "description": {"field": "said"},
                },
            },
        ],
    }


def over_time(machine: str, models: Sequence[str], baselines: Path) -> Iterator[Chart]:
    """A chart per model that has a history of two runs on this machine at least."""
    for model in models:
        try:
            series = [s for s in read_history(baselines, model) if s.machine == machine]
        except BaselineError:  # without a history, or with a broken one, there is nothing to draw
            continue
        known = [found for found in _largest_batch(series) if len(found.notes) > 1]
        if known:
            yield _history(model, known)


def _largest_batch(series: Sequence[Series]) -> Iterator[Series]:
    """One series per variant: that of its largest batch size."""
    for _, group in groupby(series, key=lambda found: found.notes[0].variant):
        yield max(group, key=lambda found: found.notes[0].batch)


def _named(note: Note) -> str:
    served = " served" if note.variant.endswith(SERVED) else ""
    return f"{precision_of(note.variant)}{served}"


def _history(model: str, series: Sequence[Series]) -> Chart:
    notes = [note for found in series for note in found.notes]
    rows = tuple(
        (n.date[:16], n.commit, _named(n), str(n.batch), times(math.exp(-n.log_ratio)))
        for n in notes
    )
    header = ("date", "commit", "engine", "batch", "speed to reference")
    return Chart(
        title=f"{model}: speed over the runs on this machine",
        reading="One point a run, oldest first; up is faster than the reference.",
        spec=_history_spec(series),
        table=Table(f"{model}: history", header, rows),
        height=240,
    )


def _history_spec(series: Sequence[Series]) -> dict[str, Any]:
    values = [
        {
            "run": number,
            "name": _named(note),
            "speed": math.exp(-note.log_ratio),
            "said": f"{_named(note)} {note.date[:16]} {note.commit}",
        }
        for found in series
        for number, note in enumerate(found.notes, start=1)
    ]
    names = list(dict.fromkeys(_named(found.notes[0]) for found in series))
    whole_runs = {"title": "run", "axis": {"format": "d", "tickMinStep": 1}}
    return {
        "data": {"values": values},
        "mark": {"type": "line", "point": {"filled": True, "size": 60}},
        "encoding": {
            "x": {"field": "run", "type": "quantitative", "scale": {"zero": False}, **whole_runs},
            "y": {
                "field": "speed",
                "type": "quantitative",
                "title": "times as fast as the reference",
            },
            "color": {"field": "name", "type": "nominal", "scale": colours(names)},
            "description": {"field": "said"},
        },
    }
