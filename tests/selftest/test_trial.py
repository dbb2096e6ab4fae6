"""The two steps of a trial and the evidence carried between runs, on replicates made by hand."""

import contextlib
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from enginegate.engines import Executed
from enginegate.models import Batch
from enginegate.speed.arms import LocalArm
from enginegate.speed.judge import Comparison, SpeedJudge, paired
from enginegate.speed.looks import looks
from enginegate.speed.rules import P50, P99, Question, Rules
from enginegate.speed.sequential import SequentialTest, Suspects, judge_second_control
from enginegate.speed.stats import Anchor
from enginegate.speed.timing import Block, Replicate, Rig
from enginegate.verdicts import Judgement, Verdict

RULES = Rules(replicates=6, max_time_s=40.0, alarm=0.01, miss=0.05)


def replicate(log_ratio, sentinel=0.0, tail=1.0):
    """Sixty calls of every arm, the last of them `tail` times as long for the candidate."""

    def turns(seconds, slowest=1.0):
        return tuple((*[seconds] * 29, seconds * slowest) for _ in range(2))

    arms = {
        "candidate": turns(0.01 * math.exp(log_ratio), tail),
        "yardstick": turns(0.01),
        "sentinel": turns(0.01 * math.exp(sentinel)),
    }
    return Replicate((Block(arms),) * 2)


class Machine:
    """Makes replicates of batch sizes with the given slowdowns; a second each."""

    def __init__(self, slowdowns, *, spread=0.01, sentinel=0.0, tail=1.0, seed=0):
        self.now_s, self.asked = 0.0, []
        self._slowdowns, self._spread = slowdowns, spread
        self._sentinel, self._tail = sentinel, tail
        self._rng = np.random.default_rng(seed)

    def clock(self):
        return self.now_s

    def replicate(self, batches):
        self.now_s += 1.0
        self.asked.append(tuple(batches))
        return {b: self._make(self._slowdowns[b]) for b in batches}

    def _make(self, slowdown):
        noise = self._spread * self._rng.normal()
        return replicate(math.log1p(slowdown) + noise, self._sentinel, self._tail)


def questions(batches):
    return {(batch, P50): Question(Anchor(), 0.05) for batch in batches}


def run(machine):
    batches = list(machine._slowdowns)
    return SequentialTest(RULES, machine.clock).run(machine.replicate, batches, questions(batches))


def test_what_is_within_the_limit_passes_at_first_sight():
    machine = Machine({1: 0.0, 8: 0.0})
    outcome = run(machine)
    verdicts = {finding.judgement.verdict for finding in outcome.findings.values()}
    assert verdicts == {Verdict.PASS}
    assert machine.asked == [(1, 8)] * 3


def test_what_is_not_clear_at_once_is_looked_at_again_without_what_was():
    machine = Machine({1: 0.0, 8: 0.049})
    outcome = run(machine)
    assert outcome.findings[1, P50].judgement.verdict is Verdict.PASS
    assert machine.asked[:4] == [(1, 8)] * 3 + [(8,)]


def test_a_screening_that_is_to_be_stored_is_not_cut_short():
    machine = Machine({1: 0.0})
    trial = SequentialTest(replace(RULES, early=False), machine.clock)
    trial.run(machine.replicate, [1], questions([1]))
    assert len(machine.asked) == RULES.replicates


def test_the_error_of_all_looks_together_is_what_is_spent():
    for planned in range(3, 40):
        found = list(looks(planned, 0.025, early=True))
        assert found[0][0] == 3
        assert found[-1][0] == planned
        assert sum(error for _, error in found) == pytest.approx(0.025)


def test_only_suspects_are_measured_again_and_only_fresh_data_count():
    machine = Machine({1: 0.0, 8: 0.2})
    outcome = run(machine)
    assert outcome.findings[1, P50].judgement.verdict is Verdict.PASS
    assert outcome.findings[8, P50].judgement.verdict is Verdict.REGRESSED
    assert outcome.findings[8, P50].confirmed
    assert set(machine.asked[6:]) == {(8,)}
    assert len(outcome.samples[8].replicates) == len(machine.asked)


def test_tests_of_one_run_share_its_alarm_error():
    suspects = Suspects(0.01)
    found = [
        SequentialTest(RULES, machine.clock, suspects)
        .run(machine.replicate, [1], questions([1]))
        .findings[1, P50]
        for machine in (Machine({1: 0.3}), Machine({1: 0.3}, seed=1))
    ]
    assert [finding.judgement.verdict for finding in found] == [Verdict.REGRESSED] * 2
    assert [finding.errors.alarm for finding in found] == [0.01 / 2, 0.01 / 6]
    assert suspects.coming == pytest.approx(0.01 / 12)


