"""The reports of one fleet fit together, or are refused with one sentence."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from enginegate.errors import ReportError
from enginegate.report.fleet.parts import Part
from enginegate.report.numbers import NOTHING
from enginegate.report.saved_run import shown_commit

_DIGITS = 10


def fitting(parts: Sequence[Part]) -> list[Part]:
    """The reports, each once. Raises ReportError for those that are not of one fleet."""
    first, *others = parts
    for other in others:
        if why := "; ".join(_differences(first, other)):
            raise ReportError(
                f"{other.file} does not fit {first.file}: {why}; merge the reports of one fleet"
            )
    once = list({(part.kind, part.content, part.name): part for part in parts}.values())
    _refuse_twice(once)
    return once


def _differences(one: Part, other: Part) -> Iterator[str]:
    for name in ("commit", "base"):
        was, now = (part.origin.get(name, "") for part in (one, other))
        if was != now:
            yield f"the {name} was {_shown(was)}, is {_shown(now)}"
    if one.allowed != other.allowed:
        yield f"the limits were {_limits(one)}, are {_limits(other)}"
    if bool(one.shard) != bool(other.shard):
        yield "one is a shard, the other a whole run"
    elif one.shard and _plan(one) != _plan(other):
        yield f"another plan: {', '.join(_other_plan(one.shard, other.shard))}"


def _plan(part: Part) -> tuple[Any, ...]:
    return tuple(part.shard[key] for key in ("plan", "count", "kinds"))


def _other_plan(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """The settings that differ, or the hashes where none of those that are recorded does."""
    then, now = ({"count": s["count"], "kinds": s["kinds"], **s["asked"]} for s in (one, other))
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    for key in changed:
        yield f"{key} was {_brief(then.get(key))}, is {_brief(now.get(key))}"
    if not changed:
        yield f"its hash was {one['plan'][:_DIGITS]}, is {other['plan'][:_DIGITS]}"


def _brief(value: Any) -> str:
    said = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return said if len(said) < 64 else f"{said[:_DIGITS]}…"  # noqa: PLR2004 - a hash, or many models


def _shown(commit: str) -> str:
    return shown_commit(commit) or NOTHING


def _limits(part: Part) -> str:
    return ", ".join(f"{metric} {limit:g}" for metric, limit in sorted(part.allowed.items()))


def _refuse_twice(parts: Sequence[Part]) -> None:
    """Raise ReportError for a shard, or an engine of a kind of machine, that was judged twice."""
    seen: dict[tuple[str, ...], Part] = {}
    for part in parts:
        for what in _judged(part):
            other = seen.setdefault((part.kind, *what), part)
            if other is not part:
                where = f" on {part.kind}" if part.kind else ""
                raise ReportError(
                    f"{' '.join(what)}{where} is in {other.file} and in {part.file}, with other "
                    "results: give one of them"
                )


def _judged(part: Part) -> Iterator[tuple[str, ...]]:
    if part.shard:
        yield "shard", str(part.shard["number"]), "of", str(part.shard["count"])
    yield from ((engine.model, engine.precision) for engine in part.engines)
