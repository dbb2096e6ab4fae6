"""Judging the embeddings of one variant after the other: how far off, and what that does."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from enginegate.accuracy.deltas import Deltas, violations
from enginegate.accuracy.labels import Sts, sts_violations
from enginegate.accuracy.lengths import AtLength, Seen, at_lengths, with_lengths
from enginegate.accuracy.limits import Limits, limits_for
from enginegate.accuracy.multi import WorstToken
from enginegate.accuracy.onset import Embed, Onset, Probed, find_onset, relative_errors
from enginegate.accuracy.outputs import Outputs, outputs_of
from enginegate.accuracy.retrieval import (
    Retrieval,
    Vectors,
    WorstText,
    rank_violations,
    unsure,
    worst_texts,
)
from enginegate.accuracy.sample import Sample, sample_of
from enginegate.accuracy.sparse import Terms, term_violations
from enginegate.accuracy.stability import (
    Determinism,
    Invariance,
    allowed_change,
    largest,
    probe_of_engine,
    probe_stability,
)
from enginegate.accuracy.user_texts import UserTexts
from enginegate.accuracy.views import View, Viewed
from enginegate.engines import Embeddings, Engine, Ranges, embed_all
from enginegate.errors import EmbeddingError
from enginegate.models import OutputKind, Workload
from enginegate.variants import Precision
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
        sts: agreement with labelled pairs; None without --gate-sts, and of a served engine.
        invariance: whether an embedding depends on its batch; None for a served engine.
        determinism: whether the same input gives the same; None for a served engine.
        views: the same embeddings cut or stored otherwise, as the model's table asks.
        terms: what is left of the terms of sparse vectors; None of what has none.
        worst_token: of vectors of tokens the one furthest off; None of what has none.
        lengths: of the texts of each bucket, shortest first, where the model's table has `lengths`.
        onset: where a fault of the length of the texts begins; None where none was seen.
        sample: a few dense embeddings, to be compared with those of another machine; None where
            they were not sane, and in reports of older versions.
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
    views: tuple[Viewed, ...] = ()
    terms: Terms | None = None
    sample: Sample | None = None
    worst_token: WorstToken | None = None
    lengths: tuple[AtLength, ...] = ()
    onset: Onset | None = None

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
        views: other ways in which the embeddings are used, each judged too.
        reference: gives the reference's embeddings [rows, dim] of any tokens; None where it is not
            loaded, and no fault of the length is located then.
    """

    workload: Workload
    expected: Embeddings
    limits: Limits
    precision: Precision
    own: UserTexts | None = None
    views: tuple[View, ...] = ()
    reference: Embed | None = None

    def judge(self, found: Embeddings, engine: Engine | None = None) -> Accuracy:
        """All that is known of an engine's embeddings, float32 [texts, dim]; FAIL if not sane.

        Of tokens [texts, tokens, dim].

        `engine` embeds the user's own data too; without it, each text is searched among the others.
        """
        found = self.workload.used(found)
        try:
            own = self._own(engine)
            whole = self._looked(self._outputs.whole, found, own)
        except EmbeddingError as error:
            return Accuracy(None, self.limits, Judgement(Verdict.FAIL, (str(error),)))
        deltas, retrieval = whole
        sts = self.own.agreement(own) if self.own and own is not None else None
        views = tuple(self._viewed(view, found, own) for view in self.views)
        terms = self._outputs.terms(found, self.expected)
        judged = judge_accuracy(deltas, self.limits, self._tight, retrieval, sts, terms)
        lengths = self._lengths(found, deltas)
        outputs, cosines = self._outputs, self._outputs.cosines(found, self.expected)
        now, then = (outputs.whole.similar(Vectors(v)) for v in (found, self.expected))
        return Accuracy(
            deltas=deltas,
            limits=self.limits,
            judgement=with_lengths(with_views(judged, views), lengths),
            cosines=tuple(map(float, cosines)),
            retrieval=retrieval,
            worst_texts=worst_texts(cosines, now, then, outputs.names, outputs.tokens),
            sts=sts,
            views=views,
            terms=terms,
            worst_token=self._outputs.worst_token(found, self.expected),
            sample=sample_of(found) if self.workload.kind is OutputKind.DENSE else None,
            lengths=lengths,
        )

    def _lengths(self, found: Embeddings, deltas: Deltas | None) -> tuple[AtLength, ...]:
        """What is known of sane embeddings [texts, dim] by the length of their texts."""
        if deltas is None:
            return ()
        seen = Seen(found, self.expected, deltas)
        return at_lengths(self.workload, self._outputs, seen, self.limits, self._tight)

    def located(self, accuracy: Accuracy, found: Embeddings, engine: Engine) -> Accuracy:
        """With the length from which on embeddings [texts, dim] are off, where one can be seen."""
        if self.reference is None or not self.workload.buckets or self.workload.pairs:
            return accuracy
        errors = relative_errors(found, self.expected)
        probed = Probed(engine.embed, self.reference)
        batch, mask = self.workload.evaluation, self.workload.mask
        onset = find_onset(self._outputs.tokens, errors, batch, mask, probed)
        if onset is None:
            return accuracy
        known = accuracy.judgement
        judgement = replace(known, reasons=(*known.reasons, onset.words))
        return replace(accuracy, onset=onset, judgement=judgement)

    @property
    def _outputs(self) -> Outputs:
        return outputs_of(self.workload)

    @property
    def _tight(self) -> Limits:
        """Those beyond which int8 is flagged."""
        if self.precision is not Precision.INT8:
            return self.limits
        return limits_for(Precision.FP16, {}, self.workload.kind)

    def _viewed(self, view: View, found: Embeddings, own: Embeddings | None) -> Viewed:
        """What is known of sane embeddings [texts, dim] in a view; `own` are of the own texts."""
        try:
            deltas, retrieval = self._looked(view, found, own)
        except EmbeddingError as error:
            return Viewed(view.name, Judgement(Verdict.FAIL, (str(error),)))
        limits, tight = view.limits(self.limits), view.limits(self._tight)
        judgement = judge_accuracy(deltas, limits, tight, retrieval)
        return Viewed(view.name, judgement, deltas, retrieval)

    def _looked(
        self, view: View, found: Embeddings, own: Embeddings | None
    ) -> tuple[Deltas | None, Retrieval]:
        deltas = view.deltas(found, self.expected)
        searched = self.own.rankings(own, view.similar) if self.own and own is not None else None
        return deltas, searched or self._rankings(view, found)

    def refusals(self, found: Embeddings) -> tuple[str, ...]:
        """Reasons against an engine with these embeddings [texts, dim]; empty for nothing."""
        return self.judge(found).faults

    def _own(self, engine: Engine | None) -> Embeddings | None:
        """The engine's embeddings of the user's own texts; None without either."""
        if self.own is None or engine is None:
            return None
        vectors = self.own.used(embed_all(engine, self.own.batch))
        self._outputs.sane(vectors, "the engine")
        return vectors

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

    def _rankings(self, view: View, found: Embeddings) -> Retrieval:
        """Each evaluation text searched among all the others; of pairs, a query's documents."""
        now, then = (view.similar(Vectors(vectors)) for vectors in (found, self.expected))
        return self._outputs.ranked(now, then, self._outputs.names)

    def examined(self, accuracy: Accuracy, found: Embeddings, engine: Engine) -> Accuracy:
        """With all that takes further calls of the engine."""
        return self.probed(self.located(accuracy, found, engine), engine)

    def probed(self, accuracy: Accuracy, engine: Engine) -> Accuracy:
        """With whether the embeddings depend on more than their text; as it is if it fails."""
        if accuracy.deltas is None or accuracy.faults:
            return accuracy
        allowed = allowed_change(accuracy.deltas, self.limits)
        probe = probe_of_engine(engine.embed, self.workload)
        invariance, determinism = probe_stability(probe, allowed)
        return replace(accuracy, invariance=invariance, determinism=determinism)


