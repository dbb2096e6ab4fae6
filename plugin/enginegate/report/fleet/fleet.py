"""What a fleet found: one decision per model, precision and kind of machine, one exit status."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from enginegate.report.decision import held
from enginegate.report.fleet.fit import fitting
from enginegate.report.fleet.machines import Pair, compared_machines
from enginegate.report.fleet.parts import Engine, Part, read_part
from enginegate.report.page import Decided
from enginegate.speed import ALARM
from enginegate.verdicts import Verdict, exit_status

INTERRUPTED = 2  # exit status of pytest
_APART = "its embeddings differ between machines"
_STEP = "serve and index on one kind of machine, or build it otherwise"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Fleet:
    """Reports that fit together.

    Attributes:
        parts: each once, by kind of machine and shard.
        missing: sentences on shards that there is no report of.
        unjudged: engines that a shard was to judge and has no result of.
        pairs: engines on two kinds of machines.
        alarm: chance of a false `regressed` in the whole fleet, missing shards included.
    """

    parts: tuple[Part, ...]
    missing: tuple[str, ...]
    unjudged: tuple[str, ...]
    pairs: tuple[Pair, ...]
    alarm: float

    @property
    def kinds(self) -> list[str]:
        """Kinds of machines, in order."""
        return list(dict.fromkeys(part.kind for part in self.parts))

    @property
    def apart(self) -> list[Pair]:
        """Engines whose embeddings differ between two kinds beyond their precision's limits."""
        return [pair for pair in self.pairs if pair.broken]

    @property
    def shares_alarm(self) -> bool:
        """Tell if the whole fleet keeps to the alarm error of one run."""
        return self.alarm <= ALARM + _ROUNDING

    @property
    def interrupted(self) -> list[str]:
        """Reports that were stopped, and by what."""
        return [f"{part.file} ({part.interrupted})" for part in self.parts if part.interrupted]

    @property
    def status(self) -> int:
        """The exit status, with the meaning of that of a run."""
        reasons = [reason for part in self.parts for reason in part.failures]
        reasons += ["error"] if self.missing else []
        reasons += [Verdict.FAIL] if self.apart else []
        return exit_status(reasons) or (INTERRUPTED if self.interrupted else 0)

    def engines(self) -> Iterator[tuple[Part, Engine, Decided]]:
        """Every engine with its decision in the fleet."""
        apart = {(p.model, p.precision, part) for p in self.apart for part in map(id, p.parts)}
        for part in self.parts:
            for engine in part.engines:
                is_apart = (engine.model, engine.precision, id(part)) in apart
                found = held(engine.decided, _APART, _STEP) if is_apart else engine.decided
                yield part, engine, found


def merged(files: Sequence[Path]) -> Fleet:
    """The fleet that these reports are of. Raises ReportError where they do not fit together."""
    plans: dict[str, Any] = {}
    found = fitting([_sharing(read_part(path), plans) for path in files])
    parts = sorted(found, key=lambda part: (part.kind, part.shard.get("number", 0)))
    return Fleet(
        parts=tuple(parts),
        missing=tuple(_missing(parts)),
        unjudged=tuple(_unjudged(parts)),
        pairs=tuple(compared_machines(parts)),
        alarm=_alarm(parts),
    )


def _sharing(part: Part, plans: dict[str, Any]) -> Part:
    """The report with what was asked held once for all shards of a plan."""
    if not part.shard:
        return part
    asked = plans.setdefault(part.shard["plan"], part.shard["asked"])
    return replace(part, shard={**part.shard, "asked": asked})


def _missing(parts: Sequence[Part]) -> Iterator[str]:
    plan = parts[0].shard
    if not plan:
        return
    kinds = list(dict.fromkeys(part.kind for part in parts))
    for kind in kinds:
        mine = {part.shard["number"]: part for part in parts if part.kind == kind}
        if gone := [str(n) for n in range(1, plan["count"] + 1) if n not in mine]:
            where = f" on {kind}" if kind else ""
            lost = ", ".join(_left(plan, mine)) or "nothing was left for it"
            yield f"missing: shard {', '.join(gone)} of {plan['count']}{where}: {lost}"
    if (gone_kinds := plan["kinds"] - len(kinds)) > 0:
        yield f"missing: all shards of {gone_kinds} of {plan['kinds']} kinds of machines"


def _left(plan: Mapping[str, Any], mine: Mapping[int, Part]) -> Iterator[str]:
    """What the plan has and the shards that are there do not run."""
    ours = {tuple(one) for part in mine.values() for one in part.shard["variants"]}
    models, precisions = plan["asked"]["models"], plan["asked"]["precisions"]
    whole = ((model, precision) for model in models for precision in precisions)
    return (" ".join(one) for one in whole if one not in ours)


def _unjudged(parts: Sequence[Part]) -> Iterator[str]:
    """What a shard was to judge and did not; nothing where a fixture names the model itself."""
    for part in parts:
        judged = {(engine.model, engine.precision) for engine in part.engines}
        models = {engine.model for engine in part.engines}
        known = models <= set(part.shard["asked"]["models"]) if part.shard else False
        for model, precision in part.shard["variants"] if known else ():
            if (model, precision) not in judged:
                yield f"not judged: {model} {precision} of {part.name}"


def _alarm(parts: Sequence[Part]) -> float:
    """By Bonferroni: the sum over all runs of the fleet."""
    plan = parts[0].shard
    runs = plan["count"] * max(plan["kinds"], len({p.kind for p in parts})) if plan else len(parts)
    mean = sum(part.alarm for part in parts) / len(parts)
    return float(mean * runs)
