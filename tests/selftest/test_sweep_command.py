"""`enginegate sweep` on the reference report's own figures, and on files that are none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from enginegate.cli import main
from enginegate.report.sweep_files import read_sweep_csv, read_sweeps
from enginegate.report.wording.sweeps import cliff_lines
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


def aiperf(concurrency, per_s, mean_ms):
    """What AIPerf 0.13 writes (schema 1.5), its configuration by phases."""
    phases = [
        {"name": "warmup", "kind": "warmup", "type": "concurrency", "concurrency": 1},
        {"name": "profiling", "kind": "profiling", "type": "concurrency"}
        | {"concurrency": concurrency, "requests": 500},
    ]
    return {
        "schema_version": "1.5",
        "was_cancelled": False,
        "input_config": {"models": {"items": [{"name": "encoder"}]}, "phases": phases},
        **metrics(per_s, mean_ms),
    }


def metrics(per_s, mean_ms, unit="ms"):
    tail = {"p50": 0.9 * mean_ms, "p90": 1.1 * mean_ms, "p99": 1.5 * mean_ms}
    return {
        "request_latency": {"unit": unit, "avg": mean_ms, **tail, "max": 2 * mean_ms},
        "request_throughput": {"unit": "requests/sec", "avg": per_s},
    }


def older_aiperf(concurrency, per_s, mean_ms):
    """The configuration before there were phases."""
    asked = {"endpoint": {"model_names": ["encoder"]}, "loadgen": {"concurrency": concurrency}}
    return {"input_config": asked, **metrics(per_s, mean_ms)}


def genai_perf(concurrency, per_s, mean_ms):
    """What genai-perf 0.0.16 writes."""
    asked = {"model_names": ["encoder"], "endpoint": {"type": "embeddings"}}
    asked |= {"perf_analyzer": {"stimulus": {"concurrency": concurrency}}}
    return {"input_config": asked, **metrics(per_s, mean_ms)}


def older_genai_perf(concurrency, per_s, mean_ms):
    """Its configuration as it was: one flat table."""
    asked = {"model": ["encoder"], "endpoint": None, "concurrency": concurrency}
    return {"input_config": {**asked, "request_rate": None}, **metrics(per_s, mean_ms)}


TOOLS = [aiperf, older_aiperf, genai_perf, older_genai_perf]
REACHED = {1: 100.0, 2: 150.0, 4: 200.0, 8: 201.0, 16: 200.0}  # saturated from 4 on


def write_levels(folder, tool, reached, **changed):
    """A file per level in a folder of its own, all of one name, as the tools do."""
    paths = []
    for concurrency, per_s in reached.items():
        path = folder / f"c{concurrency}" / "profile_export.json"
        path.parent.mkdir()
        found = {**tool(concurrency, per_s, 1e3 * concurrency / per_s), **changed}
        path.write_text(json.dumps(found))
        paths.append(path)
    return paths


@pytest.mark.parametrize("tool", TOOLS)
def test_sweeps_of_aiperf_and_genai_perf(tool, tmp_path, capsys):
    paths = write_levels(tmp_path, tool, REACHED)
    assert main(["sweep", *map(str, reversed(paths))]) == 0
    said = capsys.readouterr().out
    assert "encoder: saturated from concurrency 4 on: about 200 infer/sec" in said
    (levels,) = read_sweeps(paths).values()
    assert [level.concurrency for level in levels] == [1, 2, 4, 8, 16]
    assert levels[0].latency.mean_s == pytest.approx(0.01)
    assert levels[0].latency.p99_s == pytest.approx(0.015)


@pytest.mark.parametrize("tool", TOOLS)
def test_few_levels_of_them_tell_nothing_of_saturation(tool, tmp_path, capsys):
    paths = write_levels(tmp_path, tool, {1: 100.0, 8: 400.0})
    assert main(["sweep", *map(str, paths)]) == 0
    assert UNSURE in capsys.readouterr().out


def test_times_are_read_in_their_own_unit(tmp_path):
    (path,) = write_levels(tmp_path, aiperf, {1: 100.0}, **metrics(100.0, 10_000.0, "us"))
    (level,) = read_sweeps([path])["encoder"]
    assert level.latency.mean_s == pytest.approx(0.01)


def test_failed_requests_are_said(tmp_path, capsys):
    failed = {"error_request_count": {"unit": "requests", "avg": 7.0}}
    (path,) = write_levels(tmp_path, aiperf, {1: 100.0}, **failed)
    assert main(["sweep", str(path)]) == 0
    said = capsys.readouterr().out
    assert "encoder: concurrency 1: 7 requests failed and are not counted" in said


BY_RATE = {"phases": [{"name": "profiling", "type": "poisson", "rate": 5.0, "concurrency": 9}]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"was_cancelled": True}, "the run was cancelled"),
        ({"input_config": BY_RATE}, "it is not of one run at one concurrency"),
        ({"input_config": {}}, "it is not of one run at one concurrency"),
        ({"request_throughput": {"unit": "tokens/sec", "avg": 5.0}}, "is in 'tokens/sec'"),
        ({"request_latency": {"unit": "minutes", "avg": 5.0}}, "'minutes' is missing"),
        ({"request_throughput": {"unit": "requests/sec", "avg": 0.0}}, "must be above 0"),
        ({"request_throughput": None}, "is not valid"),
    ],
)
def test_a_json_file_that_tells_no_level_is_one_clear_error(tmp_path, capsys, changed, message):
    (path,) = write_levels(tmp_path, aiperf, {1: 100.0}, **changed)
    assert main(["sweep", str(path)]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert str(path) in said


def test_a_level_that_two_files_tell_is_one_clear_error(tmp_path, capsys):
    (path,) = write_levels(tmp_path, aiperf, {1: 100.0})
    assert main(["sweep", str(path), str(path)]) == 1
    assert "concurrency 1 of encoder is there twice" in capsys.readouterr().err
