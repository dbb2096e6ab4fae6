"""From cliffs and capacity to a verdict on the load."""

from collections.abc import Sequence

from enginegate.serving.analysis.cliffs import new_cliffs
from enginegate.serving.records import Capacity, Cliff, StoredLoad
from enginegate.verdicts import Judgement, Verdict


def judge_load(
    cliffs: Sequence[Cliff], capacity: Capacity | None, stored: StoredLoad, limit: float
) -> Judgement:
    """Compare what a served engine carries with what it carried.

    A cliff that the baseline lacks is REGRESSED, and so is a capacity whose whole interval is below
    the stored one's by more than the limit. Where the machine or the client made the cliff or ended
    the search, it is UNDECIDED.
    """
    new = new_cliffs(cliffs, stored)
    worse = [_cliff_reason(cliff) for cliff in new if cliff.blames_server]
    worse += _lost_capacity(capacity, stored, limit)
    unsure = [_cliff_reason(cliff) for cliff in new if not cliff.blames_server]
    if worse:
        return Judgement(Verdict.REGRESSED, tuple(worse))
    return Judgement(Verdict.UNDECIDED, tuple(unsure)) if unsure else Judgement(Verdict.PASS)


def _lost_capacity(capacity: Capacity | None, stored: StoredLoad, limit: float) -> list[str]:
    if capacity is None or str(capacity.slo) != stored.slo or capacity.high_per_s is None:
        return []
    if capacity.high_per_s >= stored.low_per_s / (1 + limit):
        return []
    return [
        f"holds {stored.slo} up to at most {capacity.high_per_s:.0f} infer/s, "
        f"where at least {stored.low_per_s:.0f} were stored"
    ]


def _cliff_reason(cliff: Cliff) -> str:
    word = "cause" if cliff.proven else "suspected cause"
    return (
        f"new cliff at concurrency {cliff.first} to {cliff.last} ({cliff.throughput_per_s:.0f} "
        f"infer/s at its lowest), {word} {cliff.cause}: {cliff.evidence}"
    )
