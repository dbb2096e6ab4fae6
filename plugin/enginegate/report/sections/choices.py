"""The best configuration under a limit: of quality, of speed, of size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from enginegate.report.decision import decided
from enginegate.report.numbers import NOTHING, size, times
from enginegate.report.page import Decision, Row, Table
from enginegate.report.saved_run import SavedRun
from enginegate.report.sections.tradeoff import measured, relative_speed

_COSINES = (0.9999, 0.999, 0.99)
_SPEEDS = (1.0, 2.0, 4.0)  # times the reference's
_SHARES = (0.75, 0.5)  # of the largest engine's size
_HEADER = ("limit", "engine", "decision", "min cosine", "speedup", "size")


@dataclass(frozen=True)
class Choice:
    """An engine that one may take; `speed` is relative to the reference."""

    name: str
    decision: Decision
    cosine: float
    speed: float
    size_bytes: int


def best_under_limits(run: SavedRun) -> Iterator[Table]:
    """A table per model that has two engines at least which are not blocked."""
    for model, _, members in run.by_model():
        by = run.whole.get("interrupted", "")
        found = [
            Choice(
                name=str(result.variant.precision),
                decision=decided(result, by).decision,
                cosine=deltas.cosine_worst,
                speed=relative_speed(speed)[0],
                size_bytes=result.size_bytes,
            )
            for member in members
            for result, deltas, speed in measured(member)
        ]
        choices = [one for one in found if one.decision is not Decision.BLOCK]
        if len(choices) > 1:
            caption = f"{model}: the best configuration under a limit; none that is blocked"
            beside = members[0].context.timed_beside
            yield Table(caption, _HEADER, tuple(_rows(choices, beside)))


def _rows(choices: Sequence[Choice], beside: str) -> Iterator[Row]:
    for least in _COSINES:
        near = [one for one in choices if one.cosine >= least]
        yield _row(f"min cosine of {least:g} or more: the fastest", near, _speed)
    for speed in _SPEEDS:
        fast = [one for one in choices if one.speed >= speed]
        yield _row(f"{times(speed)} the speed of {beside} or more: the nearest", fast, _cosine)
    largest = max(one.size_bytes for one in choices)
    for share in _SHARES:
        small = [one for one in choices if one.size_bytes <= share * largest]
        yield _row(f"{size(int(share * largest))} or less: the fastest", small, _speed)


def _speed(one: Choice) -> float:
    return one.speed


def _cosine(one: Choice) -> float:
    return one.cosine


def _row(limit: str, within: Sequence[Choice], order: Callable[[Choice], float]) -> Row:
    if not within:
        return (limit, "none", *[NOTHING] * (len(_HEADER) - 2))
    best = max(within, key=order)
    told = (f"{best.cosine:.6f}", times(best.speed), size(best.size_bytes))
    return (limit, best.name, best.decision, *told)
