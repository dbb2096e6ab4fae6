"""Rows to text, records to JSON. No number is formatted here."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from enginegate.report.outlets import for_page, for_terminal
from enginegate.report.table import HEADER, Section, accuracy_details, latency_lines, sections
from enginegate.results import Result

REPORT_SCHEMA = 4


def summary_lines(results: Iterable[Result]) -> list[str]:
    """The terminal summary: one aligned table per model, its notes below."""
    blocks = [_block(section) for section in sections(results)]
    return [line for block in blocks for line in [*block, ""]][:-1]


def render_text(results: Sequence[Result], costs: Sequence[str]) -> str:
    """The text report: the summary, every text and batch size, then what the models cost."""
    lines = (accuracy_details, latency_lines)
    details = [line for said in lines for result in results for line in said(result)]
    return "\n".join(map(for_terminal, [*summary_lines(results), "", *details, *costs]))


def _block(section: Section) -> list[str]:
    lines = aligned([HEADER, *section.rows])
    layers = [line for table in section.layers for line in [table.title, *aligned(table.rows)]]
    return [section.title, "; ".join(section.facts), *lines, *section.notes, *layers]


def aligned(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Rows of equal length as lines with aligned columns; every cell is one line."""
    table = [[for_page(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()


def _result(result: Result) -> dict[str, Any]:
    record: dict[str, Any] = _finite(dataclasses.asdict(result))
    record["embedding_verdict"] = result.embedding_verdict
    record["speed_verdict"] = result.speed_verdict
    return record


def _finite(value: Any) -> Any:
    """The value with infinite and unknown numbers as None, which JSON can say."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
