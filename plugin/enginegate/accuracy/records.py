"""What is known of the embeddings of a variant."""

from dataclasses import dataclass

from enginegate.accuracy.deltas import Deltas
from enginegate.accuracy.limits import Limits
from enginegate.accuracy.retrieval import Retrieval
from enginegate.accuracy.stability import Determinism, Invariance
from enginegate.accuracy.sts import Sts
from enginegate.accuracy.worst import WorstText
from enginegate.verdicts import Judgement, Verdict


@dataclass(frozen=True)
class Accuracy:
    """What is known of the embeddings of one variant.

    Attributes:
        deltas: None where the embeddings were not sane; nothing else is known then.
        limits: how far they may be off.
        judgement: on the deltas and the rankings.
        cosines: of each text's two vectors, in the order of the texts.
        retrieval: what a search finds by them.
        worst_texts: the texts that lost most.
        sts: agreement with labelled pairs; None without --sts, and of a served engine.
        invariance: whether an embedding depends on its batch; None for a served engine.
        determinism: whether the same input gives the same; None for a served engine.
    """

    deltas: Deltas | None
    limits: Limits
    judgement: Judgement
    cosines: tuple[float, ...] = ()
    retrieval: Retrieval | None = None
    worst_texts: tuple[WorstText, ...] = ()
    invariance: Invariance | None = None
    determinism: Determinism | None = None
    sts: Sts | None = None

    @property
    def faults(self) -> tuple[str, ...]:
        """Reasons why it may not ship; empty if it may."""
        judged = self.judgement.reasons if self.judgement.verdict is Verdict.FAIL else ()
        unstable = self.invariance.broken if self.invariance else ""
        return (*judged, unstable) if unstable else judged
