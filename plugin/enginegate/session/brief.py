"""Short measurement, where there is nothing to compare with and nobody asked for a long one."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from enginegate.config import Options
from enginegate.models import Say
from enginegate.results import Result
from enginegate.session.recorder import Recorder
from enginegate.speed import Arm, Measured, Rig
from enginegate.variants import Precision
from enginegate.verdicts import Judgement, Refresh

Arms = Mapping[str, Arm]

BRIEF_S = 0.5  # of each batch size in a replicate
BRIEFLY = (
    "measured shortly, as there is nothing to compare with: each speedup is known as well as its "
    "interval says; --gate-measure-s=6 measures longer"
)


def wants_long(options: Options) -> bool:
    """Tell if somebody asked for a long measurement, or for figures to be kept."""
    kept = options.history or options.calibrate or options.refresh is not Refresh.NONE
    return options.own_time or kept


def brief_rig(rig: Rig, batches: Sequence[int]) -> Rig:
    """The rig with little time for each batch size."""
    return replace(rig, replicate_s=BRIEF_S * len(batches), brief=True)


def measured_before(
    recorder: Recorder, result: Result, batches: Sequence[int], missing: Judgement
) -> dict[int, Measured]:
    """What was measured of an earlier engine that is this one; empty if not all of it was."""
    known, other = recorder.measured, recorder.latest(result).same_as
    twin = replace(result.variant, precision=Precision(other)).id if other else ""
    if any((twin, batch) not in known for batch in batches):
        return {}
    found = {batch: known[twin, batch] for batch in batches}
    if any(one.speed.change for one in found.values()):
        return {}
    return {b: replace(m, speed=replace(m.speed, judgement=missing)) for b, m in found.items()}


def shown(rig: Rig, live: Callable[[str], None]) -> Rig:
    """The rig, each of its replicates shown."""
    numbers = itertools.count(1)

    def opened(sizes: Sequence[int], rng: random.Random) -> AbstractContextManager[Arms]:
        live(f"replicate {next(numbers)}, batch {', '.join(map(str, sizes))}")
        return rig.open_arms(sizes, rng)

    return replace(rig, open_arms=opened)


def tell(say: Say, text: str) -> None:
    """Say it, if anybody listens."""
    if say:
        say(text)