def test_with_time_for_three_fresh_replicates_nothing_is_called_regressed():
    machine = Machine({1: 0.5})
    trial = SequentialTest(Rules(3, 1.0, 0.01, 0.05), machine.clock)
    finding = trial.run(machine.replicate, [1], questions([1])).findings[1, P50]
    assert finding.judgement.verdict is Verdict.UNDECIDED
    assert finding.change.visible == math.inf
    assert finding.judgement.reasons[-1].startswith("cannot detect less than 100 % here: about 6 s")
    assert len(machine.asked) == 3  # three more could decide nothing


def test_what_stays_undecided_says_what_it_sees_and_what_would_decide():
    finding = run(Machine({1: 0.055}, spread=0.05)).findings[1, P50]
    assert finding.judgement.verdict is Verdict.UNDECIDED
    assert finding.judgement.reasons[-1].startswith("cannot detect less than ")


def test_what_time_cannot_decide_is_not_measured_on():
    machine = Machine({1: 0.0, 8: 0.0})
    asked = questions([1]) | {(8, P50): Question(Anchor(error=0.1, freedom=3), 0.05)}
    outcome = SequentialTest(RULES, machine.clock).run(machine.replicate, [1, 8], asked)
    assert len(machine.asked) == 3
    finding = outcome.findings[8, P50]
    assert finding.judgement.verdict is Verdict.UNDECIDED
    assert "differ by 10.0% from session to session; measure beside" in finding.judgement.reasons[1]
    assert finding.change.visible > 0.3


def test_what_an_uncertain_baseline_shows_all_the_same_is_found():
    machine = Machine({1: 0.5})
    asked = {(1, P50): Question(Anchor(error=0.03, freedom=12), 0.05)}
    outcome = SequentialTest(RULES, machine.clock).run(machine.replicate, [1], asked)
    assert outcome.findings[1, P50].judgement.verdict is Verdict.REGRESSED


def test_a_screening_goes_on_while_a_p99_lacks_calls_that_will_come():
    machine = Machine({1: 0.0})
    asked = questions([1]) | {(1, P99): Question(Anchor(), 0.1)}
    rules = replace(RULES, replicates=8)  # of 120 calls each
    outcome = SequentialTest(rules, machine.clock).run(machine.replicate, [1], asked)
    assert len(machine.asked) == 5
    assert outcome.findings[1, P99].judgement.verdict is Verdict.PASS


def test_a_change_below_the_floor_passes():
    machine = Machine({1: 0.08})
    question = Question(Anchor(), 0.05, floor_s=0.001)  # 10 % of 10 ms
    outcome = SequentialTest(RULES, machine.clock).run(machine.replicate, [1], {(1, P50): question})
    assert outcome.findings[1, P50].judgement.verdict is Verdict.PASS


def test_unchanged_engines_are_hardly_ever_called_regressed_and_slower_ones_are_found():
    verdicts = [
        finding.judgement.verdict
        for seed in range(150)
        for finding in run(
            Machine({1: 0.0, 8: 0.0, 16: 0.0}, spread=0.04, seed=seed)
        ).findings.values()
    ]
    assert verdicts.count(Verdict.REGRESSED) <= 2
    found = [
        run(Machine({1: 0.12}, spread=0.02, seed=seed)).findings[1, P50].judgement.verdict
        for seed in range(60)
    ]
    assert found.count(Verdict.REGRESSED) >= 55


def test_what_it_says_it_sees_is_found_in_four_of_five():
    said = np.median(
        [run(Machine({1: 0.0}, seed=s)).findings[1, P50].change.visible for s in range(40)]
    )
    found = [
        run(Machine({1: float(said)}, seed=seed)).findings[1, P50].judgement.verdict
        for seed in range(100, 180)
    ]
    assert found.count(Verdict.REGRESSED) >= 0.72 * len(found)


def judged(machine, evidence, *, rules=RULES):
    judge = SpeedJudge(SequentialTest(rules, machine.clock), {P50: 0.05, P99: 0.1}, evidence)
    batches = list(machine._slowdowns)
    found = judge.judge(machine, batches, paired(batches), "engine")
    return {batch: one.speed.verdict for batch, one in found.items()}


def test_a_regression_leaves_evidence_and_a_pass_on_fresh_data_clears_it():
    evidence: dict[str, float] = {}
    assert judged(Machine({1: 0.2}), evidence) == {1: Verdict.REGRESSED}
    assert set(evidence.values()) == {100.0}
    assert judged(Machine({1: 0.0}, seed=1), evidence) == {1: Verdict.PASS}
    assert evidence == {}


