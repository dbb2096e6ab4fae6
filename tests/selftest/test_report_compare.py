"""Several saved runs beside each other, and the reference report of another deployment."""

import json
from pathlib import Path

import pytest

from enginegate.cli import main

from .reports import LOGS, ORIGIN, context, report, result, speed, write_report

EXAMPLE = Path(__file__).parents[2] / "docs/examples/reference/figures.json"


def said(capsys, *files):
    assert main(["report", *map(str, files)]) == 0
    return capsys.readouterr().out


def slower(by):
    return result("fp32", speeds=(speed(1, log_ratios={"p50": [log + by for log in LOGS]}),))


def test_a_slower_engine_is_seen_with_its_interval(tmp_path, capsys):
    old = write_report(tmp_path / "old.json", [slower(0.0)])
    new = write_report(tmp_path / "new.json", [slower(0.2)])
    shown = said(capsys, old, new)
    assert "new against old" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("small fp32, batch 1  ")]
    assert "22.1 % slower (+" in line


def test_equal_runs_hold_no_change_in_their_interval(tmp_path, capsys):
    old, new = (write_report(tmp_path / f"{name}.json", [slower(0.0)]) for name in ("old", "new"))
    (line,) = [x for x in said(capsys, old, new).splitlines() if x.startswith("small fp32, batch")]
    assert "0.0 % slower (-" in line


def test_other_texts_are_not_compared_and_the_reason_is_given(tmp_path, capsys):
    old = write_report(tmp_path / "old.json", [slower(0.0)])
    other = result("fp32", context=context(against="main"))
    shown = said(capsys, old, write_report(tmp_path / "new.json", [other]))
    assert "against was -, is main" in shown
    assert "new against old" not in shown


def test_another_machine_is_not_compared(tmp_path, capsys):
    whole = report([slower(0.0)])
    whole["machine"] |= {"cores": 64}
    old = tmp_path / "old.json"
    old.write_text(json.dumps(whole))
    shown = said(capsys, old, write_report(tmp_path / "new.json", [slower(0.2)]))
    assert "machine was test-cpu-1-2-3-64c-" in shown


def of_commit(commit):
    return {"origin": {**ORIGIN, "commit": commit}}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({}, {}, ("old/run.json", "new/run.json")),
        (of_commit("a" * 40), of_commit("b" * 40), ("run (aaaaaaaaaa)", "run (bbbbbbbbbb)")),
        (of_commit("a" * 40), of_commit("a" * 40), ("old/run.json", "new/run.json")),
        (of_commit("a" * 40), {}, ("run (aaaaaaaaaa)", "run")),
    ],
    ids=["folders", "commits", "one commit", "one known"],
)
def test_two_files_of_one_name_are_told_apart(tmp_path, capsys, old, new, told):
    files = []
    for name, origin, by in (("old", old, 0.0), ("new", new, 0.2)):
        (tmp_path / name).mkdir()
        files.append(write_report(tmp_path / name / "run.json", [slower(by)], **origin))
    shown = said(capsys, *files)
    assert f"{told[1]} against {told[0]}" in shown


def test_files_of_one_name_in_folders_of_one_name_are_told_by_their_paths(tmp_path, capsys):
    files = []
    for place in ("a/run", "b/run"):
        (tmp_path / place).mkdir(parents=True)
        files.append(write_report(tmp_path / place / "run.json", [slower(0.0)]))
    assert f"{files[1]} against {files[0]}" in said(capsys, *files)


def test_the_reference_report_in_words(capsys):
    shown = said(capsys, EXAMPLE)
    for statement in (
        "int8: block: fp16 is nearer to the reference and faster at every concurrency",
        "BEST is FP16: the same delta of 0.00062",
        "INT8 is slower than FP16 everywhere: 10.8 % to 74.5 % of its throughput at 32",
        "int8: cliff at concurrency 3-15",
        "suspected cause: queue delay",
        "a queue delay of about 10 ms (one execution included) and a preferred batch of 16",
        "onnx: saturated from concurrency 2 on",
        "2,720,759,808",
        "2,720,464,896",
        "294,912",
    ):
        assert statement in shown


def test_the_reference_report_beside_a_run(tmp_path, capsys):
    saved = write_report(tmp_path / "mine.json")
    shown = said(capsys, EXAMPLE, saved)
    assert "All engines side by side" in shown
    assert "11,218" in shown
    assert main(["report", str(saved), str(EXAMPLE), "--html", str(tmp_path / "x.html")]) == 0
    page = (tmp_path / "x.html").read_text()
    assert "All engines side by side" in page
    assert "int8 at concurrency 3 to 15" in page


def test_the_reference_report_as_a_comment(tmp_path):
    assert main(["report", str(EXAMPLE), "--markdown", str(tmp_path / "x.md")]) == 0
    comment = (tmp_path / "x.md").read_text()
    assert "- INT8 is slower than FP16 everywhere" in comment
    assert "No engine is called slower" not in comment


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({"figures": 2}, "has version 2 of figures"),
        ({"sweep": "none.csv"}, "cannot read the sweep"),
        ({"embedding_delta": {"int8": -1}}, "is damaged at embedding_delta/int8"),
        ({"surprise": 1}, "is damaged at the report"),
        ({"embedding_delta": {"int4": 0.5}}, "int4 has a delta and no sweep"),
    ],
)
def test_spoiled_figures_are_one_clear_error(tmp_path, capsys, spoiled, message):
    path = tmp_path / "figures.json"
    (tmp_path / "sweep.csv").write_text((EXAMPLE.parent / "sweep.csv").read_text())
    path.write_text(json.dumps(json.loads(EXAMPLE.read_text()) | spoiled))
    assert main(["report", str(path)]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
