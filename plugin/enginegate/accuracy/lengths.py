"""Embeddings judged by the length of their texts: each bucket by itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from enginegate.accuracy.bootstrap import Interval, mean_interval
from enginegate.accuracy.deltas import Array, Deltas, violations
from enginegate.accuracy.limits import Limits
from enginegate.accuracy.outputs import Outputs
from enginegate.accuracy.retrieval import NEAR, Vectors, recall
from enginegate.errors import EmbeddingError
from enginegate.models import Workload, widths_of
from enginegate.verdicts import Judgement, Verdict

_MANY = 100  # texts: the 1st percentile of fewer is their smallest
_SOME = 16  # texts: what fewer show of gain and search is those texts, not the engine

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class AtLength:
    """What is known of the texts of a bucket.

    Attributes:
        tokens: that its texts are padded to.
        shortest, longest: tokens of its texts, padding not counted.
        texts: how many.
        judgement: by the limits that so many texts can be held to.
        deltas: `scale` is that of all texts; None where its texts are all the same ones.
        recall_at_10: of its texts, each searched among the others; None of fewer than 16.
    """

    tokens: int
    shortest: int
    longest: int
    texts: int
    judgement: Judgement
    deltas: Deltas | None
    recall_at_10: Interval | None

    @property
    def name(self) -> str:
        """`9 to 16 tokens`."""
        return f"{self.shortest} to {self.longest} tokens"

    @property
    def verdict(self) -> str:
        """In words; texts that are the same ones are judged among all others alone."""
        judged = self.deltas or self.judgement.verdict is not Verdict.PASS
        return str(self.judgement.verdict) if judged else "not judged apart"


@dataclass(frozen=True)
class Seen:
    """All texts as one engine and the reference see them.

    Attributes:
        found, expected: embeddings [texts, dim] of the engine and the reference.
        deltas: of all of them.
    """

    found: Array
    expected: Array
    deltas: Deltas


def at_lengths(
    workload: Workload, outputs: Outputs, seen: Seen, limits: Limits, tight: Limits
) -> tuple[AtLength, ...]:
    """Each bucket of a workload, shortest first; none where all texts have one length.

    Nor of pairs, which are judged by query.
    """
    if not workload.buckets or workload.pairs:
        return ()
    widths = widths_of(workload.evaluation)

    def one(width: int) -> AtLength:
        rows = np.flatnonzero(widths == width)
        deltas, reasons = _deltas(outputs, seen, rows)
        found, tokens = _recall(outputs, seen, rows), np.array(outputs.tokens)[rows]
        judged = reasons or _judged(deltas, found, len(rows), limits, tight)
        counts = int(tokens.min()), int(tokens.max()), len(rows)
        return AtLength(width, *counts, judged, deltas, found)

    return tuple(map(one, workload.buckets))


def _deltas(outputs: Outputs, seen: Seen, rows: Rows) -> tuple[Deltas | None, Judgement | None]:
    """Deltas of some texts, or the judgement where there are none."""
    expected = seen.expected[rows]
    try:
        outputs.sane(expected, "the reference")
    except EmbeddingError:
        return None, Judgement(Verdict.PASS)  # texts that are the same where they are cut
    try:
        deltas = outputs.compare(seen.found[rows], expected)
    except EmbeddingError as error:
        return None, Judgement(Verdict.FAIL, (str(error),))
    worst = int(rows[deltas.worst_text])
    return replace(deltas, scale=seen.deltas.scale, worst_text=worst), None


def _recall(outputs: Outputs, seen: Seen, rows: Rows) -> Interval | None:
    """What a search among some texts still finds; among all, others' faults would be theirs."""
    if len(rows) < _SOME:
        return None
    now, then = (outputs.whole.similar(Vectors(v[rows])) for v in (seen.found, seen.expected))
    return mean_interval(recall(now, then, NEAR))


def _judged(
    deltas: Deltas | None, near: Interval | None, texts: int, limits: Limits, tight: Limits
) -> Judgement:
    if broken := tuple(_broken(deltas, near, texts, limits)):
        return Judgement(Verdict.FAIL, broken)
    loose = tuple(_broken(deltas, near, texts, tight))
    return Judgement(Verdict.FLAGGED, loose) if loose else Judgement(Verdict.PASS)


def _broken(
    deltas: Deltas | None, near: Interval | None, texts: int, limits: Limits
) -> Iterator[str]:
    """Every limit that is broken, of those that so many texts can be held to, in words."""
    held = limits if texts >= _MANY else replace(limits, cosine_p1=-1)
    held = held if texts >= _SOME else replace(held, gain_error=np.inf)
    yield from violations(deltas, held) if deltas else ()
    if near and near.high < limits.recall_at_10:
        yield f"recall_at_10 {near.words} < {limits.recall_at_10:g}"


def worst_length(lengths: Sequence[AtLength]) -> AtLength | None:
    """The bucket with the smallest cosine; None where nothing is known by length."""
    known = [one for one in lengths if one.deltas]
    return min(known, key=lambda one: one.deltas.cosine_worst if one.deltas else 1, default=None)


def with_lengths(judgement: Judgement, lengths: Sequence[AtLength]) -> Judgement:
    """The judgement of all texts with those of the buckets; a bucket that fails is enough.

    What is wrong of all texts is said once, with the buckets that it is in.
    """
    failed = [one for one in lengths if one.judgement.verdict is Verdict.FAIL]
    if judgement.verdict is Verdict.FAIL:
        names = ", ".join(one.name for one in failed)
        where = [f"beyond the limits: texts of {names}"] if 0 < len(failed) < len(lengths) else []
        return Judgement(Verdict.FAIL, (*judgement.reasons, *where))
    if failed:
        wrong = (f"{one.name}: {reason}" for one in failed for reason in one.judgement.reasons)
        return Judgement(Verdict.FAIL, tuple(wrong))
    loose = [one.name for one in lengths if one.judgement.verdict is Verdict.FLAGGED]
    if not loose or judgement.verdict is Verdict.FLAGGED:
        return judgement
    said = f"within its own looser limits, beyond those of fp16, texts of {', '.join(loose)}"
    return Judgement(Verdict.FLAGGED, (said, *judgement.reasons))
