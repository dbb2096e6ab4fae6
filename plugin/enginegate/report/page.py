"""What a report shows, as finished strings and pictures yet to be drawn. Renderers read this only.

Every text may come from a stranger's model or corpus: renderers escape all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
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
    def gravest(self) -> Decision | None:
        """The gravest decision; None if there is none."""
        found = {cell.decision for _, _, cell in self.decisions}
        return next((decision for decision in GRAVEST if decision in found), None)


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: of the page.
        headline: the verdict in one sentence.
        subtitle: what was run, where and when.
        matrix: the decisions.
        sections: the rest, in order.
        said: what matters most beside the decisions, a statement each.
        changed: the rows that say something new.
        unchanged: what to say where there are none.
        details: every row.
        source: what it was made from.
    """

    title: str
    headline: str
    subtitle: str
    matrix: Matrix
    sections: tuple[Section, ...]
    said: tuple[str, ...] = ()
    changed: tuple[Table, ...] = ()
    unchanged: str = ""
    details: tuple[Table, ...] = ()
    source: str = "the JSON report of the run"
