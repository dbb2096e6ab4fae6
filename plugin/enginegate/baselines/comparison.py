"""What stored measurements are to a speed."""

from collections.abc import Sequence

from enginegate.baselines.store import Baseline
from enginegate.speed import METRICS, Comparison, anchor_of
from enginegate.verdicts import Judgement, Verdict


def stored(baseline: Baseline, batches: Sequence[int]) -> Comparison:
    """The sessions of a stored baseline."""
    known = [batch for batch in batches if batch in baseline.cells]
    ratios = {(b, metric): baseline.log_ratios(b, metric) for b in known for metric in METRICS}
    anchors = {key: anchor_of(found) for key, found in ratios.items() if found}
    scales_s = {batch: baseline.cells[batch][-1].p50_s for batch in known}
    lacking = Judgement(Verdict.NO_BASELINE, ("no such batch size in it",))
    return Comparison(anchors, scales_s, lacking)
