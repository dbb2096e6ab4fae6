"""The `enginegate` command, the history, the calibration."""

import json
import subprocess

import numpy as np
import pytest

from enginegate.baselines.calibration import calibrate
from enginegate.baselines.history import change_points
from enginegate.cli import main
from enginegate.speed.rules import Rules
from enginegate.verdicts import Exit


def git(folder, *arguments):
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.com"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def stored(project, monkeypatch):
    """A project with two variants in its baselines; the current folder."""
    project.store("fp32,int8")
    monkeypatch.chdir(project.path)
    return project


def lines(capsys, *arguments):
    assert main(arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_list_and_show(stored, capsys):
    listed = lines(capsys, "baselines", "list")
    assert [line.split()[1:5] for line in listed[1:]] == [
        ["tiny", "faulty-fp32", "1,4", "1"],
        ["tiny", "faulty-int8", "1,4", "1"],
    ]
    shown = lines(capsys, "baselines", "show", "tiny")
    assert len(shown) == 5
    assert shown[1].split()[1:3] == ["faulty-fp32", "1"]


def test_diff_shows_what_a_refresh_did(stored, capsys):
    git(stored.path, "init", "-q")
    git(stored.path, "add", "baselines")
    git(stored.path, "commit", "-qm", "baselines")
    assert len(lines(capsys, "baselines", "diff")) == 1
    stored.plant("slow")
    stored.judge("--gate-refresh-baselines", "--gate-accept-regressions")
    capsys.readouterr()
    changed = lines(capsys, "baselines", "diff", "HEAD")[1:]
    assert [line.split()[2:4] for line in changed] == [["faulty-fp32", "1"], ["faulty-fp32", "4"]]
    assert all(30 < float(line.split()[-1].strip("+%")) < 50 for line in changed)


def test_prune_removes_what_is_named_and_keeps_the_rest(stored, capsys):
    before = stored.baseline().read_text()
    assert (
        "would remove"
        in lines(capsys, "baselines", "prune", "--variant=faulty-int8", "--dry-run")[0]
    )
    assert stored.baseline().read_text() == before
    lines(capsys, "baselines", "prune", "--variant=faulty-int8")
    assert set(json.loads(stored.baseline().read_text())["variants"]) == {"faulty-fp32"}
    lines(capsys, "baselines", "prune", "--model=tiny")
    assert not list(stored.path.glob("baselines/*/*.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["baselines", "show", "nope"], "no baseline of nope"),
        (["baselines", "prune"], "name what to prune: --machine, --model or --variant"),
        (["baselines", "diff", "nope"], "Not a valid object name nope"),
        (["history", "nope"], "no history of nope"),
    ],
)
def test_a_mistake_is_one_message(stored, capsys, arguments, message):
    git(stored.path, "init", "-q")
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_history_is_kept_when_asked_for_and_shows_a_step(project, capsys, monkeypatch):
    monkeypatch.chdir(project.path)
    project.judge()
    assert not (project.path / "baselines/history").exists()
    project.judge("--gate-history")
    (path,) = (project.path / "baselines/history").glob("*/tiny.jsonl")
    note = json.loads(path.read_text().splitlines()[0])
    slower = {**note, "log_ratio": note["log_ratio"] + 0.1}
    path.write_text("".join(json.dumps(n) + "\n" for n in [*[note] * 8, *[slower] * 8]))
    capsys.readouterr()
    told = lines(capsys, "history", "tiny", "--plot", "history.html")
    assert told[0].endswith("batch 1: 16 runs, {0} to {0}".format(note["date"][:10]))
    assert told[1].startswith("  at first p50 ")
    assert told[2].startswith("  +10.5% from ")
    assert told[2].endswith(" texts/s")
    page = (project.path / "history.html").read_text()
    assert page.count("<figure") == 2
    assert "texts/s" in page
    assert "tiny: 1 change of speed" in page
    assert "Dashed: where it changed" in page
    assert main(["history", "tiny", "--plot", "history.svg"]) == 1
    assert "an HTML page: name it history.html" in capsys.readouterr().err
    assert not (project.path / "history.svg").exists()


def test_a_broken_line_of_history_is_named(project, capsys, monkeypatch):
    monkeypatch.chdir(project.path)
    project.judge("--gate-history")
    (path,) = (project.path / "baselines/history").glob("*/tiny.jsonl")
    path.write_text(path.read_text() + "{broken\n")
    assert main(["history", "tiny"]) == 1
    assert "tiny.jsonl is not valid (line 3 is not a note" in capsys.readouterr().err


def test_steady_histories_have_no_change_points_and_steps_have_one():
    rng = np.random.default_rng(0)
    false = sum(bool(change_points((0.01 * rng.normal(size=30)).tolist())) for _ in range(200))
    assert false <= 20
    step = [0.0] * 15 + [0.05] * 15
    found = [
        change_points((np.array(step) + 0.01 * rng.normal(size=30)).tolist()) for _ in range(100)
    ]
    assert sum(len(points) == 1 and abs(points[0] - 15) <= 1 for points in found) >= 85


def test_calibration_is_stored_beside_the_baselines(project):
    result = project.judge("--gate-calibrate", "--gate-measure-seed=1")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["calibration: tiny-faulty-fp32 batch 1: bias *% of 300 played runs are *; detectable: *"]
    )
    (path,) = project.path.glob("baselines/*/calibration.json")
    cells = json.loads(path.read_text())["cells"]
    assert set(cells) == {"tiny-faulty-fp32 batch 1", "tiny-faulty-fp32 batch 4"}
    assert all(cell["false_alarm_rate"] <= 0.01 for cell in cells.values())
    assert project.judge("--gate-refresh-baselines").ret == 0
    path.write_text("junk")
    broken = project.judge("--gate-calibrate")
    assert broken.ret == Exit.ERROR
    broken.stdout.fnmatch_lines(["ERROR: *calibration.json is not valid *; restore or delete it"])
    assert path.read_text() == "junk"


def test_a_calibration_sees_more_where_there_is_less_noise(monkeypatch):
    monkeypatch.setattr("enginegate.baselines.calibration._RUNS", 100)  # the same ones every time
    rng = np.random.default_rng(1)
    rules = Rules(replicates=8, max_time_s=60, alarm=0.01, miss=0.05)
    calm, restless = (
        calibrate((sd * rng.normal(size=40)).tolist(), 0.05, rules, 2.0, seed=1)
        for sd in (0.005, 0.03)
    )
    assert calm.visible
    assert restless.visible
    assert calm.visible < restless.visible
    assert max(calm.false_alarm_rate, restless.false_alarm_rate) <= 0.01
