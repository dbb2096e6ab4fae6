"""Installed and unused, the plugin does not exist; used, no value of it is taken for a test."""

import json
import shlex

import pytest

from enginegate.config.arguments import GATE, SERVING
from enginegate.verdicts import Exit

OLD_FLAGS = ["--" + option.name.replace("_", "-") for option in (*GATE, *SERVING)]
FIXTURES = ["engine", "model", "workload", "limits", "result", "measure", "batch_size", "gate"]


@pytest.fixture
def unrelated(pytester):
    """A project with options and fixtures of its own by every name that ours have or had."""
    added = "".join(
        f"    parser.addoption({flag!r}, default='theirs', dest={flag[2:]!r})\n"
        for flag in OLD_FLAGS
    )
    fixtures = "".join(
        f"@pytest.fixture\ndef {name}(): return 'their {name}'\n" for name in FIXTURES
    )
    pytester.makeconftest(f"import pytest\ndef pytest_addoption(parser):\n{added}{fixtures}")
    pytester.makepyfile(
        f"def test_fixtures({', '.join(FIXTURES)}):\n"
        + "".join(f"    assert {name} == 'their {name}'\n" for name in FIXTURES)
        + "def test_options(pytestconfig):\n"
        + "    given = dict(zip(('precision', 'model'), ('7', 'x')))\n"
        + f"    for name in {[flag[2:] for flag in OLD_FLAGS]!r}:\n"
        + "        assert pytestconfig.getoption(name) == given.get(name, 'theirs')\n"
    )
    return pytester


def test_options_and_fixtures_of_an_unrelated_project_are_its_own(unrelated):
    result = unrelated.runpytest_inprocess("--precision", "7", "--model=x", "--strict-markers")
    result.assert_outcomes(passed=2)
    assert "enginegate" not in result.stdout.str().replace("enginegate-0", "")


def test_a_precision_that_is_ours_and_theirs_is_theirs(unrelated):
    unrelated.makepyfile(
        "def test_it(pytestconfig): assert pytestconfig.option.precision == 'fp32'"
    )
    unrelated.runpytest_inprocess("--precision", "fp32").assert_outcomes(passed=1)


def test_ours_has_another_name_where_theirs_is_taken(project):
    conftest = project.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + "\ndef pytest_addoption(parser): parser.addoption('--precision', type=int)\n"
    )
    arguments = ("--precision=3", "--gate-precision=fp32", "-k", "same_embeddings")
    project.run(*arguments).assert_outcomes(passed=1, deselected=3)


def test_a_fixture_that_nobody_defines_is_not_found(pytester):
    pytester.makepyfile("def test_it(workload): pass")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'workload' not found*"])


@pytest.mark.parametrize("way", ["table", "plugin", "suite"])
def test_a_project_opts_in(pytester, way):
    pytester.makepyprojecttoml("[tool.enginegate]" if way == "table" else "")
    if way == "plugin":
        pytester.makeconftest("pytest_plugins = ['enginegate.fixtures']")
    pytester.makepyfile("def test_it(gate): gate.check_embeddings()")
    arguments = ["--pyargs", "enginegate.suite"] if way == "suite" else []
    result = pytester.runpytest_inprocess(*arguments, "-rs")
    result.assert_outcomes(skipped=6 if way == "suite" else 1)
    result.stdout.fnmatch_lines(["*no precision asked for*"])


def test_a_precision_in_a_project_that_has_not_opted_in_is_an_error(pytester):
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess("--precision", "fp32")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*does not use enginegate. Add a table [[]tool.enginegate]*"])


@pytest.mark.parametrize("way", ["in two words", "in one word", "PYTEST_ADDOPTS"])
def test_a_path_that_exists_does_not_move_the_root(project, tmp_path_factory, monkeypatch, way):
    """A run finds the report of the one before, far from the project."""
    report = tmp_path_factory.mktemp("else where") / "report.json"
    report.write_text("of the run before")
    written = ["--gate-report-json", str(report)]
    if way == "PYTEST_ADDOPTS":
        monkeypatch.setenv(way, shlex.join(written))
    arguments = {"in two words": written, "in one word": ["=".join(written)]}.get(way, [])
    result = project.fork("--precision", "fp32", *arguments, "-k", "same_embeddings")
    result.assert_outcomes(passed=1, deselected=3)
    assert list(json.loads(report.read_text())["results"])


RERUN = """
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):  # as pytest-rerunfailures does it
    from _pytest.runner import runtestprotocol
    for last in (False, True):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        again = not last and any(report.failed for report in reports)
        for report in reports:
            report.outcome = "rerun" if report.failed and again else report.outcome
            item.ihook.pytest_runtest_logreport(report=report)
        if not again:
            return True
"""
SHUFFLE = """
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    items.reverse()
"""
FAILS_ONCE = """
tried = []
def test_it(engine):
    tried.append(1)
    assert len(tried) > 1
"""


def add(project, text):
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + text)


def test_a_test_that_is_run_again_is_judged_once(project, monkeypatch):
    project.store()
    add(project, RERUN)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    project.plant("slow")
    result = project.judge("-k", "not_slower and 1]")
    result.assert_outcomes(failed=1, deselected=3)
    assert result.ret == Exit.REGRESSED
    assert len([line for line in result.outlines if line.startswith("::error")]) == 1


def test_a_test_that_passes_when_it_is_run_again_fails_nothing(project):
    add(project, RERUN)
    project.write("test_it.py", FAILS_ONCE)
    assert project.judge("test_it.py").ret == 0
    project.write("test_it.py", FAILS_ONCE.replace("> 1", "> 2"))
    assert project.judge("test_it.py").ret == 1


def test_served_engines_come_last_of_each_variant_whoever_shuffles(project):
    pytest.importorskip("tritonclient")
    add(project, SHUFFLE)
    project.write("test_served.py", "def test_served(served): pass\n")
    result = project.run("--precision=fp32,int8", "--gate-serve=triton", "--collect-only", "-q")
    names = [line for line in result.outlines if "::" in line]
    served = [place for place, name in enumerate(names) if "test_served" in name]
    assert len(names) == 10
    assert served == [4, 9]
    assert len({name.partition("faulty-")[2][:4] for name in names[:5]}) == 1


def test_a_run_in_which_no_engine_could_be_judged_is_refused(project):
    add(
        project,
        "\ndef pytest_addoption(parser):\n    parser.addoption('--codspeed', action='count')",
    )
    result = project.judge("--codspeed")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*CodSpeed leaves out every test of an engine: run without*"])


def test_nothing_is_timed_without_the_plugin_that_shows_it(project):
    result = project.judge("-p", "no:benchmark", "-rs")
    result.assert_outcomes(passed=2, skipped=2)
    result.stdout.fnmatch_lines(["*not timed: pytest-benchmark is disabled*"])


def test_a_flag_is_told_where_only_passed_and_failed_are_known(project):
    add(project, "\ndef pytest_runtest_logreport(report): print(*report.sections)")
    result = project.run("--precision=int8", "-s", "-k", "same_embeddings")
    result.stdout.fnmatch_lines(["*'Captured enginegate call', 'tiny-faulty-int8: flagged: *"])
