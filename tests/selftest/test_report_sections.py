"""The parts of a page that a run may lack: shown where it has them, left out where not."""

import copy
import dataclasses
import math

import pytest

from enginegate.report.compose import compose
from enginegate.report.render.html import draw_both
from enginegate.report.saved_run import decode_run
from enginegate.report.sections.vega import apart, decades
from enginegate.speed.stats import Change
from enginegate.verdicts import Verdict

from .reports import ORIGIN, accuracy, change, report, result, speed

ROUNDED = {"value": 0.98, "low": 0.97, "high": 0.99}
RETRIEVAL = {
    **dict.fromkeys(("recall_at_1", "recall_at_10", "spearman", "kendall"), ROUNDED),
    "false_ties": 2,
    "ndcg_at_10": {"reference": 0.51, "candidate": 0.5, "change": ROUNDED},
}
WORST = {
    "index": 3,
    "text": "a text that suffers",
    "tokens": 7,
    "cosine": 0.91,
    "neighbours_before": ["near before"],
    "neighbours_after": [],
}
QUALITY = {
    "cosines": [0.9, 0.99, 0.999, 1.0],
    "retrieval": RETRIEVAL,
    "worst_texts": [WORST],
    "invariance": {"max_abs": 1e-3, "relative": 5e-4, "limit": 0.002, "worst": {}},
    "sts": {"reference": 0.8, "candidate": 0.79, "retained": 0.9875, "low": 0.97, "high": 1.0},
    "determinism": {"bitwise": False, "max_abs": 1e-6, "rebuilds": []},
}
BLAME = [
    {"layer": "encoder/layer.0/attention", "kind": "MatMul", "position": 3}
    | {"local_error": 1e-3, "repaired_share": 0.6},
    {"layer": "head", "kind": "Gemm", "position": 9, "local_error": 1e-4, "repaired_share": -0.1},
]
REPAIR = {"kept": ["head"], "recovered_share": 0.5, "speedup_before": 3.0, "speedup_after": 2.5}
POINT = {"intensity": 20.0, "floor_s": 1e-3, "measured_s": 2e-3, "flops_per_s": 5e10}
ENGINE = {
    "precision": "fp32",
    "ridge_flops_per_byte": 6.0,
    "peak_per_s": 1e11,
    "bytes_per_s": 3e10,
    "points": [
        {"batch": 1, **POINT, "efficiency": 0.5},
        {"batch": 8, **POINT, "measured_s": None, "flops_per_s": None, "efficiency": None},
    ],
    "parts": [{"name": "head", "memory_bound": "up to", "up_to_batch": 78, "intensities": []}],
}
ROOFLINE = {
    "device": {"name": "Test CPU", "source": "measured"},
    "traffic": "fused",
    "engines": [ENGINE],
}
FLOPS = {"total": 3, "backbone": 2, "head": 1}
COSTS = {
    "small": {"seq_len": 8, "parameters": 100, "flops": {"true": FLOPS, "thop": FLOPS}},
    "other": {"not_counted": "an operator without a rule"},
}


@pytest.fixture
def rich():
    """A run with every field that some runs lack; its first engine has them all."""
    whole = report()
    run = decode_run(copy.deepcopy(whole), "run", "here")
    first = whole["results"][0]
    first["accuracy"] |= QUALITY
    first |= {"blame": BLAME, "repair": REPAIR, "time_share": {"bf16": 0.9, "f32": 0.1}}
    whole |= {"costs": COSTS, "rooflines": {"small": ROOFLINE}}
    return dataclasses.replace(run, whole=whole)


def section(run, anchor):
    (found,) = (section for section in compose(run, None).sections if section.anchor == anchor)
    return found


def cells(found):
    tables = (*found.tables, *(chart.table for chart in found.charts))
    return [cell for table in tables for row in table.rows for cell in row]


def test_embeddings_show_distribution_rankings_and_worst_texts(rich):
    shown = cells(section(rich, "embeddings"))
    for expected in (
        "1.0e-01",  # the worst loss
        "0.980 (0.970 to 0.990)",
        "a text that suffers",
        "near before",
        "differs by 1e-06",
        "NDCG@10",
        "0.988 (0.970 to 1.000)",  # of the labelled pairs' correlation
    ):
        assert expected in shown


def test_layers_show_what_repairing_gives_back(rich):
    shown = cells(section(rich, "layers"))
    assert "60.0 %" in shown
    assert "3.00 x to 2.50 x" in shown


def test_hardware_shows_costs_ceilings_and_limits(rich):
    shown = cells(section(rich, "hardware"))
    for expected in (
        "all arithmetic",
        "an operator without a rule",
        "50 GFLOP/s",
        "up to batch 78",
    ):
        assert expected in shown


def test_the_proof_shows_the_share_of_time(rich):
    assert "bf16 90.0 %, f32 10.0 %" in cells(section(rich, "proof"))


def test_every_picture_of_it_can_be_drawn(rich):
    for number, chart in enumerate(c for s in compose(rich, None).sections for c in s.charts):
        for svg in draw_both(chart, number).values():
            assert svg.startswith("<svg")
            assert "NaN" not in svg
            assert f'id="c{number}' in svg or "id=" not in svg  # ids differ between pictures


