"""Timing of arms side by side: turns, mirrored blocks, replicates.

A replicate is one instantiation: all arms freshly loaded, in random order, among memory of random
size. Inside it the arms take turns in mirrored blocks (ABBA), so that drift cancels. A turn is
timed after an untimed while, because the arm before it has emptied the caches.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from enginegate.machine import Condition, GpuState, disturbance, is_steady, read_state
from enginegate.speed.arms import Arm, Turn

CANDIDATE, CONTROL, SECOND_CONTROL = "candidate", "yardstick", "sentinel"
METHOD = "mirrored blocks, turns of 5 ms"
TURN_S = 0.005  # timed part of a turn, one call at least: turns differ more than the calls in them
SETTLE_S = 0.01  # untimed part, most of what a call is slower with cold caches
SETTLE_BELOW_S = 0.05  # longer calls are not settled: a cold cache is lost in them
WARM_UP_S = 0.2  # of a GPU, as trtexec does; again until its clock is steady
_LONGEST_WARM_UP_S = 3.0
_TAIL = 0.99
Centre = Callable[[Turn], Any]


@dataclass(frozen=True)
class Block:
    """One mirrored block: two turns of every arm, there and back.

    Attributes:
        turns: seconds of each call, turn by turn, by arm; one turn each where the rig was brief.
        disturbance: what else the machine did meanwhile; empty if nothing.
        centre: what one turn is worth, of its calls.
    """

    turns: Mapping[str, tuple[Turn, ...]]
    disturbance: str = ""
    centre: Centre = np.median

    def seconds(self, arm: str) -> float:
        """Mean of the centres of its turns."""
        return float(np.mean([self.centre(turn) for turn in self.turns[arm]]))

    @cached_property
    def log_ratio(self) -> float:
        """Log of the candidate's seconds / the yardstick's, both copies of it where two ran.

        Two copies halve what the luck of one yardstick's instantiation adds to the ratio.
        """
        copies = [math.log(self.seconds(a)) for a in (CONTROL, SECOND_CONTROL) if a in self.turns]
        return math.log(self.seconds(CANDIDATE)) - sum(copies) / len(copies)

    @cached_property
    def sentinel_log_ratio(self) -> float:
        """Log of the second copy's seconds / the first one's."""
        return math.log(self.seconds(SECOND_CONTROL) / self.seconds(CONTROL))


@dataclass(frozen=True)
class Replicate:
    """The blocks of one instantiation at one batch size."""

    blocks: tuple[Block, ...]

    def log_ratio(self) -> float:
        """Median over the blocks of log(candidate / yardstick)."""
        return float(np.median([block.log_ratio for block in self.blocks]))

    def sentinel_log_ratio(self) -> float:
        """Median over the blocks of log(second yardstick / first)."""
        return float(np.median([block.sentinel_log_ratio for block in self.blocks]))

    def tail_log_ratio(self) -> float:
        """Log of the p99 of the candidate's calls / the yardstick's p99, of equally many calls."""
        arms = (self.calls(CANDIDATE), self.calls(CONTROL))
        count = min(map(len, arms))
        candidate, yardstick = (float(np.quantile(calls[:count], _TAIL)) for calls in arms)
        return math.log(candidate / yardstick)

    def calls(self, arm: str) -> Turn:
        """Seconds of every timed call of an arm."""
        return tuple(s for block in self.blocks for turn in block.turns[arm] for s in turn)


@dataclass(frozen=True)
class Samples:
    """All replicates of one batch size."""

    batch: int
    replicates: tuple[Replicate, ...]

    @property
    def log_ratios(self) -> list[float]:
        """Log of (candidate / yardstick) of each replicate."""
        return [replicate.log_ratio() for replicate in self.replicates]

    @property
    def sentinel_log_ratios(self) -> list[float]:
        """Log of (second yardstick / yardstick) of each replicate that measured it."""
        watched = (r for r in self.replicates if SECOND_CONTROL in r.blocks[0].turns)
        return [replicate.sentinel_log_ratio() for replicate in watched]

    @property
    def candidate_s(self) -> list[float]:
        """All timed calls of the candidate, in seconds."""
        return [s for replicate in self.replicates for s in replicate.calls(CANDIDATE)]

    @property
    def typical_s(self) -> float:
        """Centre of all timed calls of the candidate."""
        return float(self.replicates[0].blocks[0].centre(tuple(self.candidate_s)))

    @property
    def yardstick_s(self) -> list[float]:
        """All timed calls of the yardstick, in seconds."""
        return [s for replicate in self.replicates for s in replicate.calls(CONTROL)]

    @property
    def disturbances(self) -> list[str]:
        """Of each disturbed block, by what."""
        blocks = (block for replicate in self.replicates for block in replicate.blocks)
        return [block.disturbance for block in blocks if block.disturbance]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return sum(len(replicate.blocks) for replicate in self.replicates)


OpenArms = Callable[[Sequence[int], random.Random], AbstractContextManager[Mapping[str, Arm]]]


@dataclass(frozen=True)
class Compared:
    """Which engines a rig measures.

    Attributes:
        candidate: key of the engine in the cache.
        control: content hash of the engine it is measured beside; empty for the reference.
        way: the comparison in words, where it was chosen by what there is; else empty.
    """

    candidate: str
    control: str = ""
    way: str = ""


@dataclass(frozen=True)
class Rig:
    """Makes replicates of one variant.

    Attributes:
        open_arms: loads candidate, yardstick and sentinel anew, for the given batch sizes.
        replicate_s: seconds of one replicate, shared by its batch sizes; one block each at least.
        rng: order of loading, of the turns, and placement in memory.
        on_gpu: the arms that run on a GPU, whose clocks then matter.
        watch_self: whether the arms run in this process, so that its own counters matter.
        centre: what one turn is worth, of its calls: the median call, of a served engine the mean
            request, which by Little's law is concurrency / throughput.
        compared: which engines those are; None where the rig does not say.
        brief: a batch size whose mirrored block is longer than its time gets one turn of each arm.
    """

    open_arms: OpenArms
    replicate_s: float
    rng: random.Random
    watch_self: bool = True
    on_gpu: frozenset[str] = frozenset()
    centre: Centre = np.median
    compared: Compared | None = None
    brief: bool = False

    def replicate(self, batches: Sequence[int]) -> dict[int, Replicate]:
        """One replicate of each batch size; the smallest also watches the sentinel."""
        cell_s = self.replicate_s / len(batches)
        with self.open_arms(batches, self.rng) as arms:
            return {
                batch: self._blocks(arms, batch, cell_s, watched=batch == min(batches))
                for batch in batches
            }

    def _blocks(
        self, arms: Mapping[str, Arm], batch: int, cell_s: float, *, watched: bool
    ) -> Replicate:
        order = [name for name in arms if name != SECOND_CONTROL or watched]
        self.rng.shuffle(order)
        self._warm_up([arms[name] for name in order if name in self.on_gpu], batch)
        call_s = {name: min(arms[name].run(batch, SETTLE_S)) for name in order}
        if self.brief and 2 * sum(call_s.values()) > cell_s:
            return Replicate((self._block(arms, order, batch, call_s, mirrored=False),))
        start = time.perf_counter()
        blocks = [self._block(arms, order, batch, call_s)]
        block_s = time.perf_counter() - start
        while len(blocks) < round(cell_s / block_s):
            blocks.append(self._block(arms, order, batch, call_s))
        return Replicate(tuple(blocks))

    def _warm_up(self, arms: Sequence[Arm], batch: int) -> None:
        """Run arms of a GPU until its clock is steady, for it falls while the GPU has no work."""
        before, end = read_state() if arms else None, time.perf_counter() + _LONGEST_WARM_UP_S
        while arms and time.perf_counter() < end:
            for arm in arms:
                arm.run(batch, WARM_UP_S / len(arms))
            after = read_state()
            if is_steady([before, after]):
                return
            before = after

    def _block(
        self,
        arms: Mapping[str, Arm],
        order: Sequence[str],
        batch: int,
        call_s: Mapping[str, float],
        *,
        mirrored: bool = True,
    ) -> Block:
        before = Condition.now()
        settle = min(call_s.values()) < SETTLE_BELOW_S
        turns: dict[str, tuple[Turn, ...]] = dict.fromkeys(arms, ())
        gpu: list[GpuState | None] = []
        for name in [*order, *(reversed(order) if mirrored else ())]:
            turns[name] += (_turn(arms[name], batch, settle=settle),)
            gpu += [read_state()] if name in self.on_gpu else []
        disturbed = disturbance(before, Condition.now(), own=self.watch_self, gpu=gpu)
        return Block({name: turns[name] for name in order}, disturbed, self.centre)


def _turn(arm: Arm, batch: int, *, settle: bool) -> Turn:
    if settle:
        arm.run(batch, SETTLE_S)
    return arm.run(batch, TURN_S)