def test_evidence_stays_where_there_was_no_time_to_refute_it():
    evidence: dict[str, float] = {}
    judged(Machine({1: 0.2}), evidence)
    hurried = judged(Machine({1: 0.0}), evidence, rules=Rules(3, 1.0, 0.01, 0.05))
    assert hurried == {1: Verdict.UNDECIDED}
    assert evidence
    assert all(0 < left < 100 for left in evidence.values())


def test_an_invalid_measurement_neither_leaves_nor_clears_evidence():
    evidence: dict[str, float] = {}
    judged(Machine({1: 0.2}), evidence)
    before = dict(evidence)
    assert judged(Machine({1: 0.0}, sentinel=0.2), evidence) == {1: Verdict.INVALID}
    assert judged(Machine({1: 0.4}, sentinel=0.2), evidence) == {1: Verdict.INVALID}
    assert evidence == before


def test_carried_evidence_does_not_condemn_an_unchanged_engine_that_is_noisy():
    alarms = 0
    for seed in range(60):
        evidence = {f"engine/1/{P50}/0.000000": 100.0}
        verdict = judged(Machine({1: 0.0}, spread=0.06, seed=seed), evidence)[1]
        alarms += verdict is Verdict.REGRESSED
    assert alarms <= 3


def test_a_slow_tail_regresses_with_calls_enough_and_is_followed_up_on_a_rerun():
    evidence: dict[str, float] = {}
    machine = Machine({1: 0.0}, spread=0.005, tail=1.5)
    assert judged(machine, evidence) == {1: Verdict.REGRESSED}
    assert any("/p99/" in cell for cell in evidence)
    again = Machine({1: 0.0}, spread=0.005, tail=1.5, seed=1)
    assert judged(again, evidence) == {1: Verdict.REGRESSED}


@pytest.mark.parametrize(
    ("shift", "fires"), [(0.0, False), (0.01, False), (0.05, True), (-0.05, True)]
)
def test_the_sentinel_fires_for_copies_that_differ_by_more_than_half_of_the_limit(shift, fires):
    rng = np.random.default_rng(0)
    values = (shift + 0.005 * rng.normal(size=8)).tolist()
    assert bool(judge_second_control(values, 0.05)) is fires


class Counter:
    """An engine that notes when it was called."""

    executed = Executed({"f32": 1})

    def __init__(self, name, log):
        self._name, self._log = name, log

    def embed(self, batch):
        self._log.append(self._name)
        return np.zeros((1, 1), np.float32)


def test_blocks_are_mirrored_and_the_sentinel_watches_the_smallest_batch_size(monkeypatch):
    monkeypatch.setattr("enginegate.speed.timing.TURN_S", 0.0)
    monkeypatch.setattr("enginegate.speed.timing.SETTLE_S", 0.0)
    log: list[str] = []

    @contextlib.contextmanager
    def open_arms(batches, rng):
        inputs: dict[int, Batch] = {batch: {} for batch in batches}
        names = ["candidate", "yardstick", "sentinel"]
        yield {name: LocalArm(Counter(name, log), inputs) for name in names}

    found = Rig(open_arms, 1e-9, random.Random(3)).replicate([4, 1])
    assert set(found[1].blocks[0].turns) == {"candidate", "yardstick", "sentinel"}
    assert set(found[4].blocks[0].turns) == {"candidate", "yardstick"}
    assert len(log) == 2 + 8 + 3 + 12  # a call to learn how long it takes, then settled turns
    block = log[2:10]
    assert block[::2] == block[::-2]


@pytest.mark.parametrize(("stored_s", "warned"), [(0.007, True), (0.0095, False), (0.02, False)])
def test_a_pass_says_so_where_engine_and_reference_both_became_slower(stored_s, warned):
    machine = Machine({1: 0.0})
    judge = SpeedJudge(SequentialTest(RULES, machine.clock), {P50: 0.05, P99: 0.1}, {})
    standard = Comparison({(1, P50): Anchor()}, {1: stored_s}, Judgement(Verdict.NO_BASELINE))
    rig: Any = machine
    speed = judge.judge(rig, [1], standard, "engine")[1].speed
    assert speed.verdict is Verdict.PASS
    said = " ".join(speed.judgement.reasons)
    assert ("slower than stored in absolute time, and so is the reference" in said) is warned


def test_both_copies_of_the_yardstick_count_where_two_ran():
    block = replicate(0.0, sentinel=0.02).blocks[0]
    assert block.log_ratio == pytest.approx(-0.01)
    assert block.sentinel_log_ratio == pytest.approx(0.02)
    alone = Block({name: block.turns[name] for name in ("candidate", "yardstick")})
    assert alone.log_ratio == pytest.approx(0.0)
