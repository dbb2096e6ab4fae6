"""Change against the baseline, and over time."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from enginegate.baselines import Note, Series, change_points, read_history
from enginegate.errors import BaselineError
from enginegate.report.numbers import milliseconds, times
from enginegate.report.page import Chart, Table
from enginegate.report.saved_run import SavedRun
from enginegate.report.sections.forest import Compared, forest
from enginegate.report.sections.vega import Spec, colour, layer, number, titled
from enginegate.report.table import engine_name
from enginegate.results import Result
from enginegate.speed import Change, Speed, describe
from enginegate.variants import SERVED, precision_of

_TICKS = 12
_READING = (
    "Right of the line at 0 is slower. The bar is the interval that the verdict is made of: "
    "wholly beyond the dashed limit is regressed. It is drawn from half to twice the time at most."
)


def against_baseline(run: SavedRun) -> Iterator[Chart]:
    """A forest plot per model: ratio of time with its interval, a row per engine and batch size."""
    limit = run.whole["allowed"]["p50"]
    for _, model, members in run.by_model():
        known = [(r, s, s.change) for r in members for s in r.speeds if s.change]
        if known:
            header = ("engine", "change with interval", "p50 ms", "verdict")
            title = titled(model, "time now / time in the baseline")
            yield forest(title, _READING, [_compared(*row) for row in known], header, limit)


def _compared(result: Result, speed: Speed, change: Change) -> Compared:
    label = f"{engine_name(result.variant)}, {result.cell} {speed.batch}"
    told = (describe(change), milliseconds(speed.p50_s), str(speed.verdict))
    return Compared(label, str(result.variant.precision), change, told)


_COLUMNS = ("date", "commit", "engine", "batch", "p50 ms", "texts/s", "speedup")


def over_time(run: SavedRun, baselines: Path) -> Iterator[Chart]:
    """A chart per model that has a history of two runs on this machine at least."""
    for model, shown, _ in run.by_model():
        try:
            series = [s for s in read_history(baselines, model) if s.machine == run.machine.id]
        except BaselineError:  # without a history, or with a broken one, there is nothing to draw
            continue
        known = [found for found in _largest_batch(series) if len(found.notes) > 1]
        if known:
            title = titled(shown, "speed over the runs on this machine")
            yield history_chart(title, titled(shown, "history"), known)


def _largest_batch(series: Sequence[Series]) -> Iterator[Series]:
    """One series per variant: that of its largest batch size."""
    for _, group in groupby(series, key=lambda found: found.notes[0].variant):
        yield max(group, key=lambda found: found.notes[0].batch)


def _named(note: Note) -> str:
    served = " served" if note.variant.endswith(SERVED) else ""
    return f"{precision_of(note.variant)}{served}"


def history_chart(title: str, caption: str, series: Sequence[Series]) -> Chart:
    """The speed over the runs, a line per series, with dashes where it changed."""
    rows = tuple(_row(note) for found in series for note in found.notes)
    steps = [step for found in series for step in _steps(found)]
    dashed = " Dashed: where it changed." if steps else ""
    return Chart(
        title=title,
        reading=f"One point a run, oldest first; up is faster than what it ran beside.{dashed}",
        spec=_history_spec(series, steps),
        table=Table(caption, _COLUMNS, rows),
        height=240,
    )


def latency_chart(title: str, series: Sequence[Series]) -> Chart:
    """The median call over the runs, with dashes where the speed changed."""
    rows = tuple(_row(note) for found in series for note in found.notes)
    steps = [step for found in series for step in _steps(found)]
    return Chart(
        title=title,
        reading="One point a run, oldest first; times follow the machine's state too.",
        spec=_history_spec(series, steps, "p50_ms", "p50 ms"),
        table=Table(title, _COLUMNS, rows),
        height=240,
    )


def _row(note: Note) -> tuple[str, ...]:
    return (
        note.date[:16],
        note.commit,
        _named(note),
        str(note.batch),
        milliseconds(note.p50_s),
        f"{note.texts_per_s:.4g}",
        times(math.exp(-note.log_ratio)),
    )


def _steps(found: Series) -> Iterator[dict[str, object]]:
    """Places between two runs where the level changed."""
    for index in change_points(found.log_ratios):
        yield {"run": index + 0.5, "name": _named(found.notes[0])}


def _history_spec(
    series: Sequence[Series],
    steps: Sequence[Spec],
    field: str = "speed",
    axis: str = "times as fast as what it ran beside",
) -> Spec:
    values = [
        {
            "run": number_of_run,
            "name": _named(note),
            "speed": math.exp(-note.log_ratio),
            "p50_ms": 1000 * note.p50_s,
            "said": f"{_named(note)} {note.date[:16]} {note.commit}",
        }
        for found in series
        for number_of_run, note in enumerate(found.notes, start=1)
    ]
    names = list(dict.fromkeys(_named(found.notes[0]) for found in series))
    last = max(len(found.notes) for found in series)
    ticks = list(range(1, last + 1, 1 + last // _TICKS))
    runs = {"scale": {"zero": False}, "axis": {"format": "d", "values": ticks}}
    x = number("run", "run", **runs)
    line = {
        "x": x,
        "y": number(field, axis, scale={"zero": False}),
        "description": {"field": "said"},
    }
    dashes = {"data": {"values": steps}, **layer("rule", {"x": x}, strokeDash=[4, 4])}
    return {
        "data": {"values": values},
        "encoding": {"color": colour(names)},
        "layer": [
            layer("line", line, point={"filled": True, "size": 60}),
            *([dashes] if steps else []),
        ],
    }
