"""One variant on trial: every batch size briefly, then suspects on fresh data until decided.

The screening of a batch size ends where it is clear. Of the screening data of a suspect nothing is
used again, so that having looked at all batch sizes, however often, does not inflate the alarms.
Suspects are measured one replicate at a time until their interval is wholly on one side of the
limit, or until the time is over; those that the time cannot decide are not measured on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from enginegate.speed.change import NOT_SEEN, describe, is_noise, judge_change
from enginegate.speed.looks import decidable, looks
from enginegate.speed.rules import (
    P50,
    P99,
    Finding,
    Key,
    Outcome,
    Question,
    Rules,
    Screening,
)
from enginegate.speed.stats import (
    FEWEST_FOR_P99,
    FEWEST_REPLICATES,
    Anchor,
    Errors,
    alarm_share,
    change_of,
    replicates_to_decide,
    visible_slowdown,
)
from enginegate.speed.timing import CANDIDATE, CONTROL, Replicate, Samples
from enginegate.verdicts import Judgement, Verdict

_SENTINEL_ERROR = 0.0025  # on either side, of one variant
_FEW = 5

Measure = Callable[[Sequence[int]], Mapping[int, Replicate]]


class Suspects:
    """Shares the alarm error of a run among its suspects, whichever test they are found by."""

    def __init__(self, alarm: float) -> None:
        self._alarm, self._count = alarm, 0

    @property
    def coming(self) -> float:
        """The error of the next suspect."""
        return alarm_share(self._alarm, self._count + 1)

    def take(self) -> float:
        """The error of a suspect, which no other one gets."""
        taken = self.coming
        self._count += 1
        return taken


class SequentialTest:
    """Judges variants one after the other; those of one run share its `suspects`."""

    def __init__(
        self, rules: Rules, clock: Callable[[], float], suspects: Suspects | None = None
    ) -> None:
        self._rules, self._clock = rules, clock
        self.suspects = suspects or Suspects(rules.alarm)

    @property
    def alarm(self) -> float:
        """Chance of a false `regressed` in the whole run."""
        return self._rules.alarm

    def run(
        self, measure: Measure, batches: Sequence[int], questions: Mapping[Key, Question]
    ) -> Outcome:
        """Measure and judge the batch sizes of one variant."""
        start_s = self._clock()
        screening = self._screen(measure, batches, questions)
        findings, screened = screening.findings, screening.taken
        questions = {key: q.settled(screened[key[0]]) for key, q in questions.items()}
        suspects = [k for k in findings if _suspect(k, findings, questions)]
        worth = [k for k in suspects if self._worth(k, screened[k[0]], questions[k], screening)]
        errors = {key: self.suspects.take() for key in worth}
        end_s = start_s + screening.whole_s
        for key in suspects:
            findings[key] = _open(findings[key], vain=key not in errors)
        fresh = self._confirm(measure, errors, questions, findings, end_s, screening.each_s)
        final = {
            key: self._explained(
                finding, questions[key], fresh.get(key[0]) or screened[key[0]], key[1], screening
            )
            for key, finding in findings.items()
        }
        samples = {b: Samples(b, (*screened[b], *fresh.get(b, []))) for b in batches}
        return Outcome(samples, final)

    def _screen(
        self, measure: Measure, batches: Sequence[int], questions: Mapping[Key, Question]
    ) -> Screening:
        """Measure every batch size until it is clear, or as often as planned."""
        rules, start_s = self._rules, self._clock()
        found = Screening({batch: [] for batch in batches}, {}, rules)
        waiting = list(batches)
        for count, error in looks(rules.replicates, rules.miss_screening, early=rules.early):
            while waiting and len(found.taken[waiting[0]]) < count:
                for batch, replicate in measure(waiting).items():
                    found.taken[batch].append(replicate)
            found.spent_s = self._clock() - start_s
            for key in [k for k in questions if k[0] in waiting]:
                question = questions[key].settled(found.taken[key[0]])
                found.findings[key] = self._first_finding(key, question, error, found)
            waiting = [b for b in waiting if not self._clear(b, questions, found)]
        return found

    def _first_finding(
        self, key: Key, question: Question, error: float, found: Screening
    ) -> Finding:
        replicates = found.taken[key[0]]
        errors = Errors(error, error)
        values = values_of(replicates, key[1])
        change = change_of(values, question.anchor, question.limit, errors, once=True)
        alarm, left = self.suspects.coming, found.left
        visible = visible_slowdown(values, question.anchor, question.limit, alarm, left)
        change = replace(change, visible=visible)
        if key[1] == P99 and (reason := _too_few_calls(replicates)):
            return Finding(change, Judgement(Verdict.UNDECIDED, (reason,)), errors)
        return Finding(change, judge_change(change, question.limit), errors)

    def _clear(self, batch: int, questions: Mapping[Key, Question], found: Screening) -> bool:
        """Tell if a batch size needs no more of the screening: decided, or nothing can decide it.

        One that passes goes on while its p99 has too few calls and will have enough.
        """
        key, taken = (batch, P50), found.taken[batch]
        if key not in questions:
            return False
        verdict = found.findings[key].judgement.verdict
        if verdict is Verdict.UNDECIDED:
            return not self._worth(key, taken, questions[key].settled(taken), found)
        awaited = (batch, P99) in questions and _calls_to_come(taken, self._rules.replicates)
        return verdict is Verdict.REGRESSED or not awaited

    def _worth(
        self, key: Key, replicates: Sequence[Replicate], question: Question, found: Screening
    ) -> bool:
        """Tell if the time left may decide; what an earlier run suspects is always looked at."""
        errors = Errors(self.suspects.coming, self._rules.miss_fresh)
        values = values_of(replicates, key[1])
        may = decidable(values, question.anchor, question.limit, errors, found.left)
        return question.earlier > 1 or may

    def _confirm(
        self,
        measure: Measure,
        suspects: Mapping[Key, float],
        questions: Mapping[Key, Question],
        findings: dict[Key, Finding],
        end_s: float,
        each_s: float,
    ) -> dict[int, list[Replicate]]:
        """Fresh replicates of the suspects until each is decided; updates `findings`."""
        fresh: dict[int, list[Replicate]] = {batch: [] for batch, _ in suspects}
        waiting = set(suspects)
        while waiting and self._clock() < end_s:
            for batch, replicate in measure(sorted({batch for batch, _ in waiting})).items():
                fresh[batch].append(replicate)
            for key in [k for k in waiting if len(fresh[k[0]]) >= FEWEST_REPLICATES]:
                values = values_of(fresh[key[0]], key[1])
                findings[key] = self._judge(values, questions[key], suspects[key])
            left = int((end_s - self._clock()) / each_s + 1e-6)
            waiting = {
                k
                for k in waiting
                if findings[k].judgement.verdict is Verdict.UNDECIDED
                and self._worth_going_on(fresh[k[0]], k[1], questions[k], suspects[k], left)
            }
        return fresh

    def _worth_going_on(
        self,
        fresh: Sequence[Replicate],
        metric: str,
        question: Question,
        error: float,
        left: int,
    ) -> bool:
        """Tell if the time left may still decide; as many as of a screening are measured first."""
        if len(fresh) < self._rules.replicates or question.earlier > 1:
            return True
        errors = Errors(error, self._rules.miss_fresh)
        together = left + len(fresh)
        values = values_of(fresh, metric)
        return decidable(values, question.anchor, question.limit, errors, together)

    def _judge(self, values: Sequence[float], question: Question, error: float) -> Finding:
        errors = Errors(error, self._rules.miss_fresh)
        change = change_of(values, question.anchor, question.limit, errors)
        alarm = error / 2 if question.anchor.error else error
        judgement = judge_change(change, question.limit, alarm=alarm, earlier=question.earlier)
        return Finding(change, judgement, errors, confirmed=True)

    def _explained(
        self,
        finding: Finding,
        question: Question,
        replicates: Sequence[Replicate],
        metric: str,
        found: Screening,
    ) -> Finding:
        """An undecided finding with what it could have seen, and what would decide it."""
        judgement = finding.judgement
        if judgement.verdict is not Verdict.UNDECIDED or not (finding.confirmed or finding.vain):
            return finding
        values, anchor = values_of(replicates, metric), question.anchor
        needed = replicates_to_decide(values, anchor, question.limit, finding.errors)
        whole_s = ((needed or 0) + found.rounds) * found.each_s
        said = _way_out(needed, whole_s, anchor)
        if not is_noise(finding.change):
            said = f"{_not_seen(finding.change.visible)} here: {said}"
        return replace(finding, judgement=Judgement(Verdict.UNDECIDED, (*judgement.reasons, said)))


def _not_seen(visible: float) -> str:
    return f"cannot detect less than {visible:.1%}" if visible < 1 else NOT_SEEN


def _way_out(needed: int | None, whole_s: float, anchor: Anchor) -> str:
    """What would decide: more time, or where that does not help what the spread comes from."""
    if needed:
        return f"about {whole_s:.0f} s would decide (--gate-max-time-per-variant)"
    if anchor.error:
        return (
            "more time will not help, the stored ratios differ by "
            f"{anchor.error:.1%} from session to session; measure beside the engine itself "
            "(--gate-against), or store more sessions (--gate-refresh-baselines)"
        )
    return "more time will not help; run on a quieter machine"


def values_of(replicates: Sequence[Replicate], metric: str) -> list[float]:
    """The log ratio of each replicate in a metric."""
    if metric == P99:
        return [replicate.tail_log_ratio() for replicate in replicates]
    return [replicate.log_ratio() for replicate in replicates]


def _fewest_calls(replicates: Sequence[Replicate]) -> int:
    return min(sum(len(r.calls(arm)) for r in replicates) for arm in (CANDIDATE, CONTROL))


def _calls_to_come(replicates: Sequence[Replicate], planned: int) -> bool:
    """Tell if there are too few calls for a p99, and the planned replicates bring enough."""
    calls = _fewest_calls(replicates)
    return calls < FEWEST_FOR_P99 <= calls * planned / len(replicates)


def _too_few_calls(replicates: Sequence[Replicate]) -> str:
    fewest = _fewest_calls(replicates)
    if fewest >= FEWEST_FOR_P99:
        return ""
    return f"{fewest} calls tell no p99: {FEWEST_FOR_P99} are needed"


def _suspect(key: Key, findings: Mapping[Key, Finding], questions: Mapping[Key, Question]) -> bool:
    """Tell if fresh data are needed. A p99 is too restless to follow up unless it looks slower."""
    verdict = findings[key].judgement.verdict
    if verdict is Verdict.REGRESSED or questions[key].earlier > 1:
        return True
    return verdict is Verdict.UNDECIDED and key[1] != P99


def _open(finding: Finding, *, vain: bool) -> Finding:
    """A suspect before there are fresh data, or without any where they could decide nothing."""
    why = "" if vain else ", too little time for fresh data"
    judgement = Judgement(Verdict.UNDECIDED, (f"{describe(finding.change)} at first sight{why}",))
    return Finding(finding.change, judgement, finding.errors, vain=vain)


def judge_second_control(log_ratios: Sequence[float], limit: float) -> str:
    """Refuse a measurement in which two copies of the yardstick differ; empty if they do not.

    Fires where the whole interval of their ratio is beyond half of the limit: Student's interval
    after an early look, where the other can refute nothing.
    """
    errors = Errors(_SENTINEL_ERROR, _SENTINEL_ERROR)
    few = len(log_ratios) < _FEW
    change = change_of(log_ratios, Anchor(), limit / 2, errors, once=few)
    if change.low <= 1 + limit / 2 and change.high >= 1 - limit / 2:
        return ""
    return (
        f"two copies of the control differ: the second is {describe(change)}; something other "
        "than the engines sets their speed, so run again on a quieter machine"
    )
