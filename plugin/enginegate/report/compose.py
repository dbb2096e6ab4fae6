"""From saved runs to a page: which sections there are, and in which order."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from enginegate.report.changes import against_baseline, over_time
from enginegate.report.decision import Decision, decide
from enginegate.report.embeddings import distributions, rankings, worst_texts
from enginegate.report.hardware import bound_tables, cost_tables, rooflines
from enginegate.report.layers import blame_charts, repairs
from enginegate.report.overview import all_rows, changed_rows
from enginegate.report.page import Matrix, Page, Section
from enginegate.report.proof import proof
from enginegate.report.saved_run import SavedRun
from enginegate.report.sweeps import Sweep, load_charts, what_sweeps_say
from enginegate.report.tradeoff import speed_against_quality
from enginegate.report.wording import counted, listed
from enginegate.results import Result
from enginegate.sweep_text import cliff_lines
from enginegate.variants import Precision

_WORDS = {Decision.SHIP: "may ship", Decision.HOLD: "on hold", Decision.BLOCK: "blocked"}


def compose(run: SavedRun, baselines: Path | None) -> Page:
    """The page of a run. `baselines` is the folder that holds the history; None for none."""
    matrix = matrix_of(run.results)
    sections = (
        proof(run),
        _speed(run),
        _load(run),
        _hardware(run),
        _embeddings(run),
        _layers(run),
        _changes(run, baselines),
    )
    return Page(
        title="May these engines ship?",
        headline=headline(matrix),
        subtitle=_subtitle(run),
        matrix=matrix,
        sections=tuple(section for section in sections if not section.is_empty),
        said=tuple(_said(run)),
        changed=tuple(changed_rows(run.results)),
        unchanged="No engine is called slower, faster or wrong.",
        details=tuple(all_rows(run.results)),
    )


def matrix_of(results: Sequence[Result]) -> Matrix:
    """A decision per model and precision, over its engines in process and served."""
    found = {str(result.variant.precision) for result in results}
    precisions = tuple(str(p) for p in Precision if p in found)
    rows = []
    for model, members in groupby(results, key=lambda result: result.variant.model):
        by = list(members)
        groups = ([r for r in by if r.variant.precision == p] for p in precisions)
        rows.append((model, tuple(decide(group) if group else None for group in groups)))
    return Matrix(precisions, tuple(rows))


def headline(matrix: Matrix) -> str:
    """The verdict of the run in one sentence."""
    decisions = [cell.decision for _, _, cell in matrix.decisions]
    counts = [(decision, decisions.count(decision)) for decision in Decision]
    said = [f"{count} {_WORDS[decision]}" for decision, count in counts if count]
    return f"{counted(len(decisions), 'engine')}: {listed(said)}" if said else "Nothing was judged"


def _subtitle(run: SavedRun) -> str:
    return (
        f"{listed(models_of(run))} on {run.machine.cpu}, {counted(run.machine.cores, 'processor')}"
    )


def models_of(run: SavedRun) -> list[str]:
    """Names of its models, in order."""
    return list(dict.fromkeys(result.variant.model for result in run.results))


def _speed(run: SavedRun) -> Section:
    charts = tuple(speed_against_quality(run.results))
    return Section("speed", "Speed against quality", charts=charts)


def _changes(run: SavedRun, baselines: Path | None) -> Section:
    past = over_time(run.machine.id, models_of(run), baselines) if baselines else ()
    charts = (*against_baseline(run.results, run.whole["allowed"]["p50"]), *past)
    return Section("change", "Change against the baseline", charts=charts)


def _hardware(run: SavedRun) -> Section:
    tables = (*cost_tables(run), *bound_tables(run))
    return Section(
        "hardware", "What the hardware allows", charts=tuple(rooflines(run)), tables=tables
    )


def _embeddings(run: SavedRun) -> Section:
    charts = tuple(distributions(run, models_of(run)))
    tables = (*rankings(run), *worst_texts(run))
    return Section("embeddings", "How near the embeddings are", charts=charts, tables=tables)


def _layers(run: SavedRun) -> Section:
    charts, tables = tuple(blame_charts(run)), tuple(repairs(run))
    return Section("layers", "Which layers do the damage", charts=charts, tables=tables)


def _load(run: SavedRun) -> Section:
    found = list(_sweeps(run))
    charts = (chart for model, sweeps in found for chart in load_charts(_shown(run, model), sweeps))
    said = (f"{model} {line}" for model, sweeps in found for line in what_sweeps_say(sweeps))
    return Section("load", "What load they carry", findings=tuple(said), charts=tuple(charts))


def _sweeps(run: SavedRun) -> Iterator[tuple[str, list[Sweep]]]:
    """The served engines of each model that has some."""
    for model, members in groupby(run.results, key=lambda result: result.variant.model):
        loaded = [(r.variant.precision, r.load) for r in members if r.load]
        sweeps = [Sweep(str(p), load.levels, load.analysis) for p, load in loaded]
        if sweeps:
            yield model, sweeps


def _shown(run: SavedRun, model: str) -> str:
    """The model's name where a run has several; the page is about the only one."""
    return model if len(models_of(run)) > 1 else ""


def _said(run: SavedRun) -> Iterator[str]:
    """Cliffs, with their causes."""
    for model, sweeps in _sweeps(run):
        for sweep in sweeps:
            for cliff in sweep.analysis.cliffs:
                yield f"{model} {sweep.name}: {'; '.join(cliff_lines(cliff))}"
