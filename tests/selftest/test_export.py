"""A saved run for other programs: what they read is what the run found, whatever names hold."""

import csv
import json
import re

import pytest

from enginegate.cli import main
from enginegate.speed.stats import Change
from enginegate.verdicts import Judgement, Verdict

from .reports import ORIGIN, renamed, result, run, speed
from .reports import write_report as write

HOSTILE = '=cmd|\'/c calc\'!A1","x"\n{a="b"} 7 # EOF \\ \x1b[31m'
SAMPLE = re.compile(
    r"(?P<name>[a-z_0-9]+)\{(?:[a-z_]+=\"(?:[^\"\\\n]|\\[\\n\"])*\",?)+\} (?P<value>\S+)"
)


@pytest.fixture
def export(tmp_path):
    """Export results in a form; the text of the file."""

    def run_command(form, results, **other):
        saved = write(tmp_path / "run.json", results, **other)
        path = tmp_path / f"out.{form}"
        assert main(["export", str(saved), f"--{form}", str(path)]) == 0
        return path.read_text()

    return run_command


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


def families(text):
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    return {found.name: found for found in parser.text_string_to_metric_families(text)}


def test_csv_has_a_line_per_batch_size_and_level(export):
    rows = rows_of(export("csv", run(), origin=ORIGIN))
    assert len(rows) == 2 + 2 + 1 + 5 + 6 + 1 + 1
    first = rows[0]
    assert (first["model"], first["precision"], first["batch"]) == ("small", "fp32", "1")
    assert float(first["latency_p50_seconds"]) == 1e-3
    assert first["change_high_ratio"] == "1.02"
    assert first["latency_p99_seconds"] == ""  # too few calls tell none
    assert first["commit"] == ORIGIN["commit"]
    served = next(row for row in rows if row["served"] == "true")
    assert (served["batch"], served["concurrency"]) == ("", "1")
    assert {row["decision"] for row in rows} == {"ship", "hold", "block"}


def test_numbers_that_are_not_known_are_left_out(export):
    endless = Change(1.1, 0.0, float("inf"), 1.0, float("inf"))
    found = [result("fp32", speeds=(speed(1, change=endless),))]
    (row,) = rows_of(export("csv", found))
    assert (row["change_high_ratio"], row["detectable_ratio"]) == ("", "")
    text = export("openmetrics", found)
    assert "nan" not in text.lower().replace("enginegate", "")
    assert "enginegate_change_ratio{" in text
    assert "enginegate_change_high_ratio{" not in text


def test_no_text_becomes_a_formula_or_a_line_of_csv(export):
    rows = rows_of(export("csv", renamed([result("fp32")], HOSTILE)))
    assert len(rows) == 2
    assert rows[0]["model"].startswith("'=cmd|")
    assert "\\x1b[31m" in rows[0]["model"]
    plain = rows_of(export("csv", [result("fp32")]))
    assert plain[0]["model"] == "small"


def test_openmetrics_is_read_by_prometheus(export):
    found = families(export("openmetrics", run()))
    assert found["enginegate_size_bytes"].unit == "bytes"
    (sample,) = (
        sample
        for sample in found["enginegate_latency_p50_seconds"].samples
        if sample.labels.get("batch") == "8" and sample.labels["precision"] == "fp32"
    )
    assert sample.value == 8e-3
    told = [sample.labels["decision"] for sample in found["enginegate_engine"].samples]
    assert told == ["ship", "hold", "block", "ship", "ship", "block", "hold"]


def test_a_hostile_name_stays_one_label(export):
    text = export("openmetrics", renamed([result("fp32")], HOSTILE))
    (sample, *_) = families(text)["enginegate_min_cosine"].samples
    assert sample.labels["model"] == HOSTILE.replace("\x1b", "\\x1b")


@pytest.mark.parametrize("name", ["small", HOSTILE])
def test_openmetrics_by_its_grammar(export, name):
    *lines, end, after = export("openmetrics", renamed(run(), name)).split("\n")
    assert (end, after) == ("# EOF", "")
    current, seen = "", []
    for line in lines:
        if line.startswith("# TYPE "):
            current = line.split()[2]
            assert current not in seen
            seen.append(current)
        elif line.startswith("# UNIT "):
            assert current.endswith(f"_{line.split()[3]}")
        elif not line.startswith("# HELP "):
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            assert sample["name"] in (current, f"{current}_info")
            float(sample["value"])


def test_a_line_that_breaks_the_grammar_would_be_found():
    assert not SAMPLE.fullmatch('enginegate_x{model="a"b"} 1')


NEW = Judgement(Verdict.NO_BASELINE, ("none is stored",))


@pytest.mark.parametrize(
    ("results", "color", "message"),
    [
        ([result("fp32")], "brightgreen", "1 engine: 1 may ship"),
        (
            [result("fp32", speeds=(speed(1, change=None, judgement=NEW),))],
            "brightgreen",
            "1 engine: 1 may ship without a predecessor",
        ),
        ([result("fp32"), result("bf16", flags=("f32 ran",))], "yellow", "2 engines: *"),
        (run(), "red", "5 engines: 1 may ship, 2 on hold and 2 blocked"),
        ([], "lightgrey", "Nothing was judged"),
    ],
)
def test_a_badge_is_what_shields_io_documents(export, results, color, message):
    badge = json.loads(export("badge", results))
    assert set(badge) == {"schemaVersion", "label", "message", "color"}
    assert (badge["schemaVersion"], badge["label"], badge["color"]) == (1, "enginegate", color)
    assert re.fullmatch(message.replace("*", ".*"), badge["message"])


def test_nothing_ships_by_an_interrupted_run(export):
    assert json.loads(export("badge", [result("fp32")], interrupted="SIGTERM"))["color"] == "yellow"
    text = export("csv", [result("fp32")], interrupted="SIGTERM")
    assert {row["decision"] for row in rows_of(text)} == {"hold"}


def test_an_export_without_a_form_is_one_clear_error(tmp_path, capsys):
    assert main(["export", str(write(tmp_path / "run.json"))]) == 1
    assert "give --csv, --openmetrics or --badge" in capsys.readouterr().err


def test_figures_that_somebody_published_are_no_run(tmp_path, capsys):
    path = tmp_path / "figures.json"
    path.write_text('{"figures": 1}')
    assert main(["export", str(path), "--badge", str(tmp_path / "x")]) == 1
    assert "is not a report of a run" in capsys.readouterr().err
