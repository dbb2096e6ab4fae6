"""One variant on trial: every batch size briefly, then suspects on fresh data until decided.

Of the screening data of a suspect nothing is used again, so that having looked at all batch sizes
does not inflate the alarms. Suspects are measured one replicate at a time until their interval is
wholly on one side of the limit, or until the time is over.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from enginegate.errors import OptionError
from enginegate.speed.change import describe, judge_change
from enginegate.speed.stats import (
    FEWEST_FOR_P99,
    FEWEST_REPLICATES,
    Anchor,
    Change,
    Errors,
    alarm_share,
    change_of,
    quantile,
    replicates_to_decide,
    visible_slowdown,
)
from enginegate.speed.timing import CANDIDATE, CONTROL, Replicate, Samples
from enginegate.verdicts import Judgement, Verdict

P50, P99 = "p50", "p99"
METRICS = (P50, P99)
FLOOR_S = 50e-6  # a change of less than this never fails
_ALARM, _MISS = 0.01, 0.05
_SENTINEL_ERROR = 0.0025  # on either side, of one variant

Measure = Callable[[Sequence[int]], Mapping[int, Replicate]]
Key = tuple[int, str]


@dataclass(frozen=True)
class Question:
    """What is asked of one metric at one batch size.

    Attributes:
        anchor: what to compare with.
        limit: largest slowdown that passes, 0.05 for 5 %.
        floor_s: a change of fewer seconds passes whatever the limit.
        scale_s: seconds of one call of the baseline; None for those of the yardstick.
        earlier: e-value against the engine from an earlier run; 1 if there was none.
    """

    anchor: Anchor
    limit: float
    floor_s: float = 0.0
    scale_s: float | None = None
    earlier: float = 1.0

    def settled(self, replicates: Sequence[Replicate]) -> "Question":
        """The question with the floor taken into its limit."""
        scale_s = self.scale_s or quantile(Samples(0, tuple(replicates)).yardstick_s, 0.5)
        return replace(self, limit=max(self.limit, self.floor_s / scale_s), floor_s=0.0)


@dataclass(frozen=True)
class Rules:
    """How hard to try.

    Attributes:
        replicates: of the screening.
        max_time_s: of one variant, screening included; suspects get as long again as the
            screening took in any case.
        alarm: chance of a false `regressed` in the whole run.
        miss: chance that a batch size slower than its limit passes.
    """

    replicates: int
    max_time_s: float
    alarm: float
    miss: float


def gating_rules(replicates: int, max_time_s: float) -> Rules:
    """The rules of a gated run. Raises OptionError for too few replicates."""
    if replicates < FEWEST_REPLICATES:
        raise OptionError(
            f"--gate-replicates {replicates}: at least {FEWEST_REPLICATES} are needed"
        )
    return Rules(replicates, max_time_s, _ALARM, _MISS)


@dataclass(frozen=True)
class Finding:
    """What is said of one metric at one batch size; `confirmed` if it rests on fresh data."""

    change: Change
    judgement: Judgement
    errors: Errors
    confirmed: bool = False


@dataclass(frozen=True)
class Outcome:
    """A variant after its trial.

    Attributes:
        samples: all replicates, by batch size.
        findings: by batch size and metric, of those that a question was asked of.
    """

    samples: Mapping[int, Samples]
    findings: Mapping[Key, Finding]


class SequentialTest:
    """Judges variants one after the other, sharing the alarm error of the run among suspects."""

    def __init__(self, rules: Rules, clock: Callable[[], float]) -> None:
        self._rules, self._clock = rules, clock
        self._suspects = 0

    @property
    def alarm(self) -> float:
        """Chance of a false `regressed` in the whole run."""
        return self._rules.alarm

    def run(
        self, measure: Measure, batches: Sequence[int], questions: Mapping[Key, Question]
    ) -> Outcome:
        """Measure and judge the batch sizes of one variant."""
        start_s = self._clock()
        screened = _collect(measure, batches, self._rules.replicates)
        screening_s = self._clock() - start_s
        each_s = screening_s / self._rules.replicates
        whole_s = max(self._rules.max_time_s, 2 * screening_s)
        left = int((whole_s - screening_s) / max(each_s, 1e-9))
        questions = {key: q.settled(screened[key[0]]) for key, q in questions.items()}
        findings = {
            key: self._screen(screened[key[0]], key[1], q, left) for key, q in questions.items()
        }
        suspects = {k: self._next_error() for k in findings if _suspect(k, findings, questions)}
        fresh = self._confirm(measure, suspects, questions, findings, start_s + whole_s)
        samples = {b: Samples(b, (*screened[b], *fresh.get(b, []))) for b in batches}
        final = {
            key: self._explained(finding, questions[key], fresh.get(key[0], []), key[1], each_s)
            for key, finding in findings.items()
        }
        return Outcome(samples, final)

    def _next_error(self) -> float:
        self._suspects += 1
        return alarm_share(self._rules.alarm, self._suspects)

    def _screen(
        self, replicates: Sequence[Replicate], metric: str, question: Question, left: int
    ) -> Finding:
        """The finding of the screening; `left` fresh replicates could follow."""
        errors = Errors(self._rules.miss / 2, self._rules.miss / 2)
        values = values_of(replicates, metric)
        change = change_of(values, question.anchor, question.limit, errors, once=True)
        alarm = alarm_share(self._rules.alarm, self._suspects + 1)
        visible = visible_slowdown(values, question.anchor, question.limit, alarm, left)
        change = replace(change, visible=visible)
        if metric == P99 and (reason := _too_few_calls(replicates)):
            return Finding(change, Judgement(Verdict.UNDECIDED, (reason,)), errors)
        return Finding(change, judge_change(change, question.limit), errors)

    def _confirm(
        self,
        measure: Measure,
        suspects: Mapping[Key, float],
        questions: Mapping[Key, Question],
        findings: dict[Key, Finding],
        end_s: float,
    ) -> dict[int, list[Replicate]]:
        """Fresh replicates of the suspects until each is decided; updates `findings`."""
        fresh: dict[int, list[Replicate]] = {batch: [] for batch, _ in suspects}
        for key in suspects:
            findings[key] = _open(findings[key])
        waiting = set(suspects)
        while waiting and self._clock() < end_s:
            for batch, replicate in measure(sorted({batch for batch, _ in waiting})).items():
                fresh[batch].append(replicate)
            for key in [k for k in waiting if len(fresh[k[0]]) >= FEWEST_REPLICATES]:
                values = values_of(fresh[key[0]], key[1])
                findings[key] = self._judge(values, questions[key], suspects[key])
            waiting = {k for k in waiting if findings[k].judgement.verdict is Verdict.UNDECIDED}
        return fresh

    def _judge(self, values: Sequence[float], question: Question, error: float) -> Finding:
        errors = Errors(error, self._rules.miss / 2)
        change = change_of(values, question.anchor, question.limit, errors)
        alarm = error / 2 if question.anchor.error else error
        judgement = judge_change(change, question.limit, alarm=alarm, earlier=question.earlier)
        return Finding(change, judgement, errors, confirmed=True)

    def _explained(
        self,
        finding: Finding,
        question: Question,
        fresh: Sequence[Replicate],
        metric: str,
        each_s: float,
    ) -> Finding:
        """An undecided finding with what it could have seen, and how long it takes to decide."""
        judgement = finding.judgement
        if judgement.verdict is not Verdict.UNDECIDED or not finding.confirmed:
            return finding
        needed = replicates_to_decide(
            values_of(fresh, metric), question.anchor, question.limit, finding.errors
        )
        whole_s = ((needed or 0) + self._rules.replicates) * each_s
        longer = f"about {whole_s:.0f} s would decide" if needed else "more time will not help"
        said = f"sees {finding.change.visible:.1%} or more; {longer}"
        return replace(finding, judgement=Judgement(Verdict.UNDECIDED, (*judgement.reasons, said)))


def _collect(
    measure: Measure, batches: Sequence[int], replicates: int
) -> dict[int, list[Replicate]]:
    rounds = [measure(batches) for _ in range(replicates)]
    return {batch: [found[batch] for found in rounds] for batch in batches}


def values_of(replicates: Sequence[Replicate], metric: str) -> list[float]:
    """The log ratio of each replicate in a metric."""
    if metric == P99:
        return [replicate.tail_log_ratio() for replicate in replicates]
    return [replicate.log_ratio() for replicate in replicates]


def _too_few_calls(replicates: Sequence[Replicate]) -> str:
    fewest = min(sum(len(r.calls(arm)) for r in replicates) for arm in (CANDIDATE, CONTROL))
    if fewest >= FEWEST_FOR_P99:
        return ""
    return f"{fewest} calls tell no p99: {FEWEST_FOR_P99} are needed"


def _suspect(key: Key, findings: Mapping[Key, Finding], questions: Mapping[Key, Question]) -> bool:
    """Tell if fresh data are needed. A p99 is too restless to follow up unless it looks slower."""
    verdict = findings[key].judgement.verdict
    if verdict is Verdict.REGRESSED or questions[key].earlier > 1:
        return True
    return verdict is Verdict.UNDECIDED and key[1] != P99


def _open(finding: Finding) -> Finding:
    """A suspect before there are fresh data."""
    reason = f"{describe(finding.change)} at first sight, too little time for fresh data"
    return Finding(finding.change, Judgement(Verdict.UNDECIDED, (reason,)), finding.errors)


def judge_second_control(log_ratios: Sequence[float], limit: float) -> str:
    """Refuse a measurement in which two copies of the yardstick differ; empty if they do not.

    Fires where the whole interval of their ratio is beyond half of the limit.
    """
    errors = Errors(_SENTINEL_ERROR, _SENTINEL_ERROR)
    change = change_of(log_ratios, Anchor(), limit / 2, errors)
    if change.low <= 1 + limit / 2 and change.high >= 1 - limit / 2:
        return ""
    return (
        f"two copies of the yardstick differ: the second is {describe(change)}; something other "
        "than the engines sets their speed, so run again on a quieter machine"
    )
