"""What a report shows, as finished strings and pictures yet to be drawn. Renderers read this only.

Every text may come from a stranger's model or corpus: renderers escape all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

Row = tuple[str, ...]


class Decision(StrEnum):
    """What to do with an engine."""

    SHIP = "ship"
    NEW = "ship (new)"
    HOLD = "hold"
    BLOCK = "block"


GRAVEST = (Decision.BLOCK, Decision.HOLD, Decision.NEW, Decision.SHIP)
MAY_SHIP = (Decision.NEW, Decision.SHIP)
_WHY = (
    (Decision.SHIP, MAY_SHIP),
    (Decision.HOLD, (Decision.HOLD,)),
    (Decision.BLOCK, (Decision.BLOCK,)),
)


@dataclass(frozen=True)
class Decided:
    """A decision.

    Attributes:
        decision: what to do.
        reason: the first of the gravest reasons, in a few words; of what may ship all of them.
        details: all reasons with their figures.
        next: what resolves it, or stores the first baseline; empty where nothing is to be done.
    """

    decision: Decision
    reason: str
    details: tuple[str, ...]
    next: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of finished strings under a caption; folded where few will look at it."""

    caption: str
    header: Row
    rows: tuple[Row, ...]
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A picture with the table of what it shows.

    Attributes:
        title: what is drawn.
        reading: how to read it, in words; also for those who cannot see it.
        spec: Vega-Lite without sizes; data inline, colours as CSS variables.
        table: every figure in it.
        height: pixels.
        small: half as wide as the page, so that several stand side by side.
    """

    title: str
    reading: str
    spec: Mapping[str, Any]
    table: Table
    height: int = 300
    small: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: of its heading.
        title: its heading.
        lead: paragraphs.
        findings: statements that matter, one a line.
        facts: `(name, value)`.
        charts: pictures.
        tables: figures without a picture.
    """

    anchor: str
    title: str
    lead: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Tell if it has nothing to show."""
        return not (self.lead or self.findings or self.facts or self.charts or self.tables)


@dataclass(frozen=True)
class Reason:
    """What is said of some engines.

    Attributes:
        names: the engines.
        said: why they are decided on as they are, in a few words.
        next: what to do about it; empty where nothing is to be done.
    """

    names: str
    said: str
    next: str = ""


@dataclass(frozen=True)
class Why:
    """The reasons of one decision."""

    decision: Decision
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Matrix:
    """Decisions by model and precision; None where nothing was judged."""

    precisions: Row
    rows: tuple[tuple[str, tuple[Decided | None, ...]], ...]

    @property
    def decisions(self) -> tuple[tuple[str, str, Decided], ...]:
        """`(model, precision, decision)` of all that was judged."""
        return tuple(
            (model, precision, cell)
            for model, cells in self.rows
            for precision, cell in zip(self.precisions, cells, strict=True)
            if cell
        )

    @property
    def why(self) -> tuple[Why, ...]:
        """The reasons, by decision."""
        groups = (
            (kind, [d for d in self.decisions if d[2].decision in kinds]) for kind, kinds in _WHY
        )
        return tuple(Why(kind, tuple(_reasons(found))) for kind, found in groups if found)

    @property
    def gravest(self) -> Decision | None:
        """The gravest decision; None if there is none."""
        found = {cell.decision for _, _, cell in self.decisions}
        return next((decision for decision in GRAVEST if decision in found), None)


def _reasons(found: Sequence[tuple[str, str, Decided]]) -> Iterator[Reason]:
    """What is said of several engines is said once."""
    alike: dict[tuple[str, str], list[tuple[str, str, Decided]]] = {}
    for one in found:
        cell = one[2]
        new = f"{cell.decision}: " if cell.decision is Decision.NEW else ""
        alike.setdefault((f"{new}{cell.reason}", cell.next), []).append(one)
    for (said, step), engines in alike.items():
        yield Reason(named(engines), said, step)


def named(engines: Sequence[tuple[str, str, Decided]]) -> str:
    """`minilm fp16, int8; other bf16`."""
    groups = groupby(engines, key=lambda engine: engine[0])
    return "; ".join(f"{model} {', '.join(p for _, p, _ in group)}" for model, group in groups)


@dataclass(frozen=True)
class Commit:
    """A commit by its role, `head` or `base`.

    Attributes:
        hash: all of it.
        address: where it can be looked at; empty where that is not known.
    """

    role: str
    hash: str
    address: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: of the page.
        headline: the verdict in one sentence.
        subtitle: what was run, where and when.
        matrix: the decisions.
        sections: the rest, in order.
        origin: `(name, value)`: when the run was, and of what.
        commits: that were judged and measured beside.
        warning: what is to be known before all else; empty for nothing.
        said: what matters most beside the decisions, a statement each.
        changed: a row for each engine that is not plainly to be shipped as before.
        unchanged: what to say of the others; empty where there are none.
        source: what it was made from.
    """

    title: str
    headline: str
    subtitle: str
    matrix: Matrix
    sections: tuple[Section, ...]
    origin: tuple[tuple[str, str], ...] = ()
    commits: tuple[Commit, ...] = ()
    warning: str = ""
    said: tuple[str, ...] = ()
    changed: Table | None = None
    unchanged: str = ""
    source: str = "the JSON report of the run"
