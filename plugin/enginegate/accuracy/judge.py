"""Judging the embeddings of one variant after the other: how far off, and what that does."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from enginegate.accuracy.deltas import Deltas, check_sane, compare, cosines_of, violations
from enginegate.accuracy.labels import Sts, sts_violations
from enginegate.accuracy.limits import DEFAULT_LIMITS, Limits
from enginegate.accuracy.retrieval import (
    Names,
    Retrieval,
    Vectors,
    WorstText,
    compare_rankings,
    rank_violations,
    similarities,
    unsure,
    worst_texts,
)
from enginegate.accuracy.stability import (
    Determinism,
    Invariance,
    Probe,
    allowed_change,
    largest,
    probe_stability,
)
from enginegate.accuracy.user_texts import UserTexts
from enginegate.engines import Embeddings, Engine, Ranges, embed_all
from enginegate.errors import EmbeddingError
from enginegate.models import Workload, token_counts
from enginegate.variants import Precision
from enginegate.verdicts import Judgement, Verdict

_TIGHT = DEFAULT_LIMITS[Precision.FP16]


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
        sts: agreement with labelled pairs; None without --gate-sts, and of a served engine.
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


def with_ranges(accuracy: Accuracy, ranges: Ranges | None) -> Accuracy:
    """FAIL where fp16 cannot hold the model's numbers, whatever the embeddings are."""
    if ranges is None or not ranges.fault:
        return accuracy
    known = accuracy.judgement
    others = known.reasons if known.verdict is Verdict.FAIL else ()
    return replace(accuracy, judgement=Judgement(Verdict.FAIL, (ranges.fault, *others)))


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


def judge_accuracy(
    deltas: Deltas,
    limits: Limits,
    tight: Limits,
    retrieval: Retrieval | None = None,
    sts: Sts | None = None,
) -> Judgement:
    """FAIL beyond `limits`, FLAGGED within them but beyond the `tight` ones, else PASS.

    A limit on rankings or on labelled pairs is broken where the whole interval says so, or by a
    single text; one that the interval contains is given as a reason, and decides nothing.
    """
    held = unsure(retrieval, limits) if retrieval else ()
    if broken := _broken(deltas, retrieval, sts, limits):
        return Judgement(Verdict.FAIL, (*broken, *held))
    if loose := _broken(deltas, retrieval, sts, tight):
        return Judgement(Verdict.FLAGGED, (_within(limits, loose), *loose, *held))
    return Judgement(Verdict.PASS, held)


def _broken(
    deltas: Deltas, retrieval: Retrieval | None, sts: Sts | None, limits: Limits
) -> tuple[str, ...]:
    ranks = rank_violations(retrieval, limits) if retrieval else ()
    pairs = sts_violations(sts, limits) if sts else ()
    return (*violations(deltas, limits), *ranks, *pairs)


def _within(limits: Limits, loose: Sequence[str]) -> str:
    """The own limits of what is beyond tighter ones, each of which begins with its name."""
    beyond = {text.partition(" ")[0] for text in loose}
    own = ((name, value) for name, value in asdict(limits).items() if name in beyond)
    allowed = ", ".join(f"{name} {value:g}" for name, value in own)
    return f"within its own looser limits ({allowed}), beyond those of fp16"
