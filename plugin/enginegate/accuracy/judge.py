"""Judging the embeddings of one variant after the other: how far off, and what that does."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from enginegate.accuracy.deltas import check_sane, compare, cosines_of
from enginegate.accuracy.limits import DEFAULT_LIMITS, Limits
from enginegate.accuracy.records import Accuracy
from enginegate.accuracy.retrieval import Names, Retrieval, Vectors, compare_rankings, similarities
from enginegate.accuracy.rules import judge_accuracy
from enginegate.accuracy.stability import Probe, allowed_change, largest, probe_stability
from enginegate.accuracy.sts import Sts
from enginegate.accuracy.user_texts import UserTexts
from enginegate.accuracy.worst import worst_texts
from enginegate.engines import Embeddings, Engine, embed_all
from enginegate.errors import EmbeddingError
from enginegate.models import Workload, token_counts
from enginegate.variants import Precision
from enginegate.verdicts import Judgement, Verdict

_TIGHT = DEFAULT_LIMITS[Precision.FP16]


@dataclass(frozen=True)
class EmbeddingJudge:
    """Judges embeddings of the evaluation texts.

    Attributes:
        workload: the texts.
        expected: the reference's embeddings, float32 [texts, dim].
        limits: how far an engine may be off.
        precision: what was asked for; int8 is flagged beyond the limits of fp16.
        own: the user's own queries, documents and pairs; None if there are none.
    """

    workload: Workload
    expected: Embeddings
    limits: Limits
    precision: Precision
    own: UserTexts | None = None

    def judge(self, found: Embeddings, engine: Engine | None = None) -> Accuracy:
        """All that is known of an engine's embeddings, float32 [texts, dim]; FAIL if not sane.

        `engine` embeds the user's own data too; without it, each text is searched among the others.
        """
        try:
            deltas = compare(found, self.expected)
            retrieval, sts = self._own(found, engine)
        except EmbeddingError as error:
            return Accuracy(None, self.limits, Judgement(Verdict.FAIL, (str(error),)))
        tight = _TIGHT if self.precision is Precision.INT8 else self.limits
        cosines, texts = cosines_of(found, self.expected), self.workload.texts
        tokens = token_counts(self.workload.evaluation, self.workload.mask)
        return Accuracy(
            deltas=deltas,
            limits=self.limits,
            judgement=judge_accuracy(deltas, self.limits, tight, retrieval, sts),
            cosines=tuple(map(float, cosines)),
            retrieval=retrieval,
            worst_texts=worst_texts(cosines, found, self.expected, texts, tokens),
            sts=sts,
        )

    def refusals(self, found: Embeddings) -> tuple[str, ...]:
        """Reasons against an engine with these embeddings [texts, dim]; empty for nothing."""
        return self.judge(found).faults

    def _own(self, found: Embeddings, engine: Engine | None) -> tuple[Retrieval, Sts | None]:
        if self.own is None or engine is None:
            return self._rankings(found), None
        vectors = embed_all(engine, self.own.batch)
        check_sane(vectors, "the engine")
        retrieval, sts = self.own.rankings(vectors), self.own.agreement(vectors)
        return retrieval or self._rankings(found), sts

    def rebuilt(
        self, accuracy: Accuracy, found: Embeddings, builds: Iterable[Embeddings]
    ) -> Accuracy:
        """With what further builds give, [texts, dim] each; FAIL where one is beyond the limits."""
        if accuracy.determinism is None:
            return accuracy
        others = list(builds)
        spread = replace(accuracy.determinism, rebuilds=tuple(largest(o, found) for o in others))
        broken = [
            f"build {number}: {fault}"
            for number, other in enumerate(others, 2)
            for fault in self.refusals(other)
        ]
        judgement = Judgement(Verdict.FAIL, tuple(broken)) if broken else accuracy.judgement
        return replace(accuracy, judgement=judgement, determinism=spread)

    def _rankings(self, found: Embeddings) -> Retrieval:
        """Each evaluation text searched among all the others."""
        now, then = (similarities(Vectors(vectors)) for vectors in (found, self.expected))
        return compare_rankings(now, then, Names(self.workload.texts))

    def probed(self, accuracy: Accuracy, engine: Engine) -> Accuracy:
        """With whether the embeddings depend on more than their text; as it is if it fails."""
        if accuracy.deltas is None or accuracy.faults:
            return accuracy
        workload, allowed = self.workload, allowed_change(accuracy.deltas, self.limits)
        probe = Probe(engine.embed, workload.evaluation, workload.texts, workload.mask)
        invariance, determinism = probe_stability(probe, allowed)
        return replace(accuracy, invariance=invariance, determinism=determinism)
