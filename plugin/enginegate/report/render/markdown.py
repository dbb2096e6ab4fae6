"""A page as a pull-request comment: the verdict, what changed, all the rest folded."""

from collections.abc import Iterable, Iterator

from enginegate.files import for_markdown, translated
from enginegate.report.page import Page, Row, Table

_SIGNS = {"ship": "✅", "ship (new)": "✅", "hold": "⚠️", "block": "❌"}
_LONGEST = 60_000  # letters: GitHub refuses a comment above 65,536


def render_markdown(page: Page) -> str:
    """The comment, ready to be posted: what there is no room for is left out, and said to be."""
    page = translated(page, for_markdown)
    comment = "\n".join(_head(page))
    for block in map("\n".join, _blocks(page)):
        if len(comment) + len(block) > _LONGEST:
            return f"{comment}\n\nThe rest is too long for a comment: see the JSON report.\n"
        comment += f"\n{block}"
    return f"{comment}\n"


def _head(page: Page) -> Iterator[str]:
    yield f"### {page.headline}"
    yield from ("", page.subtitle, "")
    yield from _rows(("", *page.matrix.precisions), _decisions(page))


def _blocks(page: Page) -> Iterator[Iterator[str]]:
    """The blocks that follow, the most telling first."""
    yield iter(("", *_bullets(page.said)))
    for table in page.changed:
        yield iter(("", f"**{table.caption}**", "", *_table(table)))
    if page.unchanged and not page.changed:
        yield iter(("", page.unchanged))
    yield _folded("Reasons", _reasons(page))
    for table in page.details:
        yield _folded(table.caption, _table(table))
    for section in page.sections:
        if section.findings:
            yield _folded(section.title, _bullets(section.findings))


def _bullets(statements: Iterable[str]) -> Iterator[str]:
    return (f"- {statement}" for statement in statements)


def _decisions(page: Page) -> Iterator[Row]:
    for model, cells in page.matrix.rows:
        yield (
            model,
            *(
                f"{_SIGNS[cell.decision]} **{cell.decision}**: {cell.reason}" if cell else ""
                for cell in cells
            ),
        )


def _reasons(page: Page) -> Iterator[str]:
    for model, precision, cell in page.matrix.decisions:
        yield f"- **{model} {precision}: {cell.decision}**"
        yield from (f"  - {detail}" for detail in cell.details)
        yield from (f"  - next: {step}" for step in [cell.next] if step)


def _table(table: Table) -> Iterator[str]:
    return _rows(table.header, table.rows)


def _rows(header: Iterable[str], rows: Iterable[Row]) -> Iterator[str]:
    """A table of cells that are escaped already."""
    names = list(header)
    for row in (names, ["---"] * len(names), *rows):
        yield f"| {' | '.join(row)} |"


def _folded(summary: str, lines: Iterable[str]) -> Iterator[str]:
    yield from ("", f"<details><summary>{summary}</summary>", "")
    yield from lines
    yield from ("", "</details>")
