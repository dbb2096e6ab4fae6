"""Does an embedding depend on anything but its text? Batch-mates, position, size, padding, chance.

Every setting embeds the same texts once more, otherwise batched; each is compared with the texts in
one batch of their own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from enginegate.accuracy.deltas import Array, Deltas
from enginegate.accuracy.limits import Limits
from enginegate.accuracy.retrieval import shortened
from enginegate.models import Batch, Workload, take, together, token_counts

Embed = Callable[[Batch], Array]
Rows = npt.NDArray[np.intp]

PROBED = 32  # texts
_FEW = 8  # texts in a small batch
_SEED = 8


@dataclass(frozen=True)
class Offender:
    """The text that changed most, and in which setting."""

    text: str
    setting: str


@dataclass(frozen=True)
class Invariance:
    """How much an embedding depends on what it is batched with.

    Attributes:
        max_abs: largest change of a component over all settings.
        relative: the same as a share of the largest component; this is what is judged.
        limit: largest allowed `relative`.
        worst: where it was.
        settings: `max_abs` of each setting that ran.
        skipped: why a setting did not run; empty if all did.
    """

    max_abs: float
    relative: float
    limit: float
    worst: Offender
    settings: Mapping[str, float]
    skipped: tuple[str, ...] = ()

    @property
    def broken(self) -> str:
        """The fault, with the text and the setting; empty if there is none."""
        if self.relative <= self.limit:
            return ""
        return (
            f"an embedding changes with its batch by {self.max_abs:.3g}, {self.relative:.3g} of "
            f"the largest component > {self.limit:g}: {self.worst.setting}, of the text "
            f'"{shortened(self.worst.text)}"'
        )


@dataclass(frozen=True)
class Determinism:
    """The same input twice, and the same build again.

    Attributes:
        bitwise: whether a second call gave the same bits.
        max_abs: largest difference between both calls.
        rebuilds: largest difference of each further build to the first, with --gate-rebuilds.
    """

    bitwise: bool
    max_abs: float
    rebuilds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Probe:
    """What an engine is probed with.

    Attributes:
        embed: gives embeddings [rows, dim] of a batch.
        batch: ONNX input name to tokens [texts, seq_len].
        texts: in the same order.
        mask: name of the input that says what is padding; None if there is none.
    """

    embed: Embed
    batch: Batch
    texts: Sequence[str]
    mask: str | None

    @property
    def chosen(self) -> Rows:
        """The texts to embed again, spread over all of them."""
        count = len(self.texts)
        return np.unique(np.linspace(0, count - 1, min(PROBED, count)).astype(np.intp))

    @property
    def length(self) -> int:
        """Tokens of a text with its padding."""
        return int(next(iter(self.batch.values())).shape[1])

    def rows(self, rows: Rows) -> Array:
        """Embeddings of these texts in one batch."""
        return self.embed(take(self.batch, rows))


def probe_of_engine(embed: Embed, workload: Workload) -> Probe:
    """A probe of the evaluation texts, of buckets those that fit into one call."""
    rows = together(workload.evaluation, PROBED)
    texts = [workload.texts[row] for row in rows]
    return Probe(embed, take(workload.evaluation, rows), texts, workload.mask)


def allowed_change(deltas: Deltas, limits: Limits) -> float:
    """Largest change with the batch, as a share of the largest component, that is allowed.

    The limit of the precision, or a third of the engine's own difference to the reference if that
    is more: where sums are taken in another order, an int8 engine rounds some activations the other
    way (measured: up to an eighth of its difference); ranges that are taken from the batch change
    it by more than a half.
    """
    return max(limits.invariance, deltas.max_abs_relative / 3)


def probe_stability(probe: Probe, allowed: float) -> tuple[Invariance, Determinism]:
    """Embed some texts again in every setting, and once more in the same one."""
    chosen = probe.chosen
    expected, again = probe.rows(chosen), probe.rows(chosen)
    found = dict(_settings(probe, chosen))
    padding, skipped = _with_less_padding(probe, chosen, expected)
    if padding is not None:
        found["with less padding"] = padding
    bitwise = bool(np.array_equal(expected, again))
    invariance = _invariance(found, expected, probe, allowed)
    return replace(invariance, skipped=skipped), Determinism(bitwise, largest(again, expected))


def largest(a: Array, b: Array) -> float:
    """Largest absolute difference of two sets of embeddings, in float64."""
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def _invariance(
    found: Mapping[str, Array], expected: Array, probe: Probe, limit: float
) -> Invariance:
    changes = {name: _by_row(np.abs(rows - expected)) for name, rows in found.items()}
    setting = max(changes, key=lambda name: float(changes[name].max()))
    max_abs = float(changes[setting].max())
    text = probe.texts[int(probe.chosen[changes[setting].argmax()])]
    return Invariance(
        max_abs=max_abs,
        relative=max_abs / float(np.abs(expected).max()),
        limit=limit,
        worst=Offender(text, setting),
        settings={name: float(change.max()) for name, change in changes.items()},
    )


def _by_row(values: Array) -> Array:
    """The largest of each row, of any shape."""
    largest_of: Array = values.reshape(len(values), -1).max(axis=1)
    return largest_of


def _settings(probe: Probe, chosen: Rows) -> Iterator[tuple[str, Array]]:
    """Embeddings [chosen, dim] of the chosen texts by setting, in their order."""
    shuffled = np.random.default_rng(_SEED).permutation(len(chosen))
    yield "alone", _in_order(probe, chosen, np.arange(len(chosen)), 1)
    yield "at another position", _in_order(probe, chosen, shuffled, len(chosen))
    yield f"in batches of {_FEW}", _in_order(probe, chosen, shuffled, _FEW)
    yield "beside other texts", _beside_others(probe, chosen)


def _in_order(probe: Probe, chosen: Rows, order: Rows, size: int) -> Array:
    """The chosen texts embedded in another order, `size` at a time, and put back."""
    rows = chosen[order]
    parts = [probe.rows(rows[start : start + size]) for start in range(0, len(rows), size)]
    found: Array = np.concatenate(parts)[np.argsort(order)]
    return found


def _beside_others(probe: Probe, chosen: Rows) -> Array:
    """Each half of the chosen texts behind as many others; behind all of them if those are all."""
    others = np.setdiff1d(np.arange(len(probe.texts)), chosen)
    parts = []
    for rows in np.array_split(chosen, 2):
        mates = np.resize(others if len(others) else chosen, len(rows))
        parts.append(probe.rows(np.concatenate([mates, rows]))[len(rows) :])
    return np.concatenate(parts)


def _with_less_padding(
    probe: Probe, chosen: Rows, expected: Array
) -> tuple[Array | None, tuple[str, ...]]:
    """Embeddings with every padded text alone and cut to its own length, or why there are none."""
    lengths = token_counts(take(probe.batch, chosen), probe.mask)
    if probe.mask is None:
        return None, ("padding not varied: the model takes no attention mask",)
    if min(lengths) == probe.length:
        return None, (f"padding not varied: every text fills its {probe.length} tokens",)
    try:
        return _trimmed(probe, chosen, lengths, expected), ()
    except Exception as error:  # every runtime raises its own kind for a fixed length
        reason = str(error).strip().partition("\n")[0][:200]
        return None, (f"padding not varied: the engine takes {probe.length} tokens only: {reason}",)


def _trimmed(probe: Probe, chosen: Rows, lengths: Sequence[int], expected: Array) -> Array:
    found = expected.copy()
    for place, (row, length) in enumerate(zip(chosen, lengths, strict=True)):
        if length < probe.length:
            one = take(probe.batch, slice(row, row + 1))
            kept = one[str(probe.mask)][0] > 0
            cut = {name: np.ascontiguousarray(v[:, kept]) for name, v in one.items()}
            here = kept if found.ndim > 2 else slice(None)  # noqa: PLR2004 - vectors of tokens
            found[place, here] = probe.embed(cut)[0]
    return found
