"""Where there is nothing to compare with, measurement is short, and says what it is worth."""

import contextlib
import json
import random

import pytest

from enginegate.models import Batch
from enginegate.report.table import speedup
from enginegate.speed import LocalArm
from enginegate.speed.timing import Rig

from .reports import result, speed
from .test_trial import Counter

OWN_TIMES = ("replicates", "measure_s", "max_time_per_variant")
NOTE = "measured shortly, as there is nothing to compare with"


@pytest.fixture
def plain(project):
    """The project without options of time."""
    table = (project.path / "pyproject.toml").read_text().splitlines()
    kept = [line for line in table if not line.startswith(OWN_TIMES)]
    project.write("pyproject.toml", "\n".join(kept))
    return project


def judged(project, *arguments):
    """The replicates of each batch size, and the whole terminal."""
    ended = project.judge("--gate-report-json=report.json", *arguments)
    (found,) = json.loads((project.path / "report.json").read_text())["results"]
    counts = {len(speed["log_ratios"]["p50"]) for speed in found["speeds"]}
    return counts, ended.stdout.str()


def test_a_first_run_is_short_and_says_so_once(plain):
    counts, said = judged(plain)
    assert counts == {3}
    assert said.count(NOTE) == 1
    assert "--gate-measure-s=6 measures longer" in said


OF_TIME = [("--gate-measure-s=6", 12), ("--gate-replicates=8", 8)]


@pytest.mark.parametrize(("option", "count"), OF_TIME)
def test_an_option_of_time_rules(plain, option, count):
    counts, said = judged(plain, option)
    assert counts == {count}
    assert NOTE not in said


@pytest.mark.parametrize("option", ["--gate-refresh-baselines", "--gate-history"])
def test_what_is_stored_or_noted_is_measured_as_long_as_ever(plain, option):
    counts, said = judged(plain, option, "--gate-sessions=1")
    assert counts == {12}
    assert NOTE not in said


def test_what_has_a_baseline_is_measured_until_it_is_decided(plain):
    plain.store()
    plain.plant("slow")
    _, said = judged(plain)
    assert "% slower" in said
    assert NOTE not in said


def arms_of(log):
    @contextlib.contextmanager
    def open_arms(batches, rng):
        inputs: dict[int, Batch] = {batch: {} for batch in batches}
        names = ["candidate", "yardstick", "sentinel"]
        yield {name: LocalArm(Counter(name, log), inputs) for name in names}

    return open_arms


@pytest.mark.parametrize(("cell_s", "turns"), [(1e-9, 1), (60.0, 2)])
def test_a_long_call_of_a_brief_rig_is_not_made_there_and_back(monkeypatch, cell_s, turns):
    monkeypatch.setattr("enginegate.speed.timing.TURN_S", 0.0)
    monkeypatch.setattr("enginegate.speed.timing.SETTLE_S", 0.0)
    monkeypatch.setattr("enginegate.speed.timing.round", lambda _: 1, raising=False)
    rig = Rig(arms_of([]), 2 * cell_s, random.Random(3), brief=True)
    for replicate in rig.replicate([4, 1]).values():
        (block,) = replicate.blocks
        assert {len(found) for found in block.turns.values()} == {turns}
        assert block.seconds("candidate") > 0


def shown(**speeds):
    return speedup(result(speeds=(speed(8, **speeds),)))


def test_a_speedup_is_shown_with_how_far_it_is_known():
    assert shown(log_ratios={"p50": (-0.69, -0.7, -0.69)}) == "2.00 ±2%"
    assert shown(log_ratios={"p50": (-0.69, -0.7)}) == "2.00"
    assert shown(log_ratios={"p50": (-0.69, -0.2, -1.4)}) == "too noisy"
