"""Judging the speed of one variant after the other: a comparison and a rig in, verdicts out."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace

from enginegate.speed.records import Measured, Speed
from enginegate.speed.rules import FLOOR_S, METRICS, P50, Finding, Key, Outcome, Question
from enginegate.speed.sequential import SequentialTest, judge_second_control, values_of
from enginegate.speed.stats import Anchor, alarm_share, quantile, quantile_interval
from enginegate.speed.timing import Rig, Samples
from enginegate.verdicts import Judgement, Verdict

_CLEARED = (Verdict.PASS, Verdict.IMPROVED)
_TRIPWIRE = 0.25  # of absolute time, which follows the state of a shared machine

Evidence = MutableMapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """What a variant is compared with.

    Attributes:
        anchors: by batch size and metric; nothing is asked where there is none.
        scales_s: seconds of one call by batch size; where unknown, those of the yardstick count.
        missing: what is said of a batch size without an anchor.
    """

    anchors: Mapping[Key, Anchor]
    scales_s: Mapping[int, float]
    missing: Judgement


def paired(batches: Sequence[int]) -> Comparison:
    """The yardstick itself: it is the baseline's engine, measured in the same run."""
    anchors = {(batch, metric): Anchor() for batch in batches for metric in METRICS}
    return Comparison(anchors, {}, Judgement(Verdict.NO_BASELINE))


@dataclass(frozen=True)
class SpeedJudge:
    """Times variants and judges each batch size.

    Attributes:
        trial: shares the alarm error of the run among its suspects.
        limits: largest slowdown that passes, by metric.
        evidence: e-values by cell, carried from run to run.
    """

    trial: SequentialTest
    limits: Mapping[str, float]
    evidence: Evidence

    def judge(
        self, rig: Rig, batches: Sequence[int], comparison: Comparison, name: str
    ) -> dict[int, Measured]:
        """Measure the batch sizes of a variant until each is decided or time is over.

        `name` is what evidence is kept by; without one, none is used and none is kept.
        """
        questions = {
            (batch, metric): Question(
                anchor,
                self.limits[metric],
                FLOOR_S,
                comparison.scales_s.get(batch),
                self.evidence.get(_cell(name, batch, metric, anchor), 1.0) if name else 1.0,
            )
            for (batch, metric), anchor in comparison.anchors.items()
        }
        outcome = self.trial.run(rig.replicate, batches, questions)
        fault = judge_second_control(_sentinel(outcome), self.limits[P50])
        if name and not fault:
            self._remember(name, outcome, comparison)
        speeds = {
            batch: _speed(samples, outcome.findings, comparison, fault)
            for batch, samples in outcome.samples.items()
        }
        return {
            batch: Measured(outcome.samples[batch], _tripped(speed, comparison))
            for batch, speed in speeds.items()
        }

    def _remember(self, name: str, outcome: Outcome, comparison: Comparison) -> None:
        """Keep the evidence of what is not cleared by fresh data, so that a rerun weighs it up.

        At most half of what an alarm takes is carried on: any e-value may be lowered, and a rerun
        must be able to refute it.
        """
        most = 0.5 / alarm_share(self.trial.alarm, 1)
        for (batch, metric), finding in outcome.findings.items():
            if finding.confirmed:
                cell = _cell(name, batch, metric, comparison.anchors[batch, metric])
                together = self.evidence.pop(cell, 1.0) * finding.change.evidence
                if finding.judgement.verdict not in _CLEARED:
                    self.evidence[cell] = min(together, most)


def _cell(name: str, batch: int, metric: str, anchor: Anchor) -> str:
    """The subject of evidence: this engine against this baseline."""
    return f"{name}/{batch}/{metric}/{anchor.level:.6f}"


def _sentinel(outcome: Outcome) -> list[float]:
    return [v for samples in outcome.samples.values() for v in samples.sentinel_log_ratios]


def _speed(
    samples: Samples, findings: Mapping[Key, Finding], comparison: Comparison, fault: str
) -> Speed:
    main, tail = (findings.get((samples.batch, metric)) for metric in METRICS)
    judgement = main.judgement if main else comparison.missing
    p50_s = quantile(samples.candidate_s, 0.5)
    return Speed(
        batch=samples.batch,
        calls=len(samples.candidate_s),
        p50_s=p50_s,
        p99_s=quantile_interval(samples.candidate_s, 0.99),
        texts_per_s=samples.batch / samples.typical_s,
        yardstick_p50_s=quantile(samples.yardstick_s, 0.5),
        log_ratios={metric: values_of(samples.replicates, metric) for metric in METRICS},
        blocks=samples.blocks,
        disturbed=tuple(samples.disturbances),
        change=main.change if main else None,
        judgement=Judgement(Verdict.INVALID, (fault,)) if fault and main else judgement,
        tail_change=tail.change if tail else None,
        tail_judgement=tail.judgement if tail else None,
    )


def _tripped(speed: Speed, comparison: Comparison) -> Speed:
    """The speed, with a remark where engine and yardstick both became slower than stored."""
    stored_s = comparison.scales_s.get(speed.batch)
    if speed.judgement.verdict not in _CLEARED or stored_s is None:
        return speed
    slowdown = speed.p50_s / stored_s - 1
    if slowdown < _TRIPWIRE:
        return speed
    said = (
        f"{slowdown:.0%} slower than stored in absolute time, and so is the reference: another "
        "state of the machine, or a change that slows both"
    )
    judgement = replace(speed.judgement, reasons=(*speed.judgement.reasons, said))
    return replace(speed, judgement=judgement)
