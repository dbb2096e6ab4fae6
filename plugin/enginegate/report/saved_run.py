"""Runs that were saved as JSON: read, checked against the schema, decoded into their records."""

import datetime
import functools
import importlib.resources
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enginegate.errors import ReportError
from enginegate.files import damage, parse_json, read_text, readable_json, reading
from enginegate.machine import Checkout, Machine, installed_version, library_versions
from enginegate.report.decision import decided
from enginegate.results import Result

REPORT_SCHEMA = 4
DISTRIBUTION = "pytest-enginegate"
_DIGITS = 10  # of a commit
_PLAIN: Mapping[str, frozenset[type]] = {
    "number": frozenset((float, int)),
    "string": frozenset((str,)),
}
_WAY_OUT = "restore it, or run again"


@dataclass(frozen=True)
class SavedRun:
    """One run as its JSON report tells it.

    Attributes:
        name: where it was read from, in a word.
        machine: that measured.
        results: the engines.
        whole: the report itself, for fields that a run may lack; numbers that JSON cannot say are
            None there and NaN in `results`.
    """

    name: str
    machine: Machine
    results: tuple[Result, ...]
    whole: Mapping[str, Any]

    @property
    def models(self) -> list[str]:
        """Names of its models, in order."""
        return list(dict.fromkeys(result.variant.model for result in self.results))

    def by_model(self, *, served: bool | None = None) -> Iterator[tuple[str, str, list[Result]]]:
        """`(model, shown name, results)`, of engines served or not, or of all with None.

        A name is not shown where a run has one model only: the whole page is about it then.
        """
        for model in self.models:
            of_model = [result for result in self.results if result.variant.model == model]
            wanted = [r for r in of_model if served is None or r.variant.served == served]
            if wanted:
                yield model, model if len(self.models) > 1 else "", wanted

    def raw(self, result: Result) -> Mapping[str, Any]:
        """The JSON of one of the results."""
        raw: Mapping[str, Any] = self.whole["results"][self.results.index(result)]
        return raw


