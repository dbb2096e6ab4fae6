"""A page as a pull-request comment: the verdict, what changed, all the rest folded."""

import re
from collections.abc import Iterable, Iterator

from enginegate.report.page import Page, Row, Table

_SIGNS = {"ship": "✅", "hold": "⚠️", "block": "❌"}
_LONGEST = 60_000  # letters: GitHub refuses a comment above 65,536
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~])")


def escaped(text: str) -> str:
    """A stranger's text, with nothing left in it that Markdown, HTML or GitHub acts upon."""
    plain = " ".join(text.split())
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "&#64;")):
        plain = plain.replace(character, entity)
    return _SPECIAL.sub(r"\\\1", plain).replace("://", ":&#47;&#47;")


def render_markdown(page: Page) -> str:
    """The comment, ready to be posted: what there is no room for is left out, and said to be."""
    comment = "\n".join(_head(page))
    for block in map("\n".join, _blocks(page)):
        if len(comment) + len(block) > _LONGEST:
            return f"{comment}\n\nThe rest is too long for a comment: see the JSON report.\n"
        comment += f"\n{block}"
    return f"{comment}\n"


def _head(page: Page) -> Iterator[str]:
    yield f"### {escaped(page.headline)}"
    yield from ("", escaped(page.subtitle), "")
    yield from _rows(("", *map(escaped, page.matrix.precisions)), _decisions(page))


def _blocks(page: Page) -> Iterator[Iterator[str]]:
    """The blocks that follow, the most telling first."""
    yield iter(("", *_bullets(page.said)))
    for table in page.changed:
        yield iter(("", f"**{escaped(table.caption)}**", "", *_table(table)))
    if page.unchanged and not page.changed:
        yield iter(("", page.unchanged))
    yield _folded("Reasons", _reasons(page))
    for table in page.details:
        yield _folded(table.caption, _table(table))
    for section in page.sections:
        if section.findings:
            yield _folded(section.title, _bullets(section.findings))


def _bullets(statements: Iterable[str]) -> Iterator[str]:
    return (f"- {escaped(statement)}" for statement in statements)


def _decisions(page: Page) -> Iterator[Row]:
    for model, cells in page.matrix.rows:
        yield (
            escaped(model),
            *(
                f"{_SIGNS[cell.decision]} **{cell.decision}**: {escaped(cell.reason)}"
                if cell
                else ""
                for cell in cells
            ),
        )


def _reasons(page: Page) -> Iterator[str]:
    for model, precision, cell in page.matrix.decisions:
        yield f"- **{escaped(f'{model} {precision}')}: {cell.decision}**"
        yield from (f"  - {escaped(detail)}" for detail in cell.details)


def _table(table: Table) -> Iterator[str]:
    return _rows(map(escaped, table.header), (tuple(map(escaped, row)) for row in table.rows))


def _rows(header: Iterable[str], rows: Iterable[Row]) -> Iterator[str]:
    """A table of cells that are escaped already."""
    names = list(header)
    for row in (names, ["---"] * len(names), *rows):
        yield f"| {' | '.join(row)} |"


def _folded(summary: str, lines: Iterable[str]) -> Iterator[str]:
    yield from ("", f"<details><summary>{escaped(summary)}</summary>", "")
    yield from lines
    yield from ("", "</details>")
