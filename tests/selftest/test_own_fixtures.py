"""A project's own `built`, `rig`, `measure` and `result`: judged and reported like ours."""

import json

from enginegate.results import DOUBT

CONFTEST = """
import contextlib
import dataclasses

import pytest
from faulty import FaultyEngine

from enginegate.engines import register
from enginegate.speed import LocalArm, Rig

register("faulty", "faulty:Faulty")


@pytest.fixture(scope="session")
def built(enginegate, enginegate_variant, exported, workload, reference):
    found = enginegate.prepare.build(enginegate_variant, exported, workload, reference)
    return dataclasses.replace(found, notes=("built by the project",))


@pytest.fixture(scope="session")
def rig(enginegate, built, exported, workload, reference):
    @contextlib.contextmanager
    def open_arms(batches, rng):
        inputs = {size: workload.batch(size) for size in batches}
        with built.load(workload, threads=1) as engine:
            plain = FaultyEngine(engine.engine, "")  # with the same scale of time
            arms = {"candidate": engine, "yardstick": plain, "sentinel": plain}
            yield {name: LocalArm(found, inputs) for name, found in arms.items()}

    return Rig(open_arms, replicate_s=4, rng=enginegate.rng)


@pytest.fixture
def measure(enginegate, result, rig):
    return lambda size: enginegate.measured(result, rig, size)
"""

OWN_RESULT = """

@pytest.fixture(scope="session")
def result(enginegate, built, engine, exported, workload, embeddings, embedding_judge):
    opened = enginegate.start(built, engine.executed, exported, workload)
    return enginegate.judge_embeddings(opened, embeddings, embedding_judge)
"""

OWN_REFERENCE = """

@pytest.fixture(scope="session")
def reference(enginegate, exported, workload):
    return enginegate.prepare.reference(exported, workload)
"""


def report(project):
    return json.loads((project.path / "report.json").read_text())["results"]


def test_a_run_with_a_projects_own_fixtures_is_judged_and_reported(project):
    project.write("conftest.py", CONFTEST)
    first = project.judge("--gate-refresh-baselines", "--gate-report-json=report.json")
    first.assert_outcomes(passed=4)
    (found,) = report(project)
    assert "built by the project" in found["notes"]
    assert [speed["batch"] for speed in found["speeds"]] == [1, 4]
    project.plant("slow")
    slow = project.judge("--gate-report-json=report.json")
    slow.assert_outcomes(passed=2, failed=2)
    assert {s["judgement"]["verdict"] for s in report(project)[0]["speeds"]} == {"regressed"}


def test_a_projects_own_result_is_judged_and_reported(project):
    project.write("conftest.py", CONFTEST + OWN_RESULT)
    project.judge("--gate-report-json=report.json").assert_outcomes(passed=3, skipped=1)
    (found,) = report(project)
    assert len(found["speeds"]) == 2


def test_a_projects_own_result_keeps_the_doubts_about_its_reference(project, monkeypatch):
    monkeypatch.setattr(
        "enginegate.session.preparation.second_opinions", lambda *_: (f"{DOUBT}planted",)
    )
    project.write("conftest.py", CONFTEST + OWN_RESULT)
    project.judge("--gate-report-json=report.json")
    (found,) = report(project)
    assert f"{DOUBT}planted" in found["notes"]
    assert found["embedding_verdict"] == "flagged"


def test_a_reference_of_the_projects_own_that_was_not_judged_is_in_doubt(project):
    project.write("conftest.py", CONFTEST + OWN_REFERENCE)
    project.judge("--gate-report-json=report.json", "-k", "embeddings")
    (found,) = report(project)
    reasons = (
        "its tokens are not the model's",
        "the reference is in doubt",
        "its speed was not measured",
    )
    assert (found["decision"], found["reason"]) == ("hold", ", ".join(reasons))
    assert f"{DOUBT}the project's own `reference` was not compared with the model" in found["notes"]


def test_a_rig_that_does_not_say_what_it_measures_beside_is_not_compared_with_that(project):
    project.write("conftest.py", CONFTEST)
    project.judge("--gate-save-engines=saved")
    beside = project.judge("--gate-against=saved", "--gate-require-baseline")
    beside.assert_outcomes(passed=2, failed=2)
    beside.stdout.fnmatch_lines(["*incomparable: the `rig` fixture does not say*"])


SHARES = """
def test_share(enginegate):
    tests = (enginegate.judge, enginegate.brief, enginegate.served_judge)
    assert len({one.trial.suspects.take() for one in tests}) == 3
"""


def test_all_tests_of_a_run_share_its_alarm_error(project):
    project.write("test_share.py", SHARES)
    project.judge("test_share.py").assert_outcomes(passed=1)
