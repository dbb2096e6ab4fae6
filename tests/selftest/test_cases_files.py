"""Ready files as people have them, each from a public report: judged or refused, rightly."""

import pytest

pytestmark = pytest.mark.xdist_group("cases")


def reference_of(report):
    (result,) = report["results"]
    return result["context"]["reference"]


def deltas_of(report):
    (result,) = report["results"]
    return result["accuracy"]["deltas"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_int8_file_is_named_and_nothing_finer_is_made_of_it(judge_case, precision):
    result, _ = judge_case("int8_file", precision)
    result.assert_outcomes(errors=2, skipped=1)
    result.stdout.fnmatch_lines(
        [
            f"*{precision} cannot be made of mine: the reference is an int8 file, 12 of its 16 "
            "multiplications in int8*judge --precision int8*"
        ]
    )
    assert "converter" not in result.stdout.str()


def test_an_int8_file_is_judged_as_it_is(judge_case):
    _, report = judge_case("int8_file", "int8", "--gate-backend=onnxruntime")
    assert reference_of(report).endswith("int8 file, 12 of its 16 multiplications in int8")
    assert deltas_of(report)["max_abs"] == 0.0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_fp16_file_is_named_and_its_rounding_is_no_engines(judge_case, precision):
    result, report = judge_case("fp16_file", precision)
    assert result.ret == 0
    assert reference_of(report).endswith(" fp32 on an fp16 file")
    assert deltas_of(report)["max_abs"] < (5e-6 if precision == "fp32" else 2e-3)


@pytest.mark.parametrize(
    "case", ["token_output", "position_ids", "int32_inputs", "weights_among_inputs", "links"]
)
def test_a_file_that_runtimes_take_is_taken(judge_case, case):
    result, report = judge_case(case)
    result.assert_outcomes(passed=2, skipped=1)  # no truth is named
    assert reference_of(report).endswith(" fp32")
    assert deltas_of(report)["cosine_worst"] > 0.99999


def test_positions_are_not_zeros(judge_case, make_case):
    pyproject = make_case("position_ids") / "pyproject.toml"
    told = pyproject.read_text()
    roles = 'input_ids = "ids"\nattention_mask = "mask"\nposition_ids = "zeros"\n'
    pyproject.write_text(f"{told}[tool.enginegate.models.mine.inputs]\n{roles}")
    try:
        result, _ = judge_case("position_ids")
    finally:
        pyproject.write_text(told)
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(["*'position_ids' takes the positions*zeros would put them all*"])
