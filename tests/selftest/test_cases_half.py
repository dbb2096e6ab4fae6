"""Cases from the public record about half precision and what ran."""

import pytest

from enginegate.engines.openvino import OpenVino
from enginegate.variants import Precision

pytestmark = pytest.mark.xdist_group("cases")
_STAND_INS = dict.fromkeys((Precision.FP16, Precision.BF16), "onnxruntime")


@pytest.fixture(scope="module", autouse=True)
def made(make_case):
    """Both cases, before the first run unloads what torch's export loaded."""
    for name in ("half_overflows", "boolean_mask"):
        make_case(name)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_residual_stream_beyond_fp16_fails_with_its_layer(judge_case, backend):
    """On a processor with fp16 as on one without it: torch's half gives NaN."""
    outcome, report = judge_case("half_overflows", "fp16", f"--gate-backend={backend}")
    assert outcome.ret == 10
    (found,) = report["results"]
    assert found["embedding_verdict"] == "fail"
    (beyond,) = found["ranges"]["beyond"]
    assert (beyond["kind"], beyond["value"], beyond["largest"]) == ("Add", "add_12", 70000)
    overflow = f"overflow in {beyond['layer']} (Add add_12): 70,000 > 65,504"
    outcome.stdout.fnmatch_lines([f"*{overflow}*".replace("[", "[[]")])


def test_rounded_to_fp16_it_gives_nan_as_hardware_does(judge_case):
    _, report = judge_case("half_overflows", "fp16", "--gate-backend=onnxruntime")
    reasons = report["results"][0]["accuracy"]["judgement"]["reasons"]
    assert any("NaN" in reason for reason in reasons)


def test_best_of_the_same_model_is_not_fp16(judge_case):
    outcome, report = judge_case("half_overflows", "best", "--gate-backend=onnxruntime")
    (found,) = report["results"]
    assert found["chosen"] != "fp16"
    assert found["embedding_verdict"] != "fail"
    outcome.stdout.fnmatch_lines(["*fp16 refused: fp16 cannot hold the model's numbers: overflow*"])


def test_a_repair_keeps_what_fp16_cannot_hold(judge_case):
    """The layers that overflow, and those that take what they give; nothing is beyond then."""
    given = ("--gate-backend=onnxruntime", "--gate-repair")
    outcome, report = judge_case("half_overflows", "fp16", *given)
    (found,) = report["results"]
    assert found["repair"]["configuration"].endswith("]")
    assert found["repair"]["kept"]
    assert found["ranges"]["beyond"] == found["ranges"]["keep"] == []
    assert (outcome.ret, found["embedding_verdict"]) == (0, "flagged")
    assert "nothing to do" not in outcome.stdout.str()


def test_fp32_of_the_same_model_passes(judge_case):
    outcome, report = judge_case("half_overflows", "fp32")
    assert outcome.ret == 0
    assert report["results"][0]["ranges"] is None


@pytest.mark.parametrize("more", [(), ("--strict",)])
def test_a_boolean_mask_is_no_multiplication_in_whole_numbers(judge_case, more):
    outcome, report = judge_case("boolean_mask", "fp32", *more)
    assert outcome.ret == 0
    (found,) = report["results"]
    assert (found["ran"], found["embedding_verdict"], found["flags"]) == ("f32", "pass", [])
    assert set(found["time_share"]) <= {"f32", "i32", "i64"}


def test_a_stand_in_says_what_it_is(judge_case, monkeypatch):
    """As on a processor without fp16 and bf16, whichever this one is."""
    monkeypatch.setattr(OpenVino, "stand_in", lambda self, precision: _STAND_INS.get(precision))
    _, report = judge_case("boolean_mask", "fp16,bf16")
    assert [r["variant"]["precision"] for r in report["results"]] == ["fp16", "bf16"]
    for result in report["results"]:
        asked = result["variant"]["precision"]
        assert result["ran"] == "f32"
        (flag,) = result["flags"]
        assert f"values rounded to {asked} wherever an engine has it, computed in f32" in flag
        assert f"the speed is not that of {asked} hardware" in flag
        assert result["embedding_verdict"] == "flagged"
