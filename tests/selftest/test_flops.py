"""FLOPs from ONNX graphs, beside torch's own counter, a hand derivation and the reference."""

import importlib.util
import json
import sys
from fractions import Fraction
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from enginegate.diagnostics.roofline.flops import (
    BACKBONE,
    HEAD,
    cost_of,
    matmul_flops,
    thop_flops,
    true_flops,
)
from enginegate.diagnostics.roofline.polynomial import Polynomial, fit
from enginegate.diagnostics.roofline.roofline import cost_as_json
from enginegate.errors import ModelError
from enginegate.report.wording.roofline import cost_line

TEN = [  # hidden, layers, heads, between, dim, batch, seq
    (16, 1, 1, 32, 4, 1, 2),
    (32, 2, 2, 128, 16, 3, 8),
    (48, 1, 3, 96, 7, 5, 33),
    (64, 3, 4, 256, 32, 2, 17),
    (64, 2, 8, 64, 1, 7, 64),
    (24, 4, 2, 48, 96, 8, 5),
    (96, 1, 12, 384, 96, 1, 128),
    (128, 2, 4, 512, 64, 4, 16),
    (40, 2, 5, 30, 10, 32, 12),
    (80, 1, 2, 200, 20, 9, 100),
]
REFERENCE = {"total": 2_720_759_808, BACKBONE: 2_720_464_896, HEAD: 294_912}


@pytest.fixture(scope="module")
def encoders(torch_loaded):
    path = Path(__file__).with_name("encoder.py")
    spec = importlib.util.spec_from_file_location("enginegate_selftest_encoder", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def by_hand(hidden, layers, heads, between, dim, batch, seq):
    """(multiply-adds times 2, all other arithmetic) of the encoder in encoder.py."""
    tokens = batch * seq
    products = 4 * hidden * hidden + 2 * hidden * between + 2 * seq * hidden
    matmul = 2 * tokens * layers * products + 2 * batch * hidden * dim
    norm, softmax, gelu = 7 * hidden, 5, 5
    biases, sums = 5 * hidden + between, 2 * hidden
    scores = heads * seq * (softmax + 2)  # scaled and masked
    other = tokens * layers * (biases + sums + 2 * norm + scores + gelu * between)
    return matmul, other + tokens * (norm + 2) + batch * dim  # first norm, mask, head's bias


@pytest.mark.parametrize("case", TEN)
def test_ten_encoders_agree_with_torch_and_with_the_hand_derivation(case, encoders, tmp_path):
    *sizes, batch, seq = case
    encoder = encoders.write_encoder(tmp_path / "encoder.onnx", encoders.Sizes(*sizes))
    cost = cost_of(tmp_path / "encoder.onnx")
    matmul, other = by_hand(*case)
    assert matmul_flops(cost.layers)(batch, seq) == counted_by_torch(encoder, encoders, batch, seq)
    assert matmul_flops(cost.layers)(batch, seq) == matmul
    assert true_flops(cost.layers)(batch, seq) == pytest.approx(matmul + other, rel=1e-4)
    assert cost.uncounted == ()


def counted_by_torch(encoder, encoders, batch, seq):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(*encoders.tokens(batch, seq))
    return counter.get_total_flops()


def test_the_figures_of_the_reference_report_are_reproduced_exactly(encoders, tmp_path):
    """DistilBERT base with 96 outputs, 4 x 16 tokens, in thop's count; and the true one."""
    path = tmp_path / "distilbert.onnx"
    encoders.write_encoder(path, encoders.Sizes(768, 6, 12, 3072, 96))
    cost = cost_of(path)
    parts = {"total": cost.layers, BACKBONE: cost.of(BACKBONE), HEAD: cost.of(HEAD)}
    assert {name: thop_flops(part)(4, 16) for name, part in parts.items()} == REFERENCE
    assert matmul_flops(cost.of(BACKBONE))(4, 16) == 5_454_692_352
    assert matmul_flops(cost.of(HEAD))(4, 16) == 589_824
    assert len(cost.blocks) == 6


@pytest.mark.slow
def test_the_shipped_distilbert_has_the_figures_of_the_reference_report(shipped_distilbert):
    cost = cost_of(shipped_distilbert.onnx, shipped_distilbert.output)
    parts = {"total": cost.layers, BACKBONE: cost.of(BACKBONE), HEAD: cost.of(HEAD)}
    assert {name: thop_flops(part)(4, 16) for name, part in parts.items()} == REFERENCE
    assert matmul_flops(cost.layers)(4, 16) == 5_454_692_352 + 589_824


def graph(tmp_path, nodes, inputs, constants=(), opsets=(("", 20),)):
    """A file with the given nodes, inputs by shape, and output `out`."""
    tokens = [helper.make_tensor_value_info(n, t, shape) for n, t, shape in inputs]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    held = [helper.make_tensor(n, TensorProto.FLOAT, s, [0.0] * s[0] * s[-1]) for n, s in constants]
    made = helper.make_graph(nodes, "planted", tokens, [output], held)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid(*o) for o in opsets])
    onnx.save(model, str(tmp_path / "planted.onnx"))
    return tmp_path / "planted.onnx"


