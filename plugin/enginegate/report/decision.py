"""From verdicts to what to do: ship, hold or block, with the reason in words. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from enginegate.accuracy import Accuracy
from enginegate.report.page import GRAVEST, MAY_SHIP, Decided, Decision
from enginegate.report.table import engine_name, worst_change
from enginegate.results import DOUBT, HASHED, NOW_UNJUDGED, Result
from enginegate.variants import Precision
from enginegate.verdicts import Verdict

_NO_MODEL = "the reference is not the model"
_LOOK = "look at the model's file, or try another version of the runtime"
_JUDGE_AGAIN = (
    "name its `truth` in the model's table again; to go without, run with --gate-refresh-baselines"
)


@dataclass(frozen=True)
class Finding:
    """What is known of an engine, and what follows from it.

    Attributes:
        decision: what it alone would lead to.
        reason: why, in a few words.
        figures: what it rests on; empty for nothing.
        next: what resolves it; empty where nothing is to be done.
    """

    decision: Decision
    reason: str
    figures: str = ""
    next: str = ""


_QUIETER = "run again on an idle machine; the reason tells if more time would help"
_SPEED = {
    Verdict.REGRESSED: Finding(
        Decision.BLOCK,
        "slower than its baseline",
        next="find what made it slower; to accept it, run with --gate-refresh-baselines "
        "--gate-accept-regressions",
    ),
    Verdict.INVALID: Finding(
        Decision.HOLD, "the measurement refutes itself", next="run again on an idle machine"
    ),
    Verdict.UNDECIDED: Finding(Decision.HOLD, "the measurement could not decide", next=_QUIETER),
    Verdict.NO_BASELINE: Finding(
        Decision.NEW,
        "no predecessor to compare with",
        next="store its baseline with --gate-refresh-baselines, and commit it",
    ),
    Verdict.INCOMPARABLE: Finding(
        Decision.HOLD,
        "its baseline cannot be compared",
        next="measure beside a revision with --gate-against, or store another baseline with "
        "--gate-refresh-baselines",
    ),
    Verdict.NOT_MEASURED: Finding(
        Decision.HOLD, "its speed was not measured", next="run test_not_slower too"
    ),
}


def decide(results: Sequence[Result]) -> Decided:
    """The gravest decision over engines of one model and precision, in process and served.

    BLOCK where the reference is not the model, embeddings are wrong or an engine
    regressed. HOLD where another type ran than was requested and nobody accepted it, or the
    comparison is missing or unsure. NEW where there is nothing to compare with. SHIP otherwise.
    """
    found = list(dict.fromkeys(f for result in results for f in _findings(result)))
    gravest = min((finding.decision for finding in found), key=GRAVEST.index)
    leading = [finding for finding in found if finding.decision is gravest]
    told = found if gravest in MAY_SHIP else leading
    reasons = dict.fromkeys(finding.reason for finding in told)
    steps = dict.fromkeys(finding.next for finding in leading if finding.next)
    details = (f"{f.reason}: {f.figures}" if f.figures else f.reason for f in found)
    return Decided(gravest, ", ".join(reasons), tuple(details), "; ".join(steps))


def decided(result: Result, interrupted: str = "") -> Decided:
    """The decision on one engine; nothing may ship by a run that was `interrupted`."""
    found = decide([result])
    return held(found) if interrupted else found


def held(
    found: Decided, said: str = "the run was interrupted", step: str = "run it to its end"
) -> Decided:
    """The decision where nothing may ship, such as in a run that was stopped, and why."""
    if found.decision not in MAY_SHIP:
        return found
    return Decided(Decision.HOLD, said, (said, *found.details), step)


def _findings(result: Result) -> Iterator[Finding]:
    if result.truth and (faults := result.truth.faults):
        step = "mend the file or its table by the cause that is named"
        said = "; ".join(fault.removeprefix(f"{_NO_MODEL}: ") for fault in faults)
        yield Finding(Decision.BLOCK, _NO_MODEL, said, step)
    yield _embeddings(result)
    yield from _stand_ins(result)
    yield from _flags(result)
    for doubt in result.doubts:
        step = _JUDGE_AGAIN if doubt.endswith(NOW_UNJUDGED) else _LOOK
        yield Finding(Decision.HOLD, "the reference is in doubt", doubt.removeprefix(DOUBT), step)
    if result.repair:
        yield _repaired(result)
    if result.embedding_verdict is not Verdict.FAIL:
        yield _speed(result)


def _stand_ins(result: Result) -> Iterator[Finding]:
    """What stands for a part of the model that was not at hand: what ships has another."""
    table = f"[tool.enginegate.models.{result.variant.model}]"
    if result.context.weights.startswith("seeded"):
        step = f"name the folder or hub id of its weights in {table}"
        yield Finding(
            Decision.HOLD, "its weights are not the model's", result.context.weights, step
        )
    if result.context.tokenizer == HASHED:
        step = f"name its `tokenizer` in {table}"
        yield Finding(Decision.HOLD, "its tokens are not the model's", HASHED, step)


def _flags(result: Result) -> Iterator[Finding]:
    """What ran otherwise than requested, accepted or not."""
    variant = result.variant
    place = f'accept.{variant.precision} = {{ executed = "why" }}'
    step = f"look at it, then accept it in [tool.enginegate.models.{variant.model}]: {place}"
    for flag in result.flags:
        yield Finding(Decision.HOLD, "not exactly what was requested ran", flag, step)
    if result.dominated:
        place = f'accept.{variant.precision} = {{ dominated = "why" }}'
        step = f"ship fp32; or accept it in [tool.enginegate.models.{variant.model}]: {place}"
        yield Finding(Decision.HOLD, "not worth shipping", result.dominated, step)
    for flag in result.accepted:
        yield Finding(Decision.SHIP, "accepted", flag)


def _repaired(result: Result) -> Finding:
    """An engine that this run changed is not yet the one that its table asks for."""
    return Finding(
        Decision.HOLD,
        "repaired in this run",
        engine_name(result.variant),
        f"put its `keep` into [tool.enginegate.models.{result.variant.model}] and run again",
    )


def _embeddings(result: Result) -> Finding:
    name, accuracy = engine_name(result.variant), result.accuracy
    if accuracy is None:
        step = "run test_same_embeddings too"
        outputs = result.context.words.outputs
        return Finding(Decision.HOLD, f"its {outputs} were not compared", name, step)
    figures = f"{name}: {'; '.join(accuracy.faults or accuracy.judgement.reasons)}"
    if accuracy.faults:
        return _wrong(result, _way_out(accuracy), figures)
    outputs = result.context.words.outputs
    if accuracy.judgement.verdict is Verdict.FLAGGED:
        return Finding(Decision.SHIP, f"{outputs} within their own looser limits", figures)
    return Finding(Decision.SHIP, f"{outputs} within their limits", name)


def _wrong(result: Result, step: str, figures: str) -> Finding:
    if not result.only_beyond_fp16:
        outputs = result.context.words.outputs
        return Finding(Decision.BLOCK, f"its {outputs} are wrong", figures, step)
    step = "ship another precision"
    if result.chosen == Precision.FP16:
        step = f"--gate-repair finds what to keep in fp32 with `keep.fp16`, or {step}"
    return Finding(Decision.BLOCK, "fp16 cannot hold the model's numbers", figures, step)


def _way_out(accuracy: Accuracy) -> str:
    if accuracy.judgement.verdict is Verdict.FAIL:
        return "--gate-blame says which layers do it, --gate-repair which to keep in fp32"
    return "build it otherwise: with another precision, backend or file"


def _speed(result: Result) -> Finding:
    name, verdict = engine_name(result.variant), result.speed_verdict
    if verdict is Verdict.IDENTICAL:
        return Finding(Decision.SHIP, "its baseline's own engine", f"{name}: {result.identical}")
    if verdict not in _SPEED:
        figures = f"{name}: {worst_change(result)}"
        return Finding(Decision.SHIP, "not slower than its baseline", figures)
    finding = _SPEED[verdict]
    said = "; ".join(dict.fromkeys(_reasons(result, verdict)))
    if verdict is Verdict.NOT_MEASURED and result.variant.served:
        return Finding(finding.decision, finding.reason, name, "run test_carries_the_load too")
    return Finding(
        finding.decision, finding.reason, f"{name}: {said}" if said else name, finding.next
    )


def _reasons(result: Result, verdict: Verdict) -> Iterator[str]:
    judged = [result.load.judgement] if result.load else []
    for speed in result.speeds:
        judged += [speed.judgement, *([speed.tail_judgement] if speed.tail_judgement else [])]
    return (r for judgement in judged if judgement.verdict is verdict for r in judgement.reasons)
