"""What the gate is worth on this machine: a candidate beside itself, played through many runs."""

import datetime
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enginegate.baselines.store import CALIBRATION
from enginegate.errors import BaselineError
from enginegate.files import locked, parse_json, read_text, readable_json, reading, write_atomic
from enginegate.results import Result
from enginegate.speed import FLOOR_S, P50, POWER, Anchor, Question, Rules, SequentialTest
from enginegate.verdicts import Verdict

REPLICATES = 24
_SCHEMA = 1
_RUNS = 300
_STEPS = 7
_MOST_SLOWDOWN = 1.0


@dataclass(frozen=True)
class Calibration:
    """What the gate does at the present settings with one batch size.

    Attributes:
        date: day, ISO 8601.
        replicates: real ones, of the engine beside itself, that the runs were drawn from.
        bias: mean of their log ratios; the truth is 0.
        spread: standard deviation of their log ratios.
        false_alarm_rate: share of simulated runs of the unchanged engine called regressed.
        visible: smallest slowdown found in 4 of 5 runs, 0.07 for 7 %; None if none under 100 %.
    """

    date: str
    replicates: int
    bias: float
    spread: float
    false_alarm_rate: float
    visible: float | None


@dataclass(frozen=True)
class Drawn:
    """A replicate that was drawn instead of measured."""

    value: float

    def log_ratio(self) -> float:
        """The drawn log ratio."""
        return self.value


def calibrate_results(
    results: Sequence[Result], limit: float, rules: Rules, measured_s: float, seed: int
) -> dict[str, Calibration]:
    """Calibrate the gate with these rules by batch size, from engines beside themselves."""
    taken = sum(max((len(s.log_ratios[P50]) for s in r.speeds), default=0) for r in results)
    replicate_s = measured_s / max(1, taken)
    return {
        f"{result.variant.id} batch {speed.batch}": calibrate(
            speed.log_ratios[P50], max(limit, FLOOR_S / speed.p50_s), rules, replicate_s, seed
        )
        for result in results
        for speed in result.speeds
    }


def calibrate(
    log_ratios: Sequence[float], limit: float, rules: Rules, replicate_s: float, seed: int
) -> Calibration:
    """Play runs with replicates drawn, with replacement, from real ones of an unchanged engine.

    `replicate_s` is the time that one replicate takes; the played runs end by it.
    """
    rng = random.Random(seed)  # noqa: S311 - draws, not secrets

    def found(slowdown: float) -> float:
        shifted = [value + math.log1p(slowdown) for value in log_ratios]
        return share_regressed(shifted, limit, rules, replicate_s, _RUNS, rng)

    mean = math.fsum(log_ratios) / len(log_ratios)
    squares = math.fsum((value - mean) ** 2 for value in log_ratios)
    return Calibration(
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        replicates=len(log_ratios),
        bias=round(mean, 5),
        spread=round(math.sqrt(squares / (len(log_ratios) - 1)), 5),
        false_alarm_rate=found(0.0),
        visible=_smallest(found, limit),
    )


def _smallest(found: Any, limit: float) -> float | None:
    """The slowdown that is found with the power wanted, by bisection."""
    low, high = limit, _MOST_SLOWDOWN
    if found(high) < POWER:
        return None
    for _ in range(_STEPS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if found(middle) >= POWER else (middle, high)
    return round(high, 4)


def share_regressed(
    log_ratios: Sequence[float],
    limit: float,
    rules: Rules,
    replicate_s: float,
    runs: int,
    rng: random.Random,
) -> float:
    """Share of played runs of one batch size that end as regressed."""
    verdicts = [play(log_ratios, limit, rules, replicate_s, rng) for _ in range(runs)]
    return verdicts.count(Verdict.REGRESSED) / runs


def play(
    log_ratios: Sequence[float],
    limit: float,
    rules: Rules,
    replicate_s: float,
    rng: random.Random,
    anchor: Anchor | None = None,
) -> Verdict:
    """The verdict of one run whose replicates are drawn; time passes by `replicate_s` each."""
    now_s = 0.0

    def measure(batches: Sequence[int]) -> Mapping[int, Any]:
        nonlocal now_s
        now_s += replicate_s
        return {batch: Drawn(rng.choice(log_ratios)) for batch in batches}

    question = Question(anchor or Anchor(), limit, scale_s=1.0)
    outcome = SequentialTest(rules, lambda: now_s).run(measure, [1], {(1, P50): question})
    return outcome.findings[1, P50].judgement.verdict


def save_calibration(
    folder: Path, found: Mapping[str, Calibration], settings: Mapping[str, Any]
) -> Path:
    """Write the cells into the machine's file and keep its others.

    Raises BaselineError if the present file is not valid, and FileError.
    """
    path = folder / CALIBRATION
    with locked(path):
        before = _stored(path)
        cells = {
            name: asdict(value) | {"settings": dict(settings)} for name, value in found.items()
        }
        write_atomic(path, readable_json({"schema": _SCHEMA, "cells": {**before, **cells}}))
    return path


def _stored(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with reading(path, "calibration", "restore or delete it", BaselineError):
        content = parse_json(read_text(path))
        if content["schema"] != _SCHEMA:
            raise ValueError(f"schema {content['schema']}, this version reads {_SCHEMA}")
        return dict(content["cells"])


def calibration_lines(found: Mapping[str, Calibration]) -> list[str]:
    """The findings in words."""
    return [f"calibration: {name}: {_words(value)}" for name, value in found.items()]


def _words(found: Calibration) -> str:
    least = f"{found.visible:.1%} or more" if found.visible else "nothing under 100 %"
    return (
        f"bias {found.bias:+.2%}, spread {found.spread:.2%} over {found.replicates} replicates; "
        f"{found.false_alarm_rate:.1%} of {_RUNS} played runs are false alarms; detectable: {least}"
    )