def read_report(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ReportError."""
    with reading(path, "the report", _WAY_OUT, ReportError):
        text = read_text(path)
    return parse_object(text, str(path))


def parse_run(text: str, name: str, where: str) -> SavedRun:
    """Check and decode the text of a JSON report. Raises ReportError, which says what is wrong."""
    return decode_run(parse_object(text, where), name, where)


def decode_run(whole: Mapping[str, Any], name: str, where: str) -> SavedRun:
    """Check and decode a JSON report. Raises ReportError."""
    _check_schema(whole, where)
    return SavedRun(
        name=name,
        machine=_decode(whole["machine"], Machine, where),
        results=_decode(whole["results"], tuple[Result, ...], where),
        whole=whole,
    )


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises ReportError."""
    try:
        whole = parse_json(text, halves=True)
    except ValueError as error:
        raise ReportError(f"{where} is not JSON ({damage(error)}): {_WAY_OUT}") from error
    if not isinstance(whole, dict):
        raise ReportError(f"{where} is not a report: {type(whole).__name__} instead of an object")
    return whole


def _check_schema(whole: Mapping[str, Any], where: str) -> None:
    found = whole.get("schema")
    if not isinstance(found, int) or isinstance(found, bool):
        raise ReportError(
            f"{where} is not a report of a run: give a file that --gate-report-json wrote"
        )
    if found > REPORT_SCHEMA:
        raise ReportError(
            f"{where} has schema {found}, this version reads {REPORT_SCHEMA}: "
            "update pytest-enginegate"
        )
    if found < REPORT_SCHEMA:
        raise ReportError(
            f"{where} has schema {found}, of an older version; this one reads {REPORT_SCHEMA}: "
            "run pytest with --gate-report-json again"
        )
    check_against("report.schema.json", whole, where)


def check_against(schema_file: str, whole: Mapping[str, Any], where: str) -> None:
    """Validate against a schema of this package. Raises ReportError with the gravest finding."""
    import jsonschema

    error = jsonschema.exceptions.best_match(_validator(schema_file).iter_errors(whole))
    if error is not None:
        place = "/".join(map(str, error.absolute_path)) or "the report"
        message = error.message if len(error.message) < 200 else f"{error.message[:200]} …"  # noqa: PLR2004
        raise ReportError(f"{where} is damaged at {place}: {message}")


@functools.cache
def _validator(schema_file: str) -> Any:
    """What checks against a schema of this package; making it takes as long as one check."""
    import jsonschema

    text = importlib.resources.files("enginegate.report").joinpath(schema_file).read_text("utf-8")
    extend: Callable[..., Any] = jsonschema.validators.extend
    return extend(jsonschema.Draft202012Validator, {"items": _check_items})(json.loads(text))


def _check_items(validator: Any, items: Any, value: Any, schema: Any) -> Any:
    """Check the items of an array: plain numbers or texts, most of a report, in one go."""
    from jsonschema import Draft202012Validator

    plain = _PLAIN.get(items.get("type", "")) if len(items) == 1 else None
    if plain and isinstance(value, list) and plain.issuperset(map(type, value)):
        return ()
    return Draft202012Validator.VALIDATORS["items"](validator, items, value, schema)


@functools.cache
def _converter() -> Any:
    """What makes records of JSON; it learns every class once."""
    from cattrs import Converter

    converter = Converter()
    converter.register_structure_hook(float, lambda number, _: _number(number))
    return converter


def _decode(value: Any, kind: Any, where: str) -> Any:
    from cattrs import transform_error

    try:
        return _converter().structure(value, kind)
    except Exception as error:  # cattrs groups errors of many classes
        said = "; ".join(transform_error(error)[:3])
        raise ReportError(f"{where} cannot be read: {said}") from error


def _number(value: Any) -> float:
    """JSON has no NaN: null stands for it."""
    return math.nan if value is None else float(value)


def render_json(
    results: Sequence[Result],
    machine: Machine,
    condition: Mapping[str, Any],
    seed: int,
    allowed: Mapping[str, float],
    costs: Mapping[str, Any],
    rooflines: Mapping[str, Any],
    interrupted: str = "",
    origin: Mapping[str, Any] | None = None,
    ending: Mapping[str, Any] | None = None,
) -> str:
    """The JSON report; `docs/report.schema.json` describes it.

    `allowed` is the largest slowdown that passes, by metric. `interrupted` says by what the run
    was stopped, `origin` when and of which commit it was, `ending` how it ended
    and which part of a fleet it is.
    """
    return readable_json(
        {
            "schema": REPORT_SCHEMA,
            "machine": machine.as_json(),
            "condition": dict(condition),
            "seed": seed,
            "allowed": dict(allowed),
            "versions": library_versions(),
            "results": [_result(result, interrupted) for result in results],
            "costs": dict(costs),
            "rooflines": dict(rooflines),
            **({"interrupted": interrupted} if interrupted else {}),
            **({"origin": dict(origin)} if origin else {}),
            **dict(ending or {}),
        }
    )


def origin_of(checkout: Checkout) -> dict[str, Any]:
    """When this is, by which version of this package, and of which commit."""
    now = datetime.datetime.now(datetime.UTC)
    version = installed_version(DISTRIBUTION) or ""
    return {"date": now.isoformat(timespec="seconds"), "enginegate": version, **asdict(checkout)}


def shown_commit(commit: str) -> str:
    """As many digits as tell one of a project's commits from the others."""
    return commit[:_DIGITS]


def _result(result: Result, interrupted: str) -> dict[str, Any]:
    record: dict[str, Any] = _finite(asdict(result))
    record["embedding_verdict"] = result.embedding_verdict
    record["speed_verdict"] = result.speed_verdict
    found = decided(result, interrupted)
    record |= {"decision": found.decision, "reason": found.reason, "next": found.next}
    return record


def _finite(value: Any) -> Any:
    """The value with infinite and unknown numbers as None, which JSON can say."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
