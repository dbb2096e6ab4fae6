"""From deltas, rankings and labelled pairs to a verdict on the embeddings."""

from collections.abc import Sequence
from dataclasses import asdict

from enginegate.accuracy.deltas import Deltas, violations
from enginegate.accuracy.limits import Limits
from enginegate.accuracy.retrieval import Retrieval, rank_violations, unsure
from enginegate.accuracy.sts import Sts, sts_violations
from enginegate.verdicts import Judgement, Verdict


def judge_accuracy(
    deltas: Deltas,
    limits: Limits,
    tight: Limits,
    retrieval: Retrieval | None = None,
    sts: Sts | None = None,
) -> Judgement:
    """FAIL beyond `limits`, FLAGGED within them but beyond the `tight` ones, else PASS.

    A limit on rankings or on labelled pairs is broken where the whole interval says so, or by a
    single text; one that the interval holds is given as a reason, and decides nothing.
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
