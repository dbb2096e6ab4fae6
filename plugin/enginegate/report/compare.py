"""Saved runs and published figures beside each other: all figures, and changes with intervals."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from enginegate.report.figures import Figures
from enginegate.report.numbers import NOTHING, loss, milliseconds, short, whole
from enginegate.report.page import Chart, Row, Section, Table
from enginegate.report.saved_run import SavedRun
from enginegate.report.sections.forest import Compared, forest
from enginegate.report.sections.sweeps import largest
from enginegate.report.table import engine_name
from enginegate.results import Result
from enginegate.speed import Change, Errors, Speed, anchor_of, change_of, describe

Source = SavedRun | Figures
HEADER = (
    "source",
    "model",
    "engine",
    "max |delta|",
    "1 - min cosine",
    "p50 ms",
    "texts/s",
    "largest served texts/s",
)
_SAME = (
    "method",
    "workload_sha256",
    "seq_len",
    "threads",
    "reference",
    "against",
    "deployment",
    "control",
    "power_limit",
)
_SIDES = Errors(0.025, 0.025)  # of a 95 % interval


def comparison(newest: Source, older: Sequence[Source]) -> Section:
    """The section of a page about several sources; empty for one."""
    if not older:
        return Section("compared", "")
    runs = [source for source in older if isinstance(source, SavedRun)]
    pairs = [(newest, run) for run in runs] if isinstance(newest, SavedRun) else []
    charts = [chart for pair in pairs for chart in _changes(*pair)]
    tables = [table for pair in pairs for table in _incomparable(*pair)]
    rows = tuple(row for source in (newest, *older) for row in _rows(source))
    return Section(
        anchor="compared",
        title="Compared",
        lead=("Figures of different machines or texts stand side by side; no ratio is made.",),
        charts=tuple(charts),
        tables=(Table("All engines side by side", HEADER, rows), *tables),
    )


def _rows(source: Source) -> Iterator[Row]:
    if isinstance(source, SavedRun):
        return (run_row(source.name, result) for result in source.results)
    return _figure_rows(source)


def run_row(name: str, result: Result) -> Row:
    """A row of `HEADER` about an engine of a run; `name` is the source."""
    deltas = result.accuracy.deltas if result.accuracy else None
    ordered = sorted(result.speeds, key=lambda speed: speed.batch)
    timed = [] if result.variant.served else ordered
    return (
        name,
        result.variant.model,
        engine_name(result.variant),
        short(deltas.max_abs) if deltas else NOTHING,
        loss(deltas.cosine_worst) if deltas else NOTHING,
        milliseconds(timed[0].p50_s) if timed else NOTHING,
        _per_s(result, timed[-1].texts_per_s) if timed else NOTHING,
        _per_s(result, result.load.largest_per_s) if result.load else NOTHING,
    )


def _per_s(result: Result, number: float) -> str:
    """A throughput, with what it counts where that is not texts."""
    row = result.context.words.row
    return whole(number) if row == "text" else f"{whole(number)} {row}s"


def _figure_rows(figures: Figures) -> Iterator[Row]:
    for sweep in figures.sweeps:
        delta, served = short(figures.deltas.get(sweep.name)), whole(largest(sweep))
        yield (figures.name, figures.model, sweep.name, delta, NOTHING, NOTHING, NOTHING, served)


def _matches(newest: SavedRun, older: SavedRun) -> Iterator[tuple[Result, Result]]:
    then = {result.variant.id: result for result in older.results}
    for now in newest.results:
        if now.variant.id in then:
            yield now, then[now.variant.id]


def _difference(newest: SavedRun, older: SavedRun, now: Result, then: Result) -> str:
    """The reason why two results cannot be compared; empty if they can."""
    if newest.machine != older.machine:
        return f"machine was {older.machine.id}, is {newest.machine.id}"
    after, before = asdict(now.context), asdict(then.context)
    changed = [name for name in _SAME if after[name] != before[name]]
    words = (f"{n} was {before[n] or NOTHING}, is {after[n] or NOTHING}" for n in changed)
    return ", ".join(words)


def _changes(newest: SavedRun, older: SavedRun) -> Iterator[Chart]:
    """Time now / time then, both relative to the reference of their own run."""
    rows = [
        Compared(
            f"{now.variant.model} {engine_name(now.variant)}, {now.cell} {batch}",
            str(now.variant.precision),
            change,
            (describe(change),),
        )
        for now, then in _matches(newest, older)
        if not _difference(newest, older, now, then)
        for batch, change in _common(now, then)
    ]
    if rows:
        yield forest(
            f"{newest.name} against {older.name}",
            "Right of the line at 0 is slower. Bars are 95 % intervals of time relative to the "
            "control, the scatter between two sessions included.",
            rows,
            ("engine", "change with interval"),
        )


def _common(now: Result, then: Result) -> Iterator[tuple[int, Change]]:
    before = {speed.batch: speed for speed in then.speeds}
    for speed in now.speeds:
        if speed.batch in before:
            yield speed.batch, _change(speed, before[speed.batch])


def _change(now: Speed, then: Speed) -> Change:
    anchor = anchor_of([then.log_ratios["p50"]])
    change = change_of(now.log_ratios["p50"], anchor, 0.0, _SIDES, once=True)
    return change if math.isfinite(change.ratio) else Change(1.0, 0.0, math.inf, 1.0, math.inf)


def _incomparable(newest: SavedRun, older: SavedRun) -> Iterator[Table]:
    differing = (
        (engine_name(now.variant), now.variant.model, _difference(newest, older, now, then))
        for now, then in _matches(newest, older)
    )
    rows = tuple(row for row in differing if row[2])
    if rows:
        title = f"Not compared: {newest.name} with {older.name}"
        yield Table(title, ("engine", "model", "reason"), rows)
