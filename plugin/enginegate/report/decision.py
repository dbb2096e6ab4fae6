"""From verdicts to what to do: ship, hold or block, with the reason in words. Pure."""

from collections.abc import Iterator, Sequence

from enginegate.report.page import GRAVEST, Decided, Decision
from enginegate.report.table import engine_name, worst_change
from enginegate.results import Result
from enginegate.verdicts import Verdict

_NO_MODEL = "the reference is not the model"
_SPEED = {
    Verdict.REGRESSED: (Decision.BLOCK, "slower than its baseline"),
    Verdict.INVALID: (Decision.HOLD, "the measurement refutes itself, measure again"),
    Verdict.UNDECIDED: (Decision.HOLD, "the measurement could not decide"),
    Verdict.NO_BASELINE: (Decision.HOLD, "no baseline to compare its speed with"),
    Verdict.INCOMPARABLE: (Decision.HOLD, "its baseline cannot be compared"),
    Verdict.NOT_MEASURED: (Decision.HOLD, "its speed was not measured"),
}


def decide(results: Sequence[Result]) -> Decided:
    """The gravest decision over the engines of one model and precision, in process and served.

    BLOCK where the reference is not the model, embeddings are beyond their limits or an engine
    regressed. HOLD where another type
    ran than was asked for, or the comparison is missing or unsure. SHIP otherwise.
    """
    found = list(dict.fromkeys(f for result in results for f in _findings(result)))
    gravest = min((decision for decision, _, _ in found), key=GRAVEST.index)
    reasons = dict.fromkeys(reason for decision, reason, _ in found if decision is gravest)
    shown = list(reasons) if gravest is Decision.SHIP else list(reasons)[:1]
    return Decided(gravest, ", ".join(shown), tuple(f"{why}: {what}" for _, why, what in found))


def _findings(result: Result) -> Iterator[tuple[Decision, str, str]]:
    """`(decision, reason, figures)` of all that is known of an engine."""
    if result.truth and (faults := result.truth.faults):
        said = "; ".join(fault.removeprefix(f"{_NO_MODEL}: ") for fault in faults)
        yield Decision.BLOCK, _NO_MODEL, said
    yield _embeddings(result)
    for flag in result.flags:
        yield Decision.HOLD, "not exactly what was asked for ran", flag
    if result.embedding_verdict is not Verdict.FAIL:
        yield _speed(result)


def _embeddings(result: Result) -> tuple[Decision, str, str]:
    name, accuracy = engine_name(result.variant), result.accuracy
    if accuracy is None:
        return Decision.HOLD, "its embeddings were not compared", name
    figures = f"{name}: {'; '.join(accuracy.judgement.reasons)}"
    if accuracy.judgement.verdict is Verdict.FAIL:
        return Decision.BLOCK, "embeddings beyond their limits", figures
    if accuracy.judgement.verdict is Verdict.FLAGGED:
        return Decision.SHIP, "embeddings within their own looser limits", figures
    return Decision.SHIP, "same embeddings", name


def _speed(result: Result) -> tuple[Decision, str, str]:
    name, verdict = engine_name(result.variant), result.speed_verdict
    if verdict is Verdict.IDENTICAL:
        return Decision.SHIP, "its baseline's own engine", f"{name}: {result.identical}"
    if verdict not in _SPEED:
        return Decision.SHIP, "not slower than its baseline", f"{name}: {worst_change(result)}"
    decision, reason = _SPEED[verdict]
    said = "; ".join(dict.fromkeys(_reasons(result, verdict)))
    return decision, reason, f"{name}: {said}" if said else name


def _reasons(result: Result, verdict: Verdict) -> Iterator[str]:
    judged = [result.load.judgement] if result.load else []
    for speed in result.speeds:
        judged += [speed.judgement, *([speed.tail_judgement] if speed.tail_judgement else [])]
    return (r for judgement in judged if judgement.verdict is verdict for r in judgement.reasons)
