"""The length from which on embeddings are off: found by cutting the same texts shorter.

Cutting tells a fault of the length from one of the words: what a text has lost at 129 tokens, and
the same text cut to 128 has not, it lost by its length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
import numpy.typing as npt

from enginegate.accuracy.deltas import Array
from enginegate.models import Batch, take, widths_of

_TRIED = 4  # texts that are cut
_FEWEST = 3  # texts on either side of a length
_FARTHER = 4.0  # times the error of all shorter texts: a fault of the length may begin here
_OFF, _AS_BEFORE = 3.0, 1.5  # times the error of the same text cut to where nothing is wrong
_LEAST = 1e-4  # of an embedding's length: two runtimes in fp32 agree to about 1e-6
_ROUNDING = 5e-7  # of it, whatever an engine does right
_PLACES = 3  # lengths looked at on either side, so that no single one decides

Values = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]
Embed = Callable[[Batch], Array]


@dataclass(frozen=True)
class Onset:
    """Where a fault of the length begins.

    Attributes:
        tokens: from so many on the embeddings are off.
        right: the longest at which they were seen to be as near as those of shorter texts.
        error: largest difference of an embedding at `tokens`, as a share of its length; infinite
            where one is not a number.
        error_before: the same at `right`.
        texts: that were cut to find it.
    """

    tokens: int
    right: int
    error: float
    error_before: float
    texts: int

    @property
    def words(self) -> str:
        """One sentence, which claims no more than was seen."""
        exact = self.tokens == self.right + 1
        from_on = f"from {self.tokens} tokens on"
        begins = from_on if exact else f"from between {self.right + 1} and {self.tokens} tokens on"
        now = f"{self.error:.2g}" if isfinite(self.error) else "what is not a number"
        return (
            f"off {begins}: relative differences are up to {self.error_before:.2g} where "
            f"{self.texts} texts are cut to {self.right} tokens, and up to {now} where the same "
            f"are cut to {self.tokens}"
        )


def find_onset(
    counts: Sequence[int], errors: Values, batch: Batch, mask: str | None, probed: "Probed"
) -> Onset | None:
    """Where a fault begins that is of the length of the texts; None where the evidence shows none.

    Args:
        counts: tokens of each text.
        errors: difference of each text's embedding, as a share of its length: [texts].
        batch: ONNX input name to tokens [texts, seq_len].
        mask: name of the input that says what is padding; None if there is none.
        probed: the engine beside the reference.
    """
    lengths = np.array(counts)
    edge = _edge(lengths, errors)
    if edge is None:
        return None
    off = np.flatnonzero((lengths >= edge) & (errors > _FARTHER * errors[lengths < edge].max()))
    off = off[np.argsort(lengths[off], kind="stable")]
    first = max(0, min(len(off) // 2, len(off) - _TRIED))
    rows = off[first : first + _TRIED]
    right = int(lengths[lengths < edge].max())
    return _Cut(batch, mask, rows, probed).onset(right, int(lengths[rows].min()))


def _edge(counts: Rows, errors: Values) -> int | None:
    """The length that parts near texts from far ones best; None where none does."""
    best, found = _FARTHER, None
    for edge in np.unique(counts)[1:]:
        near, far = errors[counts < edge], errors[counts >= edge]
        if min(len(near), len(far)) < _FEWEST or np.median(far) < _LEAST:
            continue
        nearest = max(float(near.max()), _ROUNDING)
        ratio = float(np.median(far)) / nearest if isfinite(nearest) else 0.0
        if ratio > best:
            best, found = ratio, int(edge)
    return found


def relative_errors(found: Array, expected: Array) -> Values:
    """Difference of each embedding [texts, dim], as a share of its length; inf of what is NaN."""
    wide, true = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.linalg.norm(wide - true, axis=1) / np.linalg.norm(true, axis=1)
    errors: Values = np.where(np.isfinite(off), off, np.inf)
    return errors


@dataclass(frozen=True)
class Probed:
    """An engine beside its reference: embeddings [rows, dim] of any tokens."""

    engine: Embed
    reference: Embed

    def errors(self, batch: Batch) -> Values:
        """Differences of their embeddings of a batch: [rows]."""
        return relative_errors(self.engine(batch), self.reference(batch))


@dataclass(frozen=True)
class _Cut:
    """Some texts, cut to any length."""

    batch: Batch
    mask: str | None
    rows: Rows
    probed: Probed
    known: dict[int, Values] = field(default_factory=dict)

    def errors(self, tokens: int) -> Values:
        """Their errors where they are cut to their first tokens: [rows]."""
        if tokens not in self.known:
            parts = [self.probed.errors(self._first(row, tokens)) for row in self.rows]
            self.known[tokens] = np.concatenate(parts)
        return self.known[tokens]

    def _first(self, row: int, tokens: int) -> Batch:
        one = take(self.batch, np.array([row]))
        width = int(widths_of(one)[0])
        real = one[self.mask][0] > 0 if self.mask else np.ones(width, dtype=bool)
        kept = np.flatnonzero(real)[:tokens]
        return {name: np.ascontiguousarray(values[:, kept]) for name, values in one.items()}

    def onset(self, right: int, wrong: int) -> Onset | None:
        """Where it begins, between a length of near texts and one of far texts."""
        noise = self._noise(right)
        off = self._search(right, wrong, noise, _OFF)
        if off is None or not self._stays(off, wrong, noise):
            return None
        begins = self._search(right, off, noise, _AS_BEFORE) or off
        error, before = (float(self.errors(tokens).max()) for tokens in (off, begins - 1))
        return Onset(off, begins - 1, error, before, len(self.rows))

    def _noise(self, right: int) -> Values:
        """Largest errors of each where nothing is wrong: [rows]."""
        lengths = {max(2, right * part // _PLACES) for part in range(1, _PLACES + 1)}
        found = np.max([self.errors(tokens) for tokens in lengths], axis=0)
        least: Values = np.maximum(found, _ROUNDING)
        return least

    def _level(self, tokens: int, noise: Values) -> float:
        with np.errstate(invalid="ignore"):
            return float(np.median(self.errors(tokens) / noise))

    def _search(self, right: int, wrong: int, noise: Values, level: float) -> int | None:
        """The first length beyond a level, by halving; None where the ends do not differ so."""
        if not self._level(right, noise) <= level < self._level(wrong, noise):
            return None
        while wrong - right > 1:
            middle = (right + wrong) // 2
            if self._level(middle, noise) > level:
                wrong = middle
            else:
                right = middle
        return wrong

    def _stays(self, off: int, wrong: int, noise: Values) -> bool:
        """Tell if it is off at longer lengths too."""
        lengths = {off + (wrong - off) * part // _PLACES for part in range(_PLACES + 1)}
        return all(self._level(tokens, noise) > _OFF for tokens in lengths)