def test_a_run_without_them_has_no_such_parts():
    bare = decode_run(report([result("fp32", accuracy=None, speeds=())]), "run", "here")
    anchors = [section.anchor for section in compose(bare, None).sections]
    assert anchors == ["proof"]


def test_an_interval_without_an_end_is_drawn_to_the_edge():
    endless = speed(1, change=Change(1.1, 0.0, float("inf"), 1.0, float("inf")))
    run = decode_run(report([result("fp32", speeds=(endless, speed(8)))]), "run", "here")
    (chart,) = section(run, "change").charts
    first, second = chart.spec["data"]["values"]
    assert first["low"] < second["low"] < second["high"] < first["high"] <= 100
    assert chart.table.rows[0][1].endswith("(-100.0 … ? %)") or "?" in chart.table.rows[0][1]


def test_history_is_drawn_where_there_is_one(tmp_path):
    run = decode_run(report(), "run", "here")
    folder = tmp_path / "history" / run.machine.id
    folder.mkdir(parents=True)
    note = (
        '{{"date": "2026-01-0{0}T00:00:00+00:00", "commit": "c{0}", "variant": "openvino-fp32", '
        '"batch": 8, "p50_s": 0.01, "log_ratio": -0.{0}, "reference": "r"}}\n'
    )
    (folder / "small.jsonl").write_text("".join(note.format(day) for day in (1, 2, 3)))
    charts = [c for s in compose(run, tmp_path).sections for c in s.charts]
    (drawn,) = [chart for chart in charts if "over the runs" in chart.title]
    assert [row[1] for row in drawn.table.rows] == ["c1", "c2", "c3"]
    (folder / "small.jsonl").write_text("{broken\n")
    charts = [c for s in compose(run, tmp_path).sections for c in s.charts]
    assert not [chart for chart in charts if "over the runs" in chart.title]


def test_a_change_in_the_forest_is_what_the_run_said(tmp_path):
    run = decode_run(report([result("fp32", speeds=(speed(1, change=change(1.25)),))]), "r", "h")
    (chart,) = section(run, "change").charts
    assert chart.spec["data"]["values"][0]["change"] == pytest.approx(25)


def test_losses_below_the_least_one_are_marked_on_the_axis_and_said(rich):
    (chart,) = section(rich, "embeddings").charts
    assert "≤" in chart.reading  # one of its texts has a cosine of 1
    assert "≤" in chart.spec["encoding"]["x"]["axis"]["labelExpr"]
    near = decode_run(report([result("fp32"), result("int8", accuracy=accuracy(0.9))]), "r", "h")
    (chart,) = section(near, "speed").charts
    assert "≤" not in chart.reading
    assert "labelExpr" not in chart.spec["encoding"]["x"]["axis"]


def test_the_best_engine_under_each_limit_is_named():
    def engine(precision, cosine, ratio, size_bytes):
        logs = {"p50": [-math.log(ratio)] * 4}
        found = result(precision, accuracy=accuracy(cosine), speeds=(speed(8, log_ratios=logs),))
        return dataclasses.replace(found, size_bytes=size_bytes)

    wrong = accuracy(0.5, Verdict.FAIL, ("cosine_worst 0.5 < 0.9",))
    blocked = dataclasses.replace(engine("best", 0.5, 9.0, 10), accuracy=wrong)
    found = [engine("fp32", 1.0, 1.1, 1000), engine("bf16", 0.9995, 2.1, 1000)]
    found += [engine("int8", 0.993, 3.2, 500), blocked]
    (table,) = section(decode_run(report(found), "r", "h"), "speed").tables
    assert [row[1] for row in table.rows] == [
        *("fp32", "bf16", "int8"),  # by min cosine
        *("fp32", "bf16", "none"),  # by speed
        *("int8", "int8"),  # by size
    ]


def test_findings_of_load_are_said_once():
    page = compose(decode_run(report(), "run", "here"), None)
    every = [*page.said, *(line for part in page.sections for line in part.findings)]
    assert sum("cliff at concurrency" in line for line in every) == 1
    assert len(set(every)) == len(every)


def test_the_page_says_when_of_which_commit_and_by_which_versions():
    page = compose(decode_run(report(origin=ORIGIN), "run", "here"), None)
    told = dict(page.origin)
    assert told["date"] == "2026-01-02 03:04:05 UTC"
    assert (told["commit"], told["measured beside"]) == ("c0ffee0000", "ba5e000000")
    assert told["branch"] == "faster-int8"
    assert told["versions"].startswith("pytest-enginegate 0.1.0, openvino 2026.4.1, python ")
    changed = report(origin={**ORIGIN, "changed": True})
    assert "changes" in dict(compose(decode_run(changed, "run", "here"), None).origin)["commit"]


def test_labels_that_would_touch_are_left_out():
    axes = (decades([1.0, 1000.0]), decades([1.0, 1000.0]))
    places = [(10.0, 10.0), (10.2, 10.2), (500.0, 500.0)]
    assert apart(["1", "8", "32"], places, axes, 300) == ["1", "", "32"]
    assert apart(["1", "32"], [places[0], places[2]], axes, 300) == ["1", "32"]