FLOATS = [("x", TensorProto.FLOAT, ["batch", "seq", 8])]
PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"])


def test_an_operator_without_a_rule_is_named_and_the_total_is_a_lower_bound(tmp_path):
    nodes = [PRODUCT, helper.make_node("Mish", ["y"], ["out"])]
    cost = cost_of(graph(tmp_path, nodes, FLOATS, [("w", [8, 8])]))
    assert cost.uncounted == ("Mish x 1",)
    assert cost_as_json(cost, 16)["uncounted"] == ["Mish x 1"]
    line = cost_line("planted", cost, 16)
    assert "at least 2,048" in line
    assert line.endswith("not counted: Mish x 1")


def test_work_after_an_operator_of_unknown_shape_is_an_error_not_zero(tmp_path):
    nodes = [
        helper.make_node("Magic", ["x"], ["m"], domain="own"),
        helper.make_node("MatMul", ["m", "w"], ["out"]),
    ]
    path = graph(tmp_path, nodes, FLOATS, [("w", [8, 8])], [("", 20), ("own", 1)])
    with pytest.raises(ModelError, match="the size of tensor m does not follow"):
        cost_of(path)


def test_a_dynamic_dimension_beyond_batch_and_sequence_is_an_error(tmp_path):
    inputs = [("x", TensorProto.FLOAT, ["batch", "seq", "width"])]
    nodes = [helper.make_node("Relu", ["x"], ["out"])]
    with pytest.raises(ModelError, match=r"input x of .* dynamic dimension 2 \(width\) beyond"):
        cost_of(graph(tmp_path, nodes, inputs))


def test_a_size_made_of_values_is_an_error(tmp_path):
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"]),
        helper.make_node("Cast", ["found"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["floats"], ["out"]),
    ]
    with pytest.raises(ModelError, match="does not follow from batch and sequence"):
        cost_of(graph(tmp_path, nodes, FLOATS))


def test_integers_and_constants_are_not_floating_point_work(tmp_path):
    nodes = [
        helper.make_node("Add", ["ids", "ids"], ["twice"]),
        helper.make_node("Mul", ["w", "w"], ["square"]),
        helper.make_node("MatMul", ["x", "square"], ["out"]),
    ]
    inputs = [*FLOATS, ("ids", TensorProto.INT64, ["batch", "seq"])]
    cost = cost_of(graph(tmp_path, nodes, inputs, [("w", [8, 8])]))
    assert str(true_flops(cost.layers)) == "128 batch seq"
    assert str(thop_flops(cost.layers)) == "64 batch seq"


def test_a_file_that_is_no_model_is_an_error(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match="is not an ONNX model"):
        cost_of(tmp_path / "text.onnx")
    with pytest.raises(ModelError, match="none is named 'embedding'"):
        cost_of(graph(tmp_path, [helper.make_node("Relu", ["x"], ["out"])], FLOATS), "embedding")


def test_a_polynomial_is_found_exactly_and_anything_else_refused():
    found = fit(lambda at: 3 + 5 * at[0] * at[1] + 7 * at[0] * at[1] ** 2)
    assert found
    assert found(128, 512) == 3 + 5 * 128 * 512 + 7 * 128 * 512**2
    assert str(found) == "3 + 5 batch seq + 7 batch seq^2"
    assert fit(lambda at: at[1] ** 3) is None
    assert fit(lambda at: min(at[1], 5)) is None
    assert str(Polynomial() + Polynomial({(0, 0): Fraction(0)})) == "0"


def test_the_report_of_a_run_has_the_cost(project):
    report = project.path / "report.json"
    project.judge(
        "--gate-report-json", str(report), "--gate-report-text", str(project.path / "report.txt")
    )
    cost = json.loads(report.read_text())["costs"]["tiny"]
    assert cost["flops"]["matmul"] == {"total": 2 * 32 * 16, BACKBONE: 0, HEAD: 2 * 32 * 16}
    assert cost["flops"]["thop"]["total"] == 32 * 16
    assert cost["parameters"] == 200 * 32 + 32 * 16
    text = (project.path / "report.txt").read_text()
    assert "tiny: FLOPs of a text of 8 tokens: " in text


def test_a_model_that_cannot_be_counted_fails_no_run_and_says_so(project, monkeypatch):
    def refuse(*_given):
        raise ModelError("planted")

    monkeypatch.setattr("enginegate.session.costs.cost_of", refuse)
    report = project.path / "report.json"
    assert project.judge("--gate-report-json", str(report)).ret == 0
    assert json.loads(report.read_text())["costs"] == {"tiny": {"not_counted": "planted"}}
