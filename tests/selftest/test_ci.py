"""What a CI job meets: other plugins, reruns, gate levels, annotations, JUnit."""

import json
from xml.etree import ElementTree

import pytest

from enginegate.verdicts import Exit, Verdict, exit_status

REVERSED = """
import pytest

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.reverse()
"""


def test_another_order_measures_every_variant_once(project):
    project.store()
    project.write("conftest.py", (project.path / "conftest.py").read_text() + REVERSED)
    result = project.run("--precision=fp32,int8", "--gate-report-json=report.json", "-k", "fp32")
    result.assert_outcomes(passed=4, deselected=4)
    (found,) = json.loads((project.path / "report.json").read_text())["results"]
    assert [speed["batch"] for speed in found["speeds"]] == [1, 4]


def test_repeated_tests_show_the_same_measurement(project):
    result = project.judge("--count=2", "--gate-report-json=report.json")
    result.assert_outcomes(passed=8)
    (found,) = json.loads((project.path / "report.json").read_text())["results"]
    assert [speed["batch"] for speed in found["speeds"]] == [1, 4]


def test_stopping_at_the_first_failure_keeps_its_status(project):
    project.store()
    project.plant("slow")
    result = project.judge("-x")
    result.assert_outcomes(passed=2, failed=1)
    assert result.ret == Exit.REGRESSED


def test_a_rerun_of_what_failed_cannot_pass_by_luck(project):
    """The engine is still slower: the rerun fails, with the evidence of both runs."""
    project.store()
    project.plant("slow")
    assert project.judge().ret == Exit.REGRESSED
    cached = project.path / ".pytest_cache/v/enginegate/evidence"
    assert set(json.loads(cached.read_text()).values()) == {100.0}  # half of what an alarm takes
    again = project.judge("--lf")
    assert again.ret == Exit.REGRESSED


def test_a_false_alarm_is_refuted_by_fresh_data(project):
    project.store()
    project.plant("slow")
    project.judge()
    project.plant("")
    again = project.judge()
    assert again.ret == 0
    cached = project.path / ".pytest_cache/v/enginegate/evidence"
    assert not json.loads(cached.read_text())


@pytest.mark.parametrize(("level", "status"), [("strict", 11), ("normal", 11), ("warn", 0)])
def test_gate_levels_with_a_regression(project, level, status):
    project.store()
    project.plant("slow")
    result = project.judge(f"--gate-level={level}")
    assert result.ret == status
    result.stdout.fnmatch_lines(["*batch *: regressed: *"])


def test_undecided_fails_at_the_strict_level_and_says_what_would_decide(project):
    project.store()
    project.plant("slow")  # by the limit itself
    undecidable = ("--gate-max-slowdown=0.4", "--gate-max-time-per-variant=300")
    normal = project.judge(*undecidable)
    assert normal.ret == 0
    normal.stdout.fnmatch_lines(["*undecided: *; cannot detect less than *"])
    assert project.judge("--gate-level=strict", *undecidable).ret == Exit.UNDECIDED


def test_an_unknown_gate_level_is_a_usage_error(project):
    result = project.judge("--gate-level=lax")
    assert result.ret == 4
    result.stderr.fnmatch_lines(
        ["ERROR: --gate-level 'lax' is not one of strict, normal, warn, off*"]
    )


def test_annotations_only_in_a_github_job(project, monkeypatch):
    project.store()
    project.plant("slow")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert "::error" not in project.judge().stdout.str()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    project.judge().stdout.fnmatch_lines(
        ["::error title=enginegate: regressed::tiny-faulty-fp32, batch *: regressed: *%25 slower*"]
    )


def test_junit_has_the_numbers(project):
    project.store()
    project.judge("--junitxml=report.xml")
    cases = ElementTree.parse(project.path / "report.xml").iter("testcase")  # noqa: S314
    found = [{p.get("name"): p.get("value", "") for p in case.iter("property")} for case in cases]
    timed = [properties for properties in found if "enginegate_p50_s" in properties]
    assert len(timed) == 2
    for properties in timed:
        assert properties["enginegate_verdict"] == "pass"
        low, high = (float(properties[f"enginegate_change_{end}"]) for end in ("low", "high"))
        assert low <= float(properties["enginegate_change"]) <= high
        assert float(properties["enginegate_visible_slowdown"]) > 0


@pytest.mark.parametrize(
    ("failures", "status"),
    [
        ([], 0),
        ([Verdict.REGRESSED], 11),
        ([Verdict.UNDECIDED, Verdict.REGRESSED], 11),
        ([Verdict.INVALID, "error"], 12),
        ([Verdict.REGRESSED, ""], 1),
        ([Verdict.FAIL, Verdict.REGRESSED], 10),
    ],
)
def test_the_gravest_reason_gives_the_exit_status(failures, status):
    assert exit_status(failures) == status


def test_a_refresh_in_dry_run_writes_nothing(project):
    result = project.judge("--gate-refresh-baselines", "--gate-dry-run")
    result.stdout.fnmatch_lines(["baselines: new  tiny-faulty-fp32"])
    assert not list(project.path.glob("baselines/*"))


def test_a_refresh_of_what_is_missing_keeps_what_is_there(project):
    project.store()
    before = json.loads(project.baseline().read_text())["variants"]["faulty-fp32"]
    result = project.run("--precision=fp32,int8", "--gate-refresh-baselines=missing")
    result.stdout.fnmatch_lines(
        [
            "baselines: kept tiny-faulty-fp32 as it was: it is there",
            "baselines: new  tiny-faulty-int8",
        ]
    )
    variants = json.loads(project.baseline().read_text())["variants"]
    assert variants["faulty-fp32"] == before
    assert set(variants) == {"faulty-fp32", "faulty-int8"}


def test_a_refresh_of_what_did_not_change_adds_a_session(project):
    for sessions in (1, 2, 3):
        project.judge("--gate-refresh-baselines")
        cells = json.loads(project.baseline().read_text())["variants"]["faulty-fp32"]["cells"]
        assert [len(cell) for cell in cells.values()] == [sessions, sessions]


def test_sessions_are_kept_from_the_oldest_and_the_newest(project):
    project.store()
    content = json.loads(project.baseline().read_text())
    for cell in content["variants"]["faulty-fp32"]["cells"].values():
        cell[:] = [{**cell[0], "date": f"2026-01-{day:02}"} for day in range(1, 8)]
    project.baseline().write_text(json.dumps(content))
    project.judge("--gate-refresh-baselines")
    cells = json.loads(project.baseline().read_text())["variants"]["faulty-fp32"]["cells"]
    dates = [session["date"] for session in cells["1"]]
    assert dates[:-1] == [f"2026-01-{day:02}" for day in (1, 3, 4, 5, 6, 7)]
    assert len(dates) == 7


def test_a_slow_tail_is_found_where_there_are_calls_enough(project):
    many = ("--gate-measure-s=600", "--gate-replicates=8", "--gate-max-time-per-variant=3000")
    project.judge("--gate-refresh-baselines", *many)
    project.judge(*many, "--gate-require-baseline").assert_outcomes(passed=4)
    project.plant("slow tail")
    result = project.judge(*many)
    assert result.ret == Exit.REGRESSED
    result.stdout.fnmatch_lines(["*batch *: regressed: p99 *% slower*"])