def with_views(judgement: Judgement, views: Sequence[Viewed]) -> Judgement:
    """The judgement of embeddings with those of their views.

    What is wrong in a view begins with its name; one that needs looser limits is named only.
    """
    own = judgement.reasons if judgement.verdict is Verdict.FAIL else ()
    failed = [view for view in views if view.judgement.verdict is Verdict.FAIL]
    wrong = (f"{view.name}: {reason}" for view in failed for reason in view.judgement.reasons)
    if own or failed:
        return Judgement(Verdict.FAIL, (*own, *wrong))
    loose = [view.name for view in views if view.judgement.verdict is Verdict.FLAGGED]
    if not loose or judgement.verdict is Verdict.FLAGGED:
        return judgement
    said = f"within its own looser limits, beyond those of fp16, {' and '.join(loose)}"
    return Judgement(Verdict.FLAGGED, (said, *judgement.reasons))


def judge_accuracy(
    deltas: Deltas | None,
    limits: Limits,
    tight: Limits,
    retrieval: Retrieval | None = None,
    sts: Sts | None = None,
    terms: Terms | None = None,
) -> Judgement:
    """FAIL beyond `limits`, FLAGGED within them but beyond the `tight` ones, else PASS.

    A limit on rankings or on labelled pairs is broken where the whole interval says so, or by a
    single text; one that the interval contains is given as a reason, and decides nothing.
    """
    held = unsure(retrieval, limits) if retrieval else ()
    if broken := _broken(deltas, retrieval, sts, terms, limits):
        return Judgement(Verdict.FAIL, (*broken, *held))
    if loose := _broken(deltas, retrieval, sts, terms, tight):
        return Judgement(Verdict.FLAGGED, (_within(limits, loose), *loose, *held))
    return Judgement(Verdict.PASS, held)


def _broken(
    deltas: Deltas | None,
    retrieval: Retrieval | None,
    sts: Sts | None,
    terms: Terms | None,
    limits: Limits,
) -> tuple[str, ...]:
    ranks = rank_violations(retrieval, limits) if retrieval else ()
    pairs = sts_violations(sts, limits) if sts else ()
    off = violations(deltas, limits) if deltas else ()
    words = term_violations(terms, limits) if terms else ()
    return (*off, *ranks, *pairs, *words)


def _within(limits: Limits, loose: Sequence[str]) -> str:
    """The own limits of what is beyond tighter ones, each of which begins with its name."""
    beyond = {text.partition(" ")[0] for text in loose}
    own = ((name, value) for name, value in asdict(limits).items() if name in beyond)
    allowed = ", ".join(f"{name} {value:g}" for name, value in own)
    return f"within its own looser limits ({allowed}), beyond those of fp16"
