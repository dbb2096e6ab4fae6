"""A page as lines of text."""

from collections.abc import Iterator

from enginegate.report.outlets import for_terminal, translated
from enginegate.report.page import Page, Section, Table
from enginegate.report.terminal import aligned


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
        yield from ("", chart.title, chart.reading, *aligned(_rows(chart.table)))
    for table in section.tables:
        yield from ("", table.caption, *aligned(_rows(table)))


def _rows(table: Table) -> list[tuple[str, ...]]:
    return [table.header, *table.rows]
