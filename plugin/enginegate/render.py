"""Rows to text, records to JSON. No number is formatted here."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from enginegate.files import readable_json
from enginegate.machine import Machine, library_versions
from enginegate.results import Result, Speed
from enginegate.table import HEADER, Section, latency_lines, sections

REPORT_SCHEMA = 1


def summary_lines(results: Iterable[Result]) -> list[str]:
    """The terminal summary: one aligned table per model, its notes below."""
    blocks = [_block(section) for section in sections(results)]
    return [line for block in blocks for line in [*block, ""]][:-1]


def render_text(results: Sequence[Result]) -> str:
    """The text report: the summary, then every batch size."""
    details = [f"{r.variant.model} {line}" for r in results for line in latency_lines(r)]
    return "\n".join([*summary_lines(results), "", *details])


def render_json(results: Sequence[Result], machine: Machine) -> str:
    """The JSON report; `docs/report.schema.json` describes it."""
    return readable_json(
        {
            "schema": REPORT_SCHEMA,
            "machine": machine.as_json(),
            "versions": library_versions(),
            "results": [_result(result) for result in results],
        }
    )


def _block(section: Section) -> list[str]:
    table = [HEADER, *section.rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
    facts = "; ".join(section.facts)
    return [section.title, facts, *(line.rstrip() for line in lines), *section.notes]


def _result(result: Result) -> dict[str, Any]:
    record = dataclasses.asdict(result)
    record["embedding_verdict"] = result.embedding_verdict
    record["speed_verdict"] = result.speed_verdict
    record["speeds"] = [_speed(speed) for speed in result.speeds]
    return record


def _speed(speed: Speed) -> dict[str, Any]:
    record = dataclasses.asdict(speed)
    record["replicates"] = [
        {"candidate_s": list(candidate), "reference_s": list(reference)}
        for candidate, reference in speed.replicates
    ]
    return record
