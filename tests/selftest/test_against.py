"""Measuring beside the baseline's engine itself: saved engines, and those of a git revision."""

import subprocess
import sys

import pytest

from enginegate.config import Options
from enginegate.verdicts import Exit


def git(folder, *arguments):
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.com"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_saving_engines_builds_and_does_not_time(project):
    saved = project.judge("--gate-save-engines=saved")
    saved.assert_outcomes(passed=2, skipped=2)
    assert (project.path / "saved/tiny/faulty-fp32/engine/engine.onnx").exists()
    assert not list(project.path.glob("baselines/*"))


def test_the_same_engine_beside_itself_passes_and_a_slower_one_regresses(project):
    project.judge("--gate-save-engines=saved")
    same = project.judge("--gate-against=saved", "--gate-require-baseline")
    same.assert_outcomes(passed=4)
    same.stdout.fnmatch_lines(["*measured beside saved*"])
    project.plant("slow")
    slower = project.judge("--gate-against=saved")
    slower.assert_outcomes(passed=2, failed=2)
    assert slower.ret == Exit.REGRESSED
    assert not (project.path / ".enginegate/accept").exists()


def test_an_engine_beside_that_of_a_git_revision(project):
    """The tests that are named run there too, and no others; one is named by its id."""
    (project.path / "gates").mkdir()
    for name in ("test_accuracy.py", "test_throughput.py"):
        (project.path / name).rename(project.path / "gates" / name)
    project.write("test_other.py", "raise RuntimeError('not named')")
    git(project.path, "init", "-q")
    git(project.path, "add", ".")
    git(project.path, "commit", "-qm", "first")
    named = ("gates/test_throughput.py::test_not_slower", "gates/test_accuracy.py")
    same = project.judge(*named, "--gate-against=HEAD", "--gate-require-baseline")
    same.assert_outcomes(passed=4)
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=project.path, check=True, capture_output=True, text=True
    )
    assert len(listed.stdout.splitlines()) == 1
    project.plant("slow")
    assert project.judge(*named, "--gate-against=HEAD").ret == Exit.REGRESSED


OTHERWISE = "measured beside an engine that was built otherwise: calibration "


def committed(project):
    git(project.path, "init", "-q")
    git(project.path, "add", ".")
    git(project.path, "commit", "-qm", "first")


def test_both_are_calibrated_by_the_texts_that_the_command_line_names(project):
    """A path of the command line is this run's; it is not looked for in the other revision."""
    committed(project)
    project.write("mine.txt", "\n".join(f"text number {n}" for n in range(90)))
    given = ("--precision=int8", "--gate-workload=mine.txt", "--gate-batches=1")
    same = project.run(*given, "--gate-against=HEAD", "--gate-require-baseline")
    assert same.ret == 0
    assert OTHERWISE not in same.stdout.str()


def test_other_texts_of_another_table_are_said(project):
    committed(project)
    project.write("mine.txt", "\n".join(f"text number {n}" for n in range(90)))
    table = (project.path / "pyproject.toml").read_text()
    own = table.replace("batches = [1, 4]", 'batches = [1]\nworkload = "mine.txt"')
    project.write("pyproject.toml", own)
    other = project.run("--precision=int8", "--gate-against=HEAD")
    other.stdout.fnmatch_lines([f"tiny-faulty-int8: {OTHERWISE}*"])


def test_the_other_revision_is_built_for_what_the_command_line_says(pytester):
    pytester.makepyprojecttoml("[tool.enginegate]\nbatches = [2]\ntf32 = true\n")
    given = ("--gate-batches=1,64", "--gate-workload=mine.txt", "--gate-tf32")
    workload = f"--gate-workload={pytester.path / 'mine.txt'}"
    plain, asked = (Options.from_config(pytester.parseconfig(*g)).building for g in ((), given))
    assert not any(word.startswith(("--gate-batches", "--gate-tf32")) for word in plain)
    assert {"--gate-tf32", "--gate-batches=1,64", workload} <= set(asked)


def test_a_revision_that_builds_nothing_says_why(project):
    git(project.path, "init", "-q")
    git(project.path, "add", "pyproject.toml")
    git(project.path, "commit", "-qm", "nothing to build from")
    result = project.judge("--gate-against=HEAD")
    assert result.ret == Exit.ERROR
    result.stdout.fnmatch_lines(["nothing to measure beside: * builds no engine in *"])


@pytest.mark.parametrize(
    ("where", "said"), [("in git", "Needed a single revision"), ("outside", "not a git repository")]
)
def test_neither_a_folder_nor_a_revision_is_refused_at_the_start(project, where, said):
    if where == "in git":
        git(project.path, "init", "-q")
    result = project.judge("--gate-against=nonsense")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: --gate-against nonsense: neither a folder of saved engines nor *({'*'}{said}*"]
    )


def another_name(project):
    """This interpreter under another name."""
    script = project.write("python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return script


def test_beside_the_libraries_of_another_interpreter(project, monkeypatch):
    """Both arms run in processes of their own, by the real clock."""
    monkeypatch.setattr("enginegate.speed.timing.TURN_S", 0.006)
    brief = ("--gate-measure-s=0.04", "--gate-max-time-per-variant=6", "--gate-replicates=3")
    lenient = ("--gate-max-slowdown=3", "--gate-max-slowdown-p99=9")  # each suspect costs processes
    other = another_name(project)
    same = project.judge(
        f"--gate-against-python={other}", "--gate-require-baseline", *brief, *lenient
    )
    same.assert_outcomes(passed=4)
    same.stdout.fnmatch_lines([f"*measured beside libraries of {other}*"])


def test_an_interpreter_that_is_not_there(project):
    result = project.judge("--gate-against-python=nowhere/python")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: --gate-against-python {project.path}/nowhere/python: there is no such program"]
    )


def test_a_worker_that_ends_says_so(project):
    other = another_name(project)
    project.judge("--gate-save-engines=saved")
    other.write_text("#!/bin/sh\nexit 3\n")
    result = project.judge(f"--gate-against-python={other}", "--gate-against=saved")
    assert result.ret == Exit.ERROR
    result.stdout.fnmatch_lines(["worker *: it ended with status 3"])


def test_a_saved_engine_that_is_not_whole(project):
    project.judge("--gate-save-engines=saved")
    engine = project.path / "saved/tiny/faulty-fp32/engine/engine.onnx"
    engine.write_bytes(engine.read_bytes()[:-7])
    result = project.judge("--gate-against=saved")
    assert result.ret == Exit.ERROR
    result.stdout.fnmatch_lines(["saved engine *is not valid (engine.onnx does not match*"])


def test_a_variant_that_was_not_saved_has_no_baseline(project):
    project.judge("--gate-save-engines=saved")
    result = project.run("--precision", "int8", "--gate-against=saved", "--gate-require-baseline")
    assert result.ret == Exit.UNPROVEN
    result.stdout.fnmatch_lines(["*no baseline: saved has no engine of it*"])


def test_refreshing_beside_an_engine_is_refused(project):
    result = project.judge("--gate-against=saved", "--gate-refresh-baselines")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: --gate-refresh-baselines measures beside the reference*"])


def test_two_yardsticks_that_differ_make_the_run_invalid(project):
    project.store()
    project.plant_sentinel("slow")
    result = project.judge("--gate-replicates=8")
    assert result.ret == Exit.INVALID
    result.stdout.fnmatch_lines(["*invalid: two copies of the control differ: *"])
    assert "regressed" not in result.stdout.str()
