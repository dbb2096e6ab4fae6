"""Rows and pages to lines of text. No number is formatted here."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import TextWrapper

from enginegate.files import for_page, for_terminal, translated
from enginegate.report.decision import decided
from enginegate.report.page import Decided, Decision, Page, Row, Section, Table
from enginegate.report.table import (
    HEADER,
    ModelTable,
    accuracy_details,
    brief_columns,
    columns_of,
    engine_name,
    latency_lines,
    merged,
    sections,
    titled_columns,
)
from enginegate.results import Result

_TO_COPY = re.compile(r"\S+ = \{.*?\}")
_BRIEF_COLUMNS = 100  # of a terminal that the whole table fits


@dataclass(frozen=True)
class Line:
    """A line of the terminal; one of the table has the decision that it begins with."""

    text: str
    decision: Decision | None = None


def summary(results: Iterable[Result], columns: int, interrupted: str = "") -> list[Line]:
    """The terminal summary: one table per model, the decisions first, why and notes below.

    `columns` is the width of the terminal. Nothing may ship by a run that was `interrupted`, and by
    what; empty for one that came to its end.
    """
    narrow = columns < _BRIEF_COLUMNS
    blocks = [
        _told(section, brief_columns(section.results, narrow=narrow), interrupted)
        for section in sections(results)
    ]
    return [line for block in blocks for line in [*block, Line("")]][:-1]


def wrapped(text: str, columns: int) -> list[str]:
    """The text in lines that a terminal does not break by itself, all but the first indented.

    What is to be copied, `name = { ... }`, stays on a line.
    """
    held = _TO_COPY.sub(lambda found: found[0].replace(" ", "\0"), text)
    lines = TextWrapper(
        columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    ).wrap(held)
    return [line.replace("\0", " ") for line in lines or [""]]


def _told(section: ModelTable, names: Row, interrupted: str) -> list[Line]:
    """The table of a model with these columns, then why and notes."""
    found = [decided(result, interrupted) for result in section.results]
    every = zip(section.results, found, section.rows, strict=True)
    drawn = [(one, row) for result, one, row in every if not result.same_as]
    rows = [(one.decision, *columns_of(row, names)) for one, row in drawn]
    titles = titled_columns(section.results, names)
    first, *lines = aligned([("decision", *titles), *rows])
    table = [Line(text, one.decision) for text, (one, _) in zip(lines, drawn, strict=True)]
    reasons = [*_twins(section.results, found), *_reasons(section.results, found)]
    told = [*reasons, *section.notes, *_layers(section)]
    head = (section.title, "; ".join(section.facts), first)
    return [*map(Line, head), *table, *map(Line, told)]


def _twins(results: Sequence[Result], found: Sequence[Decided]) -> Iterator[str]:
    """Engines that are another's, each once; their rows would say the same again."""
    for result, one in zip(results, found, strict=True):
        if result.same_as:
            yield f"{engine_name(result.variant)} is {result.same_as}'s engine: {one.decision}"


def _reasons(results: Sequence[Result], found: Sequence[Decided]) -> Iterator[str]:
    """Why, and what to do next; nothing of what ships."""
    told = [
        (engine_name(result.variant), f"{one.decision}: {one.reason}{_next(one)}")
        for result, one in zip(results, found, strict=True)
        if one.decision is not Decision.SHIP
    ]
    return merged(told)


def _next(one: Decided) -> str:
    return f"; next: {one.next}" if one.next else ""


def render_text(results: Sequence[Result], costs: Sequence[str], interrupted: str = "") -> str:
    """The text report: every column, why, every text and batch size, then what the models cost.

    `interrupted` says by what the run was stopped.
    """
    lines = (accuracy_details, latency_lines)
    details = [line for said in lines for result in results for line in said(result)]
    blocks = [line for section in sections(results) for line in [*_block(section, interrupted), ""]]
    return "\n".join(map(for_terminal, [*blocks, *details, *costs]))


def _block(section: ModelTable, interrupted: str) -> list[str]:
    return [line.text for line in _told(section, HEADER, interrupted)]


def _layers(section: ModelTable) -> Iterator[str]:
    return (line for table in section.layers for line in [table.caption, *_table(table)])


def aligned(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Rows of equal length as lines with aligned columns; every cell is one line."""
    table = [[for_page(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()


def _table(table: Table) -> Iterator[str]:
    return aligned([table.header, *table.rows] if table.header else table.rows)


def render_page_text(page: Page) -> Iterator[str]:
    """The decisions, what is said of them, and every table."""
    page = translated(page, for_terminal)
    yield from (page.headline, page.subtitle)
    yield from (f"{name}: {value}" for name, value in page.origin)
    yield from [page.warning] if page.warning else []
    yield from page.said
    for model, precision, cell in page.matrix.decisions:
        yield from ("", f"{model} {precision}: {cell.decision}: {cell.reason}")
        yield from (f"  {detail}" for detail in cell.details)
        yield from (f"  next: {step}" for step in [cell.next] if step)
    for section in page.sections:
        yield from ("", section.title)
        yield from _section(section)


def _section(section: Section) -> Iterator[str]:
    yield from (*section.lead, *section.findings)
    yield from (f"{name}: {value}" for name, value in section.facts)
    for chart in section.charts:
        yield from ("", chart.title, chart.reading, *_table(chart.table))
    for table in section.tables:
        yield from ("", table.caption, *_table(table))
