"""`enginegate sweep` on the reference report's own figures, and on files that are none."""

from dataclasses import replace
from pathlib import Path

import pytest

from enginegate.cli import main
from enginegate.report.wording.sweeps import cliff_lines, read_sweep_csv
from enginegate.serving.analysis.cliffs import littles_error
from enginegate.serving.records import Cause, Cliff

DATA = Path(__file__).parent / "data"
REFERENCE = DATA / "reference_sweep.csv"
UNSURE = "too few levels to tell if it is saturated"


def test_the_reference_sweep_in_words(capsys):
    assert main(["sweep", str(REFERENCE)]) == 0
    said = capsys.readouterr().out
    assert "int8: cliff at concurrency 3-15" in said
    assert "int8: suspected cause: queue delay" in said
    assert "onnx: saturated from concurrency 2 on" in said
    for engine in ("fp16", "fp32", "best"):
        assert f"{engine}: cliff" not in said
    assert "int8's largest throughput (8100 infer/sec) is below fp16's (11034)" in said
    assert "fp16 equals best within a few per cent" in said


@pytest.mark.parametrize(
    ("name", "words", "never"),
    [
        (
            "falls-at-60",
            ["cliff at concurrency 60-80: 640", "cause: unknown", "before the"],
            "tell",
        ),
        ("three-levels", [UNSURE, "trt 4005"], "not saturated"),
        ("perf-analyzer", ["perf-analyzer: saturated from concurrency 2 on: about 84"], "cliff"),
        ("perf-analyzer-verbose", [UNSURE, "perf-analyzer-verbose 132"], "not saturated"),
    ],
)
def test_sweeps_from_the_public_record(name, words, never, capsys):
    assert main(["sweep", str(DATA / f"{name}.csv")]) == 0
    said = capsys.readouterr().out
    assert [word for word in words if word not in said] == []
    assert never not in said


def test_latencies_as_perf_analyzer_tells_them():
    (levels,) = read_sweep_csv(DATA / "perf-analyzer-verbose.csv").values()
    assert levels[0].latency.mean_s == pytest.approx(8402e-6)  # its own "Avg latency"
    assert levels[0].latency.p99_s == pytest.approx(9800e-6)
    assert max(abs(littles_error(level)) for level in levels) < 0.02


@pytest.mark.parametrize("name", ["three-levels", "perf-analyzer"])
def test_a_file_from_a_spreadsheet(name, tmp_path):
    """A byte order mark, semicolons and carriage returns."""
    text = (DATA / f"{name}.csv").read_text()
    (tmp_path / f"{name}.csv").write_bytes(
        text.replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig")
    )
    whole, found = (repr(read_sweep_csv(folder / f"{name}.csv")) for folder in (DATA, tmp_path))
    assert found == whole


def test_a_cliff_says_what_is_expected_only_where_that_is_more():
    """A level may be slow by its latency alone, and its throughput above that of those below."""
    cliff = Cliff(4, 8, 17.0, 8.0, Cause.UNKNOWN, proven=False, evidence="", advice="")
    assert next(cliff_lines(cliff)) == "cliff at concurrency 4-8: 17 infer/sec at its lowest"
    assert next(cliff_lines(replace(cliff, expected_per_s=30.0))).endswith("expect 30")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the sweep"),
        ("a,b\n1,2\n", "line 1: the columns are"),
        ("engine,concurrency,infer_per_sec,avg_latency_usec\nx,1,-5,7\n", "line 2: all three"),
    ],
)
def test_a_file_that_is_no_sweep_is_one_clear_error(tmp_path, capsys, content, message):
    path = tmp_path / "sweep.csv"
    if content is not None:
        path.write_text(content)
    assert main(["sweep", str(path)]) == 1
    assert message in capsys.readouterr().err
