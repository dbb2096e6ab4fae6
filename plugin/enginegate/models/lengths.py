"""Texts of many lengths: buckets of tokens, and batches padded to their longest text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

AUTO = "auto"
_SQUARES = 32 * 512**2  # rows times tokens squared in one call
_SMALLEST = 16  # tokens of a bucket: shorter ones would tell nothing apart

Tokens = npt.NDArray[np.signedinteger[Any]]  # int64, or int32 for an input that takes that
Batch = Mapping[str, Tokens]
Lengths = str | Sequence[int]
Rows = slice | npt.NDArray[np.intp]


class Bucketed(dict[str, Tokens]):
    """A batch whose rows have lengths of their own, all padded to the longest of them.

    What `take` takes of it is cut to the longest row taken, as a server pads a batch.

    Attributes:
        widths: tokens of each row with the padding of its bucket.
        left: padding stands before the tokens.
    """

    def __init__(self, values: Batch, widths: Sequence[int], *, left: bool) -> None:
        super().__init__(values)
        self.widths = tuple(map(int, widths))
        self.left = left

    def rows(self, rows: Rows) -> "Bucketed":
        """The given rows of every input, contiguous, as wide as the longest of them."""
        widths = np.array(self.widths)[rows]
        width = int(widths.max(initial=1))
        kept = slice(-width, None) if self.left else slice(width)
        cut = {name: np.ascontiguousarray(v[rows][:, kept]) for name, v in self.items()}
        return Bucketed(cut, tuple(widths), left=self.left)


def with_inputs(batch: Batch, names: Sequence[str]) -> Batch:
    """Only these inputs of a batch."""
    some = {name: batch[name] for name in names}
    if not isinstance(batch, Bucketed):
        return some
    return Bucketed(some, batch.widths, left=batch.left)


def widths_of(batch: Batch) -> npt.NDArray[np.intp]:
    """Tokens of each row with the padding of its bucket: [rows]."""
    if isinstance(batch, Bucketed):
        return np.array(batch.widths, dtype=np.intp)
    rows, columns = next(iter(batch.values())).shape
    return np.full(rows, columns, dtype=np.intp)


def rows_at_once(width: int, size: int) -> int:
    """Rows of one length that fit into a call: `size`, but fewer where attention needs its square.

    Of 32 texts that are 512 tokens, 8 of 1,024, 2 of 2,048.
    """
    return max(1, min(size, _SQUARES // width**2))


def together(batch: Batch, size: int) -> npt.NDArray[np.intp]:
    """The rows of which `size` fit into one call, in order; the shortest bucket at least."""
    widths = widths_of(batch)
    if not isinstance(batch, Bucketed):
        return np.arange(len(widths))
    able = [int(width) for width in np.unique(widths) if rows_at_once(int(width), size) == size]
    return np.flatnonzero(widths <= max(able, default=int(widths.min())))


def by_length(batch: Batch, size: int) -> Iterator[npt.NDArray[np.intp]]:
    """All rows, at most `size` of one bucket at a time, shorter ones first."""
    if not isinstance(batch, Bucketed):
        rows = np.arange(len(next(iter(batch.values()))))
        yield from (rows[start : start + size] for start in range(0, len(rows), size))
        return
    widths = widths_of(batch)
    for width in np.unique(widths):
        rows = np.flatnonzero(widths == width)
        count = rows_at_once(int(width), size)
        yield from (rows[start : start + count] for start in range(0, len(rows), count))


def for_all(
    batch: Batch, size: int, make: Callable[[npt.NDArray[np.intp]], Any]
) -> npt.NDArray[np.float32]:
    """What `make` makes of all rows, some of one length at a time, in the order of the rows."""
    parts = list(by_length(batch, size))
    made = np.concatenate([make(rows) for rows in parts])
    ordered: npt.NDArray[np.float32] = made[np.argsort(np.concatenate(parts))]
    return ordered


def bucket_widths(
    counts: npt.NDArray[np.intp], lengths: Lengths, longest: int | None
) -> npt.NDArray[np.intp]:
    """The bucket of each text, by its tokens, at most those of the longest bucket.

    `auto` has powers of two, the last of which is `longest` if the model has such a limit.
    """
    if lengths == AUTO:
        powers = 2 ** np.ceil(np.log2(np.maximum(counts, _SMALLEST))).astype(np.intp)
        return np.minimum(powers, longest) if longest else powers
    buckets = np.array(sorted(map(int, lengths)), dtype=np.intp)
    return buckets[np.searchsorted(buckets, counts)]


def most_tokens(lengths: Lengths, longest: int | None) -> int | None:
    """Tokens that a text is cut at; None for no limit."""
    return longest if lengths == AUTO else max(map(int, lengths))
