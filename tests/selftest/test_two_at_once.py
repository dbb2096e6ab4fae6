"""Two refreshes at once, and one that is killed: no baseline is lost."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest


def command(*arguments):
    """A run of its own, by the real clock."""
    brief = ("--gate-measure-s=0.04", "--gate-max-time-per-variant=6", "--gate-replicates=3")
    return [sys.executable, "-m", "pytest", "-q", "--gate-refresh-baselines", *brief, *arguments]


def test_two_refreshes_at_once_both_end_up_in_the_file(project):
    project.judge("-k", "embeddings")  # builds the engine that both use
    runs = [
        subprocess.Popen(command(f"--precision={precision}", "--gate-batches=1"), cwd=project.path)
        for precision in ("fp32", "int8")
    ]
    assert [run.wait() for run in runs] == [0, 0]
    variants = json.loads(project.baseline().read_text())["variants"]
    assert set(variants) == {"faulty-fp32", "faulty-int8"}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_refresh_killed_while_it_writes_leaves_the_old_file(project):
    project.store()
    before = project.baseline().read_text()
    plain = (project.path / "conftest.py").read_text()
    project.write(
        "conftest.py",
        plain
        + "\nimport os, pathlib, time\n"
        + "def wait(descriptor):\n    pathlib.Path('writing').touch()\n    time.sleep(600)\n"
        + "os.fsync = wait\n",
    )
    run = subprocess.Popen(command("--precision=fp32"), cwd=project.path)
    while not (project.path / "writing").exists() and run.poll() is None:
        time.sleep(0.1)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert (project.path / "writing").exists()
    assert project.baseline().read_text() == before
    project.write("conftest.py", plain)  # else this process would wait as well
    assert project.judge("--gate-require-baseline").ret == 0


def test_who_waits_too_long_for_the_other_says_so(project, monkeypatch):
    from enginegate.files import locked

    project.store()
    before = project.baseline().read_text()
    monkeypatch.setattr("enginegate.files.scratch._LOCK_WAIT_S", 0.2)
    with locked(project.baseline()):
        result = subprocess.run(
            [*command("--precision=fp32"), "-p", "impatient"],
            cwd=project.path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(impatient(project)), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
        )
    assert "another run has been writing" in result.stdout
    assert project.baseline().read_text() == before


def impatient(project):
    """A folder with a plugin that waits a moment only."""
    project.write(
        "impatient.py",
        "import enginegate.files.scratch\nenginegate.files.scratch._LOCK_WAIT_S = 0.2\n",
    )
    return project.path
