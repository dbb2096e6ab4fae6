"""The highest rate of open-loop load that holds a limit of latency, found by search. Pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from enginegate.config import Slo
from enginegate.serving.load.sweep import CLIENT_BOUND
from enginegate.serving.records import Capacity, OpenLevel, SearchEnd

Probe = Callable[[float], OpenLevel]


@dataclass(frozen=True)
class SearchRules:
    """How closely and how far is searched.

    Attributes:
        precision: the rates that held and that did not are to be so close, as a ratio - 1.
        near: a probe whose figure is nearer to the limit than this, as a ratio - 1, is repeated,
            and so is one that does not hold: a single stall fails a probe at any rate.
        repeats: odd; probes of one rate, of which the majority decides as soon as it is known.
        least_per_s, most_per_s: rates between which is searched.
    """

    precision: float = 0.05
    near: float = 0.25
    repeats: int = 3
    least_per_s: float = 0.5
    most_per_s: float = 100_000


RULES = SearchRules()


def find_capacity(
    probe: Probe, slo: Slo, start_per_s: float, rules: SearchRules = RULES
) -> Capacity:
    """Double or halve from `start_per_s` until the limit lies between, then halve the ratio.

    `probe` runs a level at a rate. A level that its client was the bottleneck of decides nothing
    and ends the search upwards.
    """
    search = _Search(probe, slo, rules)
    search.bracket(start_per_s)
    while search.low and search.high and search.high > search.low * (1 + rules.precision):
        search.step(math.sqrt(search.low * search.high))
    return search.result()


@dataclass
class _Search:
    probe: Probe
    slo: Slo
    rules: SearchRules
    low: float = 0.0
    high: float | None = None
    client_bound: bool = False
    probes: list[OpenLevel] = field(default_factory=list)

    def bracket(self, rate_per_s: float) -> None:
        """Until one rate held and one did not, or there is nowhere left to go."""
        rate_per_s = min(max(rate_per_s, self.rules.least_per_s), self.rules.most_per_s)
        self.step(rate_per_s)
        while self.low and self.high is None and self.low < self.rules.most_per_s:
            self.step(min(2 * self.low, self.rules.most_per_s))
        while self.high and not self.low and self.high > self.rules.least_per_s:
            self.step(max(self.high / 2, self.rules.least_per_s))

    def step(self, rate_per_s: float) -> None:
        """Decide on one rate."""
        first = len(self.probes)
        if self._holds(rate_per_s):
            self.low = rate_per_s
        else:
            self.high = rate_per_s
            self.client_bound = any(map(_is_client_bound, self.probes[first:]))

    def _holds(self, rate_per_s: float) -> bool:
        votes = [self._vote(rate_per_s)]
        if votes[0] and not self._is_near(self.probes[-1]):
            return True
        while not _decided(votes, self.rules.repeats):
            votes.append(self._vote(rate_per_s))
        return 2 * sum(votes) > len(votes)

    def _vote(self, rate_per_s: float) -> bool:
        level = self.probe(rate_per_s)
        self.probes.append(level)
        return _figure_s(self.slo, level) <= self.slo.limit_s and not _is_client_bound(level)

    def _is_near(self, level: OpenLevel) -> bool:
        ratio = _figure_s(self.slo, level) / self.slo.limit_s
        return 1 / (1 + self.rules.near) < ratio < 1 + self.rules.near

    def result(self) -> Capacity:
        """The capacity found."""
        high = None if self.client_bound else self.high
        return Capacity(self.slo, self._end(), self.low, high, tuple(self.probes))

    def _end(self) -> SearchEnd:
        if self.client_bound:
            return SearchEnd.CLIENT
        if self.high is None:
            return SearchEnd.HIGHEST
        return SearchEnd.FOUND if self.low else SearchEnd.NEVER


def _figure_s(slo: Slo, level: OpenLevel) -> float:
    """The latency of a level that an objective is about."""
    return float(getattr(level.latency, f"{slo.figure}_s"))


def _is_client_bound(level: OpenLevel) -> bool:
    return any(mark.startswith(CLIENT_BOUND) for mark in level.marks)


def _decided(votes: list[bool], most: int) -> bool:
    return 2 * max(votes.count(True), votes.count(False)) > most
