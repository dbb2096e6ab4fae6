"""From saved runs to a page: which sections there are, and in which order."""

from collections.abc import Iterator
from pathlib import Path

from enginegate.report.decision import Decided, Decision, decide
from enginegate.report.numbers import counted, listed
from enginegate.report.page import Chart, Matrix, Page, Section
from enginegate.report.saved_run import SavedRun
from enginegate.report.sections.changes import against_baseline, over_time
from enginegate.report.sections.embeddings import distributions, rankings, worst_texts
from enginegate.report.sections.hardware import bound_tables, cost_tables, rooflines
from enginegate.report.sections.layers import blame_charts, repairs
from enginegate.report.sections.overview import all_rows, changed_rows
from enginegate.report.sections.proof import proof
from enginegate.report.sections.sweeps import Sweep, load_charts, what_sweeps_say
from enginegate.report.sections.tradeoff import speed_against_quality
from enginegate.report.table import interrupted_line
from enginegate.report.wording.sweeps import cliff_lines
from enginegate.variants import Precision

_WORDS = {Decision.SHIP: "may ship", Decision.HOLD: "on hold", Decision.BLOCK: "blocked"}


def compose(run: SavedRun, baselines: Path | None) -> Page:
    """The page of a run. `baselines` is the folder that holds the history; None for none."""
    by, matrix = run.whole.get("interrupted"), matrix_of(run)
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
        headline=f"Interrupted: {headline(matrix)}" if by else headline(matrix),
        subtitle=_subtitle(run),
        matrix=matrix,
        sections=tuple(section for section in sections if not section.is_empty),
        said=(*_interrupted(run), *_said(run)),
        changed=tuple(changed_rows(run.results)),
        unchanged="No engine is called slower, faster or wrong.",
        details=tuple(all_rows(run.results)),
    )


def matrix_of(run: SavedRun) -> Matrix:
    """A decision per model and precision, over its engines in process and served."""
    found = {str(result.variant.precision) for result in run.results}
    precisions = tuple(str(p) for p in Precision if p in found)
    rows = []
    for model, _, members in run.by_model():
        groups = ([r for r in members if r.variant.precision == p] for p in precisions)
        decided = (decide(group) if group else None for group in groups)
        held = run.whole.get("interrupted")
        rows.append((model, tuple(_held(d) if held and d else d for d in decided)))
    return Matrix(precisions, tuple(rows))


def headline(matrix: Matrix) -> str:
    """The verdict of the run in one sentence."""
    decisions = [cell.decision for _, _, cell in matrix.decisions]
    counts = [(decision, decisions.count(decision)) for decision in Decision]
    said = [f"{count} {_WORDS[decision]}" for decision, count in counts if count]
    return f"{counted(len(decisions), 'engine')}: {listed(said)}" if said else "Nothing was judged"


def _subtitle(run: SavedRun) -> str:
    processors = counted(run.machine.cores, "processor")
    return f"{listed(run.models)} on {run.machine.cpu}, {processors}"


def _interrupted(run: SavedRun) -> Iterator[str]:
    if by := run.whole.get("interrupted"):
        yield interrupted_line(by)


def _held(decided: Decided) -> Decided:
    """The decision in a run that was stopped: nothing may ship by it."""
    if decided.decision is not Decision.SHIP:
        return decided
    said = "the run was interrupted"
    return Decided(Decision.HOLD, said, (said, *decided.details))


def _speed(run: SavedRun) -> Section:
    charts = tuple(speed_against_quality(run))
    return Section("speed", "Speed against quality", charts=charts)


def _changes(run: SavedRun, baselines: Path | None) -> Section:
    past = over_time(run, baselines) if baselines else ()
    charts = (*against_baseline(run), *past)
    return Section("change", "Change against the baseline", charts=charts)


def _hardware(run: SavedRun) -> Section:
    tables = (*cost_tables(run), *bound_tables(run))
    return Section(
        "hardware", "What the hardware allows", charts=tuple(rooflines(run)), tables=tables
    )


def _embeddings(run: SavedRun) -> Section:
    charts = tuple(distributions(run))
    tables = (*rankings(run), *worst_texts(run))
    return Section("embeddings", "How near the embeddings are", charts=charts, tables=tables)


def _layers(run: SavedRun) -> Section:
    charts, tables = tuple(blame_charts(run)), tuple(repairs(run))
    return Section("layers", "Which layers do the damage", charts=charts, tables=tables)


def _load(run: SavedRun) -> Section:
    charts: list[Chart] = []
    said: list[str] = []
    for model, shown, sweeps in _sweeps(run):
        charts += load_charts(shown, sweeps)
        said += [f"{model} {line}" for line in what_sweeps_say(sweeps)]
    return Section("load", "What load they carry", findings=tuple(said), charts=tuple(charts))


def _sweeps(run: SavedRun) -> Iterator[tuple[str, str, list[Sweep]]]:
    """The loaded engines of each model that has some: `(model, shown name, sweeps)`."""
    for model, shown, members in run.by_model(served=True):
        loaded = [(r.variant.precision, r.load) for r in members if r.load]
        sweeps = [Sweep(str(p), load.levels, load.analysis) for p, load in loaded]
        if sweeps:
            yield model, shown, sweeps


def _said(run: SavedRun) -> Iterator[str]:
    """Cliffs, with their causes."""
    for model, _, sweeps in _sweeps(run):
        for sweep in sweeps:
            for cliff in sweep.analysis.cliffs:
                yield f"{model} {sweep.name}: {'; '.join(cliff_lines(cliff))}"
