"""Engines beside each other: what fp32 beats is not worth shipping; a twin is drawn once."""

import dataclasses
import json

import pytest

from enginegate.accuracy.bootstrap import Interval
from enginegate.report.decision import decide
from enginegate.report.page import Decision
from enginegate.report.text import summary
from enginegate.session.recorder import Recorder
from enginegate.session.worth import twin_of, weighed
from enginegate.variants import Precision
from enginegate.verdicts import Judgement, Verdict

from .kinds import NEAR, _retrieval
from .reports import accuracy, context, result, speed
from .test_brief import plain

__all__ = ["plain"]

ALL = Interval(1.0, 1.0, 1.0)
SLOW, FAST, SURE = 0.2, -0.6, 0.001  # logs of engine / reference, and how they spread
NEW = Judgement(Verdict.NO_BASELINE, ("none",))


def timed(log, spread=SURE):
    logs = {"p50": (log - spread, log, log + spread)}
    return tuple(speed(b, log_ratios=logs, change=None, judgement=NEW) for b in (1, 8))


def engine(precision, log, recall=NEAR, spread=SURE, **other):
    retrieval = dataclasses.replace(_retrieval(), recall_at_10=recall, ndcg_at_10=None)
    judged = dataclasses.replace(accuracy(), retrieval=retrieval)
    return result(precision, accuracy=judged, speeds=timed(log, spread), **other)


def said(*results, why=None):
    return list(weighed(results, why or {}))[-1]


def test_slower_and_less_accurate_than_the_reference_is_not_worth_shipping():
    found = decide([said(engine("int8", SLOW))])
    assert found.decision is Decision.HOLD
    assert found.reason == "not worth shipping"
    assert "0.82 times as fast as the reference in fp32" in " ".join(found.details)
    assert found.next.startswith("ship fp32; or accept it in")
    assert 'accept.int8 = { dominated = "why" }' in found.next


def test_beside_the_fp32_engine_of_the_run_that_one_counts():
    fp32 = engine("fp32", FAST, ALL)
    assert "0.67 times as fast as fp32" in said(fp32, engine("int8", FAST + 0.4)).dominated


@pytest.mark.parametrize(
    "found",
    [
        engine("int8", FAST),
        engine("int8", SLOW, spread=0.2),
        engine("int8", SLOW, Interval(0.99, 0.98, 1.0)),
        engine("int8", SLOW, context=context(against="main")),
        engine("fp32", SLOW),
        dataclasses.replace(engine("int8", SLOW), accuracy=accuracy()),
        dataclasses.replace(engine("int8", SLOW), speeds=()),
        dataclasses.replace(engine("int8", 0), speeds=(timed(SLOW)[0], timed(FAST)[1])),
    ],
    ids=[
        "faster", "not surely slower", "not surely less accurate", "not beside the reference",
        "fp32 itself", "rankings unknown", "not timed", "slower at one batch size only",
    ],
)  # fmt: skip
def test_what_is_not_certain_is_not_said(found):
    assert said(found).dominated == ""


def test_an_accepted_one_ships_with_its_reason_and_an_idle_reason_is_told():
    why = {"small-openvino-int8": "a third of the memory"}
    shipped = said(engine("int8", SLOW), why=why)
    assert decide([shipped]).decision is Decision.NEW
    assert shipped.accepted[0].endswith("accepted: a third of the memory")
    assert "nothing to accept here" in said(engine("int8", FAST), why=why).notes[-1]


def twin(*others, content=None):
    mine = engine("best", FAST)
    hashes = {x.variant.id: "same" for x in (mine, *others)}
    known = Recorder(results={x.variant.id: x for x in others})
    known.content = hashes if content is None else content
    return twin_of(mine, known)


def test_a_twin_has_the_same_files_ran_alike_and_gave_the_same():
    bf16 = engine("bf16", FAST)
    assert twin(bf16) == "bf16"
    assert twin(bf16, content={}) == ""
    assert twin(dataclasses.replace(bf16, executed={"bf16": 4})) == ""
    assert twin(dataclasses.replace(bf16, accuracy=accuracy(0.5))) == ""
    assert twin(dataclasses.replace(bf16, same_as="fp32")) == "fp32"


def test_a_twin_is_drawn_once_and_keeps_its_decision():
    fp32 = engine("fp32", FAST, ALL)
    best = dataclasses.replace(engine("best", FAST, ALL), same_as="fp32", flags=("f32 ran",))
    lines = [line.text for line in summary([fp32, best], 120)]
    assert sum(line.startswith(("ship", "hold")) for line in lines) == 1
    assert "best is fp32's engine: hold" in lines
    assert any(line.startswith("best: hold: not exactly what was requested ran") for line in lines)


def test_best_is_measured_once_where_nothing_is_compared(plain, monkeypatch):
    chosen = (Precision.FP32, ())
    monkeypatch.setattr("enginegate.session.preparation.choose_best", lambda *_: chosen)
    ended = plain.run("--precision=fp32,best", "--gate-report-json=report.json")
    fp32, best = json.loads((plain.path / "report.json").read_text())["results"]
    assert (fp32["same_as"], best["same_as"]) == ("", "fp32")
    assert [s["p50_s"] for s in best["speeds"]] == [s["p50_s"] for s in fp32["speeds"]]
    assert best["decision"] == fp32["decision"]
    assert f"best is fp32's engine: {best['decision']}" in ended.stdout.str()


def test_a_slow_int8_engine_is_held_in_every_report(plain):
    plain.plant("slow")
    reports = ("--gate-report-json=report.json", "--gate-report-markdown=report.md")
    plain.run("--precision=int8", *reports)
    (found,) = json.loads((plain.path / "report.json").read_text())["results"]
    assert "times as fast as the reference in fp32" in found["dominated"]
    assert "not worth shipping" in (plain.path / "report.md").read_text()
