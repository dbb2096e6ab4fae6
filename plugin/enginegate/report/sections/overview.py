"""The rows of the terminal's table, for a page: all of them, and those that say something new."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from enginegate.report.page import Row, Table
from enginegate.report.table import HEADER, sections
from enginegate.results import Result
from enginegate.verdicts import Verdict

_QUIET = (
    Verdict.PASS,
    Verdict.NO_BASELINE,
    Verdict.INCOMPARABLE,
    Verdict.NOT_MEASURED,
)


def all_rows(results: Sequence[Result]) -> Iterator[Table]:
    """A table per model, as the terminal shows it, and its notes."""
    for section in sections(results):
        yield Table(f"{section.title}: all figures", HEADER, section.rows)
        if section.notes:
            yield Table(f"{section.title}: notes", ("note",), _notes(section.notes))


def changed_rows(results: Sequence[Result]) -> Iterator[Table]:
    """The rows of engines that are called slower, faster, undecided or wrong."""
    for model, members in groupby(results, key=lambda result: result.variant.model):
        changed = [result for result in members if _has_changed(result)]
        for section in sections(changed):
            yield Table(f"{model}: what changed", HEADER, section.rows)


def _has_changed(result: Result) -> bool:
    wrong = result.embedding_verdict is Verdict.FAIL
    return wrong or result.speed_verdict not in _QUIET


def _notes(notes: Sequence[str]) -> tuple[Row, ...]:
    return tuple((note,) for note in notes)
