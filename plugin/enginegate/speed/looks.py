"""Looks at a screening: the error spent over them, and whether going on can decide anything."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from enginegate.speed.stats import (
    FEWEST_REPLICATES,
    Anchor,
    Errors,
    decides,
    student_t,
)

_RHO = 1.5  # of the spending function: between 1, which favours early looks, and 3, late ones
_GROWTH = 5 / 3  # from look to look: one costs little, each that is missed some replicates
_LUCK = 0.99  # of the means that may be, below and above


def looks(planned: int, error: float, *, early: bool) -> Iterator[tuple[int, float]]:
    """Numbers of replicates at which a screening is looked at, each with its share of `error`.

    By the spending function error · (n / planned)^1.5 of Kim and DeMets (1987, Biometrika 74;
    Lan and DeMets 1983, Biometrika 70). Each look is tested at what was spent since the one before,
    so all together err with `error` at most, however they depend on each other (Bonferroni); a
    group-sequential boundary would be a little sharper, and would need their joint distribution.
    """
    spent = 0.0
    for count in (*(_early(planned) if early else ()), planned):
        whole = error * (count / planned) ** _RHO
        yield count, whole - spent
        spent = whole


def _early(planned: int) -> Iterator[int]:
    """3, 5, 8, 13, ... of fewer than planned."""
    count = FEWEST_REPLICATES
    while count < planned:
        yield count
        count = round(count * _GROWTH)


def decidable(
    values: Sequence[float], anchor: Anchor, limit: float, errors: Errors, left: int
) -> bool:
    """Tell if `left` fresh replicates may decide, were the mean as far off as it can well be.

    Giving up never makes an alarm; as the mean is taken anywhere in its interval of 98 %, it costs
    little power.
    """
    count = len(values)
    if left < FEWEST_REPLICATES:
        return False
    luck = student_t(_LUCK, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    off = (replace(anchor, level=anchor.level + shift) for shift in (-luck, 0.0, luck))
    return any(decides(values, moved, limit, errors, left) for moved in off)
