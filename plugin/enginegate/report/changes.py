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
from enginegate.report.wording import times
from enginegate.results import Result, Speed
from enginegate.stats import Change
from enginegate.table import engine_name, milliseconds
from enginegate.variants import SERVED, precision_of
from enginegate.verdict import describe

_ROW_HEIGHT = 26  # pixels
_BEYOND = 1.1
_LETTER = 7  # pixels of a label, so that the widest font has room

Ends = tuple[float, float]


def against_baseline(results: Sequence[Result]) -> Iterator[Chart]:
    """A forest plot per model: ratio of time with its interval, a row per engine and batch size."""
    for model, members in groupby(results, key=lambda result: result.variant.model):
        rows = [(r, speed, speed.change) for r in members for speed in r.speeds if speed.change]
        if rows:
            yield _forest(model, rows)


def _label(result: Result, speed: Speed) -> str:
    return f"{engine_name(result.variant)}, {result.cell} {speed.batch}"


def _forest(model: str, rows: Sequence[tuple[Result, Speed, Change]]) -> Chart:
    edges = _edges([change for _, _, change in rows])
    return Chart(
        title=f"{model}: time now / time in the baseline",
        reading=(
            "Right of the line at 0 is slower. The bar is the interval that the verdict is made "
            "of: wholly beyond the limit is regressed."
        ),
        spec=_forest_spec([_forest_value(*row, edges) for row in rows]),
        table=Table(
            f"{model}: change against the baseline",
            ("engine", "change with interval", "p50 ms", "verdict"),
            tuple(_forest_row(*row) for row in rows),
        ),
        height=_ROW_HEIGHT * len(rows) + 60,
    )


def _forest_row(result: Result, speed: Speed, change: Change) -> Row:
    verdict = str(speed.verdict)
    return _label(result, speed), describe(change), milliseconds(speed.p50_s), verdict


def _forest_value(result: Result, speed: Speed, change: Change, edges: Ends) -> dict[str, Any]:
    low, high = change.low, change.high
    return {
        "label": _label(result, speed),
        "name": str(result.variant.precision),
        "change": _per_cent(change.ratio),
        "low": _per_cent(low if low > 0 else edges[0]),
        "high": _per_cent(high if math.isfinite(high) else edges[1]),
        "said": f"{_label(result, speed)}: {describe(change)}",
    }


def _per_cent(ratio: float) -> float:
    return 100 * (ratio - 1)


def _edges(changes: Sequence[Change]) -> Ends:
    """As far as an end is drawn that is not known: a little beyond all that are known."""
    known = [end for c in changes for end in (c.ratio, c.low, c.high) if 0 < end < math.inf]
    return min(known) / _BEYOND, max(known) * _BEYOND


def _forest_spec(values: list[dict[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(value["name"] for value in values))
    room = _LETTER * max(len(value["label"]) for value in values)
    y_axis = {"labelLimit": 0, "ticks": False, "minExtent": room}
    y = {"field": "label", "type": "nominal", "sort": None, "title": None, "axis": y_axis}
    colour = {"field": "name", "scale": colours(names), "legend": None}
    x_axis = {"format": "+d", "tickCount": 6, "labelOverlap": True}
    axis = {"type": "quantitative", "title": "change of time, per cent", "axis": x_axis}
    return {
        "data": {"values": values},
        "encoding": {"y": y},
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
