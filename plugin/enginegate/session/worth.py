"""Engines of a run beside each other: one that is another's, one that fp32 beats in everything."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from enginegate.results import Result
from enginegate.session.recorder import Recorder
from enginegate.variants import Precision
from enginegate.verdicts import Verdict


def twin_of(result: Result, known: Recorder) -> str:
    """The precision of an earlier engine with the same files that gave the same; empty for none.

    A file does not say by itself in which type it runs, so what ran and what came of it must agree
    too. A served engine has none.
    """
    content = known.content
    mine = "" if result.variant.served else content.get(result.variant.id)
    for other in known.results.values():
        if other.variant.model != result.variant.model or other.variant.served:
            continue
        same_files = mine and content.get(other.variant.id) == mine
        if other.variant != result.variant and same_files and _ran_alike(result, other):
            return other.same_as or str(other.variant.precision)
    return ""


def _ran_alike(one: Result, other: Result) -> bool:
    if one.accuracy is None or other.accuracy is None:
        return False
    same = dict(one.executed) == dict(other.executed)
    return same and one.accuracy.deltas == other.accuracy.deltas


def weighed(results: Sequence[Result], accepted: Mapping[str, str]) -> Iterator[Result]:
    """Each result with what beats it; `accepted` are the tables' reasons to ship one, by its id."""
    for result in results:
        beaten = _beaten(result, results)
        why = accepted.get(result.variant.id, "")
        if beaten and why:
            said = f"{beaten}; accepted: {why}"
            yield replace(result, accepted=(*result.accepted, said))
        elif why:
            said = f"nothing to accept here, it is not for certain slower and less accurate: {why}"
            yield replace(result, notes=(*result.notes, said))
        else:
            yield replace(result, dominated=beaten)


def _beaten(result: Result, results: Sequence[Result]) -> str:
    """The fp32 that is faster and more accurate for certain, in words; empty for none."""
    if result.variant.served or result.chosen == Precision.FP32 or result.context.against:
        return ""
    rivals = [other for other in results if _is_rival(other, result)]
    found = (_beaten_by(result, rival) for rival in (*rivals, None))
    return next(filter(None, found), "")


def _is_rival(other: Result, result: Result) -> bool:
    fp32 = other.variant.precision is Precision.FP32 and not other.variant.served
    timed = bool(other.speeds) and not other.context.against
    return (
        fp32 and timed and other.embeddings_passed and other.variant.model == result.variant.model
    )


def _beaten_by(result: Result, rival: Result | None) -> str:
    """The same for one of them; None is the reference."""
    mine = result.accuracy.retrieval if result.accuracy else None
    theirs = rival.accuracy.retrieval if rival and rival.accuracy else None
    least = theirs.recall_at_10.low if theirs else 1.0
    if mine is None or mine.recall_at_10.high >= least or not result.embeddings_passed:
        return ""
    shares = _certainly_slower(result, rival)
    if not shares:
        return ""
    name = "fp32" if rival or result.context.control else "the reference in fp32"
    span = " to ".join(dict.fromkeys(f"{share:.2f}" for share in (min(shares), max(shares))))
    recall = mine.recall_at_10
    return (
        f"{span} times as fast as {name}, and of the ten nearest texts "
        f"{recall.low:.1%} to {recall.high:.1%} are kept"
    )


def _certainly_slower(result: Result, rival: Result | None) -> list[float]:
    """Its speed as a share of the rival's at every batch size; empty if any may be as fast."""
    if result.speed_verdict is Verdict.INVALID:
        return []
    theirs = {speed.batch: speed.speedup for speed in rival.speeds} if rival else {}
    shares = []
    for speed in result.speeds:
        low, ratio, _ = theirs.get(speed.batch, (1.0, 1.0, 1.0))
        if (rival and speed.batch not in theirs) or speed.speedup[2] >= low:
            return []
        shares.append(speed.speedup[1] / ratio)
    return shares
