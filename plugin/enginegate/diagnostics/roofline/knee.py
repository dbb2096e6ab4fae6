"""Where measured time per call starts to grow with the batch. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

_FEWEST = 5
_GRID = 400
_FLAT = 0.25  # of the later slope: up to that, the first piece counts as flat

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Knee:
    """A line that breaks once.

    Attributes:
        batch: where it breaks.
        before_s: seconds that one more text costs before.
        after_s: and after.
        error: root mean square of the relative residuals.
    """

    batch: float
    before_s: float
    after_s: float
    error: float

    @property
    def flat_before(self) -> bool:
        """Whether time hardly grows before the break; else it grows from the first batch on."""
        return self.before_s <= _FLAT * self.after_s


def find_knee(batches: Sequence[int], seconds: Sequence[float]) -> Knee:
    """The broken line through measured times that fits best in relative terms.

    `t = a + b n + c max(0, n - k)`, none of a, b, c negative, by weighted least squares for each k
    of a geometric grid from the second batch size to the last but one.
    Raises ValueError for fewer than 5 times.
    """
    if len(batches) < _FEWEST or len(batches) != len(seconds):
        raise ValueError(f"{len(batches)} batch sizes: a broken line needs {_FEWEST} or more")
    order = np.argsort(batches)
    sizes, times = (np.asarray(values, np.float64)[order] for values in (batches, seconds))
    breaks = np.geomspace(sizes[1], sizes[-2], _GRID)
    return min((_broken(sizes, times, float(at)) for at in breaks), key=lambda knee: knee.error)


def _broken(sizes: Floats, times: Floats, at: float) -> Knee:
    columns = np.stack([np.ones_like(sizes), sizes, np.maximum(0, sizes - at)], axis=1)
    (_, before, more), residual = nnls(columns / times[:, None], np.ones_like(times))
    return Knee(at, float(before), float(before + more), float(residual) / math.sqrt(len(times)))
