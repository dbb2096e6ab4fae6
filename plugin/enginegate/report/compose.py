"""From saved runs to a page: which sections there are, and in which order."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from enginegate.baselines import Series, change_points, describe_history
from enginegate.models import DROPPED, OWN_CODE
from enginegate.report.decision import decide, held
from enginegate.report.numbers import NOTHING, counted, listed
from enginegate.report.page import (
    Chart,
    Commit,
    Decided,
    Decision,
    Matrix,
    Page,
    Row,
    Section,
    Table,
    named,
)
from enginegate.report.saved_run import DISTRIBUTION, SavedRun, shown_commit
from enginegate.report.sections.changes import (
    against_baseline,
    history_chart,
    latency_chart,
    over_time,
)
from enginegate.report.sections.choices import best_under_limits
from enginegate.report.sections.embeddings import (
    distributions,
    lengths,
    outputs_said,
    ranges,
    rankings,
    views,
    worst_texts,
)
from enginegate.report.sections.hardware import bound_tables, cost_tables, rooflines
from enginegate.report.sections.layers import blame_charts, repairs
from enginegate.report.sections.proof import proof
from enginegate.report.sections.sweeps import Sweep, load_charts, what_sweeps_say
from enginegate.report.sections.tradeoff import speed_against_quality
from enginegate.report.table import interrupted_line, speedup, worst_change
from enginegate.results import Result
from enginegate.variants import Precision
from enginegate.verdicts import Verdict

CHANGED = ("engine", "decision", "min cosine", "speedup", "change", "why")
_WORDS = {
    Decision.SHIP: "may ship",
    Decision.NEW: "may ship without a predecessor",
    Decision.HOLD: "on hold",
    Decision.BLOCK: "blocked",
}


def compose(run: SavedRun, baselines: Path | None) -> Page:
    """The page of a run. `baselines` is the folder that holds the history; None for none."""
    by, matrix = run.whole.get("interrupted"), matrix_of(run)
    parts = (
        proof(run),
        Section(
            anchor="speed",
            title="Speed against quality",
            charts=tuple(speed_against_quality(run)),
            tables=tuple(best_under_limits(run)),
        ),
        _load(run),
        Section(
            anchor="hardware",
            title="What the hardware allows",
            charts=tuple(rooflines(run)),
            tables=(*cost_tables(run), *bound_tables(run)),
        ),
        Section(
            anchor="embeddings",
            title="How near the embeddings are",
            findings=tuple(outputs_said(run)),
            charts=tuple(distributions(run)),
            tables=(*views(run), *lengths(run), *ranges(run), *rankings(run), *worst_texts(run)),
        ),
        Section(
            anchor="layers",
            title="Which layers do the damage",
            charts=tuple(blame_charts(run)),
            tables=tuple(repairs(run)),
        ),
        Section(
            anchor="change",
            title="Change against the baseline",
            charts=(*against_baseline(run), *(over_time(run, baselines) if baselines else ())),
        ),
    )
    return Page(
        title="May these engines ship?",
        headline=f"Interrupted: {headline(matrix)}" if by else headline(matrix),
        subtitle=_subtitle(run),
        matrix=matrix,
        sections=tuple(part for part in parts if not part.is_empty),
        origin=tuple(_origin(run)),
        commits=tuple(_commits(run)),
        warning=interrupted_line(by) if by else "",
        said=tuple(said_of(run)),
        changed=_changed(run, matrix),
        unchanged=_unchanged(run, matrix),
    )


def compose_history(model: str, series: Sequence[Series]) -> Page:
    """The page of what was noted of a model: a chart for each series, and its steps."""
    said = tuple(line.strip() for line in describe_history(series))
    changes = sum(len(change_points(found.log_ratios)) for found in series)
    charts = tuple(
        chart
        for found in series
        for chart in (
            history_chart(found.title, found.title, [found]),
            latency_chart(f"{found.title}, latency", [found]),
        )
    )
    lead = ("A step is one of the time beside the control's: + is slower.",)
    return Page(
        title="How has its speed developed?",
        headline=f"{model}: {counted(changes, 'change')} of speed",
        subtitle="As refreshes and --gate-history noted it, run by run.",
        matrix=Matrix((), ()),
        sections=(Section("history", "Speed over the runs", lead, said, charts=charts),),
        source="the history beside the baselines",
    )


def matrix_of(run: SavedRun) -> Matrix:
    """A decision per model and precision, over its engines in process and served."""
    found = {str(result.variant.precision) for result in run.results}
    precisions = tuple(str(p) for p in Precision if p in found)
    rows = []
    for model, _, members in run.by_model():
        groups = ([r for r in members if r.variant.precision == p] for p in precisions)
        decided = (decide(group) if group else None for group in groups)
        by = run.whole.get("interrupted")
        rows.append((model, tuple(held(d) if by and d else d for d in decided)))
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


def _origin(run: SavedRun) -> Iterator[tuple[str, str]]:
    """When the run was, of which commit, and by which versions."""
    origin, versions = run.whole.get("origin", {}), run.whole["versions"]
    if date := origin.get("date"):
        yield "date", date.replace("T", " ").replace("+00:00", " UTC")
    if commit := origin.get("commit"):
        changed = ", with changes that are in none" if origin["changed"] else ""
        yield "commit", f"{shown_commit(commit)}{changed}"
    yield from [("branch", origin["branch"])] if origin.get("branch") else []
    if base := origin.get("base"):
        yield "measured beside", shown_commit(base)
    own = [f"{DISTRIBUTION} {origin['enginegate']}"] if origin.get("enginegate") else []
    backends = dict.fromkeys(result.backend for result in run.results)
    yield "versions", ", ".join([*own, *backends, f"python {versions['python']}"])


def _commits(run: SavedRun) -> Iterator[Commit]:
    origin = run.whole.get("origin", {})
    for role, name in (("head", "commit"), ("base", "base")):
        if found := origin.get(name):
            url = origin["commits_url"]
            yield Commit(role, found, f"{url}{found}" if url else "")


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
        counted = f"{members[0].context.words.row}s"
        sweeps = [Sweep(str(p), load.levels, load.analysis, counted) for p, load in loaded]
        if sweeps:
            yield model, shown, sweeps


def said_of(run: SavedRun) -> Iterator[str]:
    """Lines on whether references are models, and on what their weights and tables are."""
    for model, _, members in run.by_model():
        context = members[0].context
        if members[0].truth:
            yield f"{model}: {members[0].truth.beside(members[0].context.overruled)}"
        if OWN_CODE in context.weights or DROPPED in context.weights:
            yield f"{model}: weights {context.weights}"
        yield from (f"{model}: the table says {said}" for said in context.overruled)


def _changed(run: SavedRun, matrix: Matrix) -> Table | None:
    """A row for each engine that is not plainly to be shipped as before."""
    changed = [one for one in matrix.decisions if not is_plain(run, *one)]
    rows = ((*figures_of(run, *one), one[2].reason) for one in changed)
    return Table("what changed", CHANGED, tuple(rows)) if changed else None


def _unchanged(run: SavedRun, matrix: Matrix) -> str:
    plain = [one for one in matrix.decisions if is_plain(run, *one)]
    return f"As before, and may ship: {named(plain)}." if plain else ""


def is_plain(run: SavedRun, model: str, precision: str, cell: Decided) -> bool:
    """Tell if an engine may ship, and nothing of it is new."""
    verdicts = {result.speed_verdict for result in members_of(run, model, precision)}
    return cell.decision is Decision.SHIP and verdicts <= {Verdict.PASS, Verdict.IDENTICAL}


def members_of(run: SavedRun, model: str, precision: str) -> list[Result]:
    """An engine in process and served."""
    wanted = (model, precision)
    return [r for r in run.results if (r.variant.model, str(r.variant.precision)) == wanted]


def figures_of(run: SavedRun, model: str, precision: str, cell: Decided) -> Row:
    """The row of an engine among what changed, without the reason."""
    members = members_of(run, model, precision)
    deltas = [result.accuracy.deltas for result in members if result.accuracy]
    cosines = [found.cosine_worst for found in deltas if found]
    return (
        f"{model} {precision}",
        cell.decision,
        f"{min(cosines):.6f}" if cosines else NOTHING,
        speedup(members[0]),
        worst_change(*members),
    )
