"""A page as a pull-request comment: the verdict, what changed, all the rest folded."""

import re
from collections.abc import Iterable, Iterator

from enginegate.files import for_markdown, translated
from enginegate.report.page import MAY_SHIP, Commit, Decision, Page, Row, Table

MARKER = "<!-- pytest-enginegate -->"  # by which a later run finds the comment to put it anew
_SIGNS = {"ship": "✅", "ship (new)": "✅", "hold": "⚠️", "block": "❌"}
_LONGEST = 60_000  # bytes: GitHub refuses a comment above 65,536 letters
_LEAST, _EACH = 5_000, 500  # bytes that may be filled by what is folded, and for each engine
_ADDRESS = re.compile(r"https?://[\w.:-]+(/[\w.~-]+)+/commit/[0-9a-f]{7,64}", re.ASCII)
_DIGITS = 10  # of a commit
_NOTE = 150  # bytes of the sentence on what has no room
_WHY = "Why, and what to do next"

Block = tuple[str, list[str]]  # a title and its lines


def render_markdown(page: Page) -> str:
    """The comment, ready to be posted: what there is no room for is left out, and said to be."""
    commits = [_commit(commit) for commit in page.commits]
    page = translated(page, for_markdown)
    comment, left_out = _filled("\n".join(_head(page, commits)), _shown(page), _LONGEST)
    room = min(_LONGEST, max(_LEAST, _EACH * len(page.matrix.decisions)))
    comment, folded = _filled(comment, _folded(page), 0 if left_out else room)
    named = ", ".join([*left_out, *folded])
    return f"{comment}\n\nNo room here, but in the reports: {named}.\n" if named else f"{comment}\n"


def _filled(comment: str, blocks: Iterable[Block], room: int) -> tuple[str, list[str]]:
    """The comment with the blocks that fit, and the titles of those that do not."""
    left_out = []
    for title, lines in blocks:
        longer = "\n".join([comment, "", *lines])
        fits = len(longer.encode()) + _NOTE < room
        comment = longer if fits else comment
        left_out += [] if fits else [title]
    return comment, left_out


def _commit(commit: Commit) -> str:
    """Its beginning, linked where its address is that of a commit and nothing else."""
    shown = f"`{re.sub('[^0-9a-f]', '', commit.hash)[:_DIGITS]}`"
    linked = _ADDRESS.fullmatch(commit.address)
    return f"{commit.role} [{shown}](<{commit.address}>)" if linked else f"{commit.role} {shown}"


def _head(page: Page, commits: list[str]) -> Iterator[str]:
    origin = dict(page.origin)
    told = [*commits, *(origin[name] for name in ("date", "versions") if name in origin)]
    yield from (MARKER, f"### {page.headline}", "", " · ".join([page.subtitle, *told]))
    yield from ("", f"**{page.warning}**") if page.warning else ()


def _shown(page: Page) -> Iterator[Block]:
    if page.changed:
        yield page.changed.caption, list(_table(page.changed))
    if page.unchanged:
        yield "what is as before", [page.unchanged]


def _folded(page: Page) -> Iterator[Block]:
    """What follows, the most telling first."""
    parts = [(_WHY, list(_reasons(page))), ("Of the models", [f"- {said}" for said in page.said])]
    parts += [(s.title, [f"- {finding}" for finding in s.findings]) for s in page.sections]
    for title, lines in parts:
        if lines:
            summary = f"<details><summary>{title}</summary>"
            yield title, [summary, "", *lines, "", "</details>"]


def _reasons(page: Page) -> Iterator[str]:
    """Of what is not plainly to be shipped; what is said of several engines is said once."""
    for why in page.matrix.why:
        for reason in why.reasons:
            if reason.next or why.decision is not Decision.SHIP:
                step = f"; next: {reason.next}" if reason.next else ""
                yield f"- {_SIGNS[why.decision]} **{reason.names}**: {reason.said}{step}"
    for model, precision, cell in page.matrix.decisions:
        if cell.decision not in MAY_SHIP:
            figures = (detail for detail in cell.details if detail.startswith(f"{cell.reason}: "))
            yield from (f"- {model} {precision}: {detail}" for detail in figures)


def _table(table: Table) -> Iterator[str]:
    """A table of cells that are escaped already."""
    for row in (table.header, ("---",) * len(table.header), *map(_signed, table.rows)):
        yield f"| {' | '.join(row)} |"


def _signed(row: Row) -> Row:
    return tuple(
        f"{_SIGNS[cell]} **{cell}**" if isinstance(cell, Decision) else cell for cell in row
    )
