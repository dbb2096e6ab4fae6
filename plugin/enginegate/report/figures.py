"""Figures that someone published of a deployment, and their page: deltas and sweeps only."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginegate.errors import ReportError, ServingError
from enginegate.report.numbers import NOTHING, percent, short, whole
from enginegate.report.page import Chart, Decided, Decision, Matrix, Page, Section, Table
from enginegate.report.saved_run import check_against
from enginegate.report.sections.sweeps import Sweep, largest, load_charts, what_sweeps_say
from enginegate.report.sections.tradeoff import Axes, Point, pareto
from enginegate.report.sweep_files import read_sweep_csv
from enginegate.report.wording.sweeps import ALIKE, throughput_ratios
from enginegate.serving import analyse

MARK = "figures"  # the key that tells such a file from the report of a run
_AXES = Axes("embedding delta", "largest throughput, texts per second")
_VERSION = 1
_SCHEMA = "figures.schema.json"


@dataclass(frozen=True)
class Figures:
    """Published figures of one model's engines.

    Attributes:
        name: where they were read from, in a word.
        title: of the page.
        source: how they were made.
        model: what was deployed.
        reference: the engine that the others are compared with; empty if unknown.
        deltas: of each engine to the reference, in the source's own statistic.
        sweeps: of each engine.
        whole: the file itself.
    """

    name: str
    title: str
    source: str
    model: str
    reference: str
    deltas: Mapping[str, float]
    sweeps: tuple[Sweep, ...]
    whole: Mapping[str, Any]

    def sweep(self, engine: str) -> Sweep:
        """The sweep of an engine that has one."""
        return next(sweep for sweep in self.sweeps if sweep.name == engine)


def parse_figures(whole: Mapping[str, Any], path: Path) -> Figures:
    """Check and read a figures file and its sweep. Raises ReportError."""
    if isinstance(whole[MARK], int) and whole[MARK] > _VERSION:
        raise ReportError(f"{path} has version {whole[MARK]} of figures: update pytest-enginegate")
    check_against(_SCHEMA, whole, str(path))
    try:
        read = read_sweep_csv(path.parent / whole["sweep"])
    except ServingError as error:
        raise ReportError(f"{path}: {error}") from error
    if unknown := [name for name in whole.get("embedding_delta", {}) if name not in read]:
        raise ReportError(f"{path}: {unknown[0]} has a delta and no sweep in {whole['sweep']}")
    return Figures(
        name=path.stem,
        title=whole["title"],
        source=whole["source"],
        model=whole["model"],
        reference=whole.get("reference", ""),
        deltas=whole.get("embedding_delta", {}),
        sweeps=tuple(Sweep(name, found, analyse(found, None)) for name, found in read.items()),
        whole=whole,
    )


def judge(figures: Figures) -> dict[str, Decided | None]:
    """A decision per engine. Without limits or a baseline none may ship by these figures alone.

    BLOCK where another engine is nearer to the reference and faster at every level; else HOLD.
    """
    return {
        sweep.name: None if sweep.name == figures.reference else _decide(figures, sweep.name)
        for sweep in figures.sweeps
    }


def _decide(figures: Figures, name: str) -> Decided:
    cliffs = [f"cliff at {c.first} to {c.last}" for c in figures.sweep(name).analysis.cliffs]
    twins = [f"it is {other}: {said}" for other, said in _twins(figures, name)]
    if better := [other for other in figures.deltas if _dominates(figures, other, name)]:
        said = f"{better[0]} is nearer to the reference and faster at every concurrency"
        return Decided(Decision.BLOCK, said, (said, *cliffs, *twins))
    unknown = "no limits and no baseline are known to judge it by"
    return Decided(Decision.HOLD, twins[0] if twins else unknown, (*twins, unknown, *cliffs))


def _dominates(figures: Figures, one: str, other: str) -> bool:
    """Tell if `one` has the smaller delta and more throughput at every level of `other`."""
    deltas = figures.deltas
    if one == other or one not in deltas or other not in deltas or deltas[one] >= deltas[other]:
        return False
    ratios = throughput_ratios(figures.sweep(one).levels, figures.sweep(other).levels)
    return bool(ratios) and min(ratios) > 1


def _twins(figures: Figures, name: str) -> Iterator[tuple[str, str]]:
    """Precisions that a `best` engine equals in delta and, typically, in throughput."""
    others = figures.deltas if name == "best" and name in figures.deltas else {}
    for other, delta in others.items():
        if other != name and delta == figures.deltas[name]:
            pair = (figures.sweep(name).levels, figures.sweep(other).levels)
            apart = abs(statistics.median(throughput_ratios(*pair)) - 1)
            if apart <= ALIKE:
                said = f"the same delta of {short(delta)}, throughput typically {percent(apart)}"
                yield other, f"{said} apart"


def findings(figures: Figures) -> Iterator[str]:
    """Findings from deltas and sweeps together, in words."""
    for name in figures.deltas:
        twins = list(_twins(figures, name))
        for other, said in twins:
            yield f"{name.upper()} is {other.upper()}: {said}, as if it took no other precision"
        if not twins:
            beaten = (other for other in figures.deltas if _dominates(figures, name, other))
            yield from (_beaten(figures, other, name) for other in beaten)


def _beaten(figures: Figures, slower: str, faster: str) -> str:
    ratios = throughput_ratios(figures.sweep(slower).levels, figures.sweep(faster).levels)
    deltas = figures.deltas
    return (
        f"{slower.upper()} is slower than {faster.upper()} everywhere: {percent(min(ratios))} to "
        f"{percent(max(ratios))} of its throughput at {len(ratios)} concurrencies, with a delta "
        f"{short(deltas[slower] / deltas[faster])} times as large"
    )


def compose_figures(figures: Figures) -> Page:
    """Everything that the figures tell, in words and in pictures."""
    decided = judge(figures)
    matrix = Matrix(tuple(decided), ((figures.model, tuple(decided.values())),))
    sections = (_facts(figures), _tradeoff(figures), _load(figures))
    return Page(
        title=figures.title,
        headline=_headline(figures),
        subtitle=figures.source,
        matrix=matrix,
        sections=tuple(section for section in sections if not section.is_empty),
        said=tuple(findings(figures)),
        changed=_table(decided),
    )


def _table(found: Mapping[str, Decided | None]) -> Table:
    rows = ((name, one.decision, one.reason) for name, one in found.items() if one)
    return Table("decisions", ("engine", "decision", "why"), tuple(rows))


def _headline(figures: Figures) -> str:
    fastest = max(figures.sweeps, key=largest)
    cliffs = [f"{s.name} has a cliff" for s in figures.sweeps if s.analysis.cliffs]
    said = f"{fastest.name} carries most: {whole(largest(fastest))} texts/s"
    return "; ".join((said, *cliffs))


def _facts(figures: Figures) -> Section:
    found = figures.whole
    facts = (
        *_counts("FLOPs", found.get("flops", {})),
        *_stated("counted as", found.get("flops_convention")),
        *_counts("memory-bound up to batch", found.get("memory_bound_up_to_batch", {})),
        *_stated("width of an embedding", found.get("embedding_dim")),
        *_stated("embedding delta", found.get("embedding_delta_note")),
    )
    lead = ("As published. What they rest on is not known beyond what is said here.",)
    return Section("proof", "What is stated", lead=lead, facts=facts)


def _counts(title: str, counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    return ((f"{title}, {name}", whole(count)) for name, count in counts.items())


def _stated(name: str, value: object) -> Iterator[tuple[str, str]]:
    if value is not None:
        yield name, str(value)


def _tradeoff(figures: Figures) -> Section:
    points = [
        Point(
            name=sweep.name,
            loss=figures.deltas[sweep.name],
            speed=largest(sweep),
            said=f"{sweep.name}: delta {short(figures.deltas[sweep.name])}, "
            f"{whole(largest(sweep))} texts/s",
        )
        for sweep in figures.sweeps
        if figures.deltas.get(sweep.name, 0) > 0
    ]
    charts = (_chart(figures, points),) if len(points) > 1 else ()
    return Section("speed", "Speed against quality", charts=charts)


def _chart(figures: Figures, points: list[Point]) -> Chart:
    rows = tuple(
        (
            sweep.name,
            short(figures.deltas[sweep.name]) if sweep.name in figures.deltas else NOTHING,
            whole(largest(sweep)),
        )
        for sweep in figures.sweeps
    )
    table = Table("Delta and largest throughput", ("engine", "delta", "texts/s"), rows)
    return pareto("", points, _AXES, table)


def _load(figures: Figures) -> Section:
    charts = tuple(load_charts("", figures.sweeps))
    said = tuple(what_sweeps_say(figures.sweeps))
    return Section("load", "What load they carry", findings=said, charts=charts)
