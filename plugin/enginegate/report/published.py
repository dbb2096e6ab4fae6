"""The page of published figures."""

from collections.abc import Iterator, Mapping

from enginegate.report.figures import Figures, findings, judge
from enginegate.report.numbers import NOTHING, short, whole
from enginegate.report.page import Chart, Matrix, Page, Section, Table
from enginegate.report.sections.sweeps import largest, load_charts, what_sweeps_say
from enginegate.report.sections.tradeoff import Axes, Point, pareto

_AXES = Axes("embedding delta", "largest throughput, texts per second")


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
        said=(*findings(figures), *what_sweeps_say(figures.sweeps)),
    )


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
    return Section("load", "What load they carry", charts=charts)
