"""Rows and pages to lines of text. No number is formatted here."""

from collections.abc import Iterable, Iterator, Sequence

from enginegate.files import for_page, for_terminal, translated
from enginegate.report.page import Page, Section, Table
from enginegate.report.table import HEADER, ModelTable, accuracy_details, latency_lines, sections
from enginegate.results import Result


def summary_lines(results: Iterable[Result]) -> list[str]:
    """The terminal summary: one aligned table per model, its notes below."""
    blocks = [_block(section) for section in sections(results)]
    return [line for block in blocks for line in [*block, ""]][:-1]


def render_text(results: Sequence[Result], costs: Sequence[str]) -> str:
    """The text report: the summary, every text and batch size, then what the models cost."""
    lines = (accuracy_details, latency_lines)
    details = [line for said in lines for result in results for line in said(result)]
    return "\n".join(map(for_terminal, [*summary_lines(results), "", *details, *costs]))


def _block(section: ModelTable) -> list[str]:
    lines = aligned([HEADER, *section.rows])
    layers = [line for table in section.layers for line in [table.caption, *_table(table)]]
    return [section.title, "; ".join(section.facts), *lines, *section.notes, *layers]


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
    yield from page.said
    for model, precision, cell in page.matrix.decisions:
        yield from ("", f"{model} {precision}: {cell.decision}: {cell.reason}")
        yield from (f"  {detail}" for detail in cell.details)
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
