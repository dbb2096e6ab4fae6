"""Conversions of an ONNX file for a GPU, run for real: what they do to types and to embeddings."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from enginegate.engines.onnxruntime import run_onnx
from enginegate.engines.quantize import name_nodes, others_to_fp16, quantize_qdq, to_bf16, to_fp16
from enginegate.models.workload import default_corpus, hashed_tokenizer, make_workload

ROLES = {"input_ids": "ids", "attention_mask": "mask"}


@pytest.fixture(scope="module")
def workload():
    return make_workload("corpus", default_corpus(), hashed_tokenizer(200, 8), ROLES)


@pytest.fixture
def wanted(tiny_onnx, workload):
    return run_onnx(tiny_onnx, workload.evaluation)


def furthest(found, wanted):
    """Largest difference of a component, relative to the largest component."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def types_of(path, kind):
    """Element types of the operands of every node of a kind."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    types |= {w.name: w.data_type for w in model.graph.initializer}
    return [types[name] for n in model.graph.node if n.op_type == kind for name in n.input]


def test_fp16_changes_everything_within(tiny_onnx, tmp_path, workload, wanted):
    to_fp16(tiny_onnx, tmp_path / "h.onnx")
    assert types_of(tmp_path / "h.onnx", "MatMul") == [TensorProto.FLOAT16] * 2
    error = furthest(run_onnx(tmp_path / "h.onnx", workload.evaluation), wanted)
    assert 1e-6 < error < 1e-3  # 2**-11 is 5e-4


def test_bf16_multiplies_in_bf16_and_nothing_else(tiny_onnx, tmp_path, workload, wanted):
    to_bf16(tiny_onnx, tmp_path / "b.onnx")
    assert types_of(tmp_path / "b.onnx", "MatMul") == [TensorProto.BFLOAT16] * 2
    assert types_of(tmp_path / "b.onnx", "Div") == [TensorProto.FLOAT] * 2
    (found,) = ReferenceEvaluator(str(tmp_path / "b.onnx")).run(None, dict(workload.evaluation))
    error = furthest(found, wanted)
    assert 1e-4 < error < 1e-2  # 2**-8 is 4e-3


def test_bf16_as_rounded_operands_is_what_the_reference_evaluator_gives(
    tiny_onnx, tmp_path, workload, fake_gpu
):
    """ONNX Runtime's processor has no bf16 MatMul: the fake GPU rounds to it and sums in f32."""
    from fake_network import runnable, types_of_matmuls

    to_bf16(tiny_onnx, tmp_path / "b.onnx")
    name_nodes(tmp_path / "b.onnx")
    model = onnx.load(str(tmp_path / "b.onnx"))
    types = types_of_matmuls(model, typed=True, tf32=False)
    assert list(types.values()) == ["bf16"]
    (tmp_path / "r.onnx").write_bytes(runnable(model, types))
    (exact,) = ReferenceEvaluator(str(tmp_path / "b.onnx")).run(None, dict(workload.evaluation))
    assert furthest(run_onnx(tmp_path / "r.onnx", workload.evaluation), exact) < 1e-2


def write_two(path):
    """A Gemm and a MatMul of one weight, with the types of all values as real exports have them."""
    rng = np.random.default_rng(0)
    weight, bias = (rng.normal(size=s).astype(np.float32) for s in ((6, 6), (6,)))
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"]),
        helper.make_node("Tanh", ["y"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["z"]),
    ]
    x, z = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", 6]) for n in "xz")
    weights = [numpy_helper.from_array(v, n) for v, n in ((weight, "w"), (bias, "b"))]
    graph = helper.make_graph(nodes, "two", [x], [z], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    values = rng.normal(size=(4, 6)).astype(np.float32)
    return values, np.tanh(values @ weight + bias) @ weight


@pytest.mark.parametrize("convert", [to_fp16, to_bf16, others_to_fp16])
def test_nodes_are_in_order_for_a_runtime(tmp_path, convert):
    write_two(tmp_path / "two.onnx")
    convert(tmp_path / "two.onnx", tmp_path / "h.onnx")
    name_nodes(tmp_path / "h.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "h.onnx"))


def test_types_that_the_file_states_are_true_after_a_conversion(tmp_path):
    write_two(tmp_path / "two.onnx")
    others_to_fp16(tmp_path / "two.onnx", tmp_path / "h.onnx")
    model = onnx.load(tmp_path / "h.onnx")
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert types_of(tmp_path / "h.onnx", "Tanh") == [TensorProto.FLOAT16]


def test_bf16_of_a_gemm_casts_its_bias_and_keeps_shared_weights_once(tmp_path):
    values, wanted = write_two(tmp_path / "two.onnx")
    to_bf16(tmp_path / "two.onnx", tmp_path / "b.onnx")
    assert len(onnx.load(tmp_path / "b.onnx").graph.initializer) == 2
    (found,) = ReferenceEvaluator(str(tmp_path / "b.onnx")).run(None, {"x": values})
    assert furthest(found, wanted) < 3e-2


def test_int8_has_q_and_dq_right_before_every_multiplication(tiny_onnx, tmp_path, workload, wanted):
    others_to_fp16(tiny_onnx, tmp_path / "h.onnx")
    quantize_qdq(tmp_path / "h.onnx", tmp_path / "q.onnx", workload.calibration, results=False)
    model = onnx.load(str(tmp_path / "q.onnx"))
    makers = {name: n.op_type for n in model.graph.node for name in n.output}
    (matmul,) = [n for n in model.graph.node if n.op_type == "MatMul"]
    assert [makers[name] for name in matmul.input] == ["DequantizeLinear"] * 2
    takers = [n.op_type for n in model.graph.node if matmul.output[0] in n.input]
    assert takers == ["Cast"]  # to fp16: what the kernel writes is not quantised
    assert types_of(tmp_path / "q.onnx", "Div") == [TensorProto.FLOAT16] * 2
    scales = [w for w in model.graph.initializer if w.name.endswith("zero_point")]
    assert scales
    assert all((numpy_helper.to_array(point) == 0).all() for point in scales)  # symmetric
    error = furthest(run_onnx(tmp_path / "q.onnx", workload.evaluation), wanted)
    assert 1e-4 < error < 2e-2


def test_nodes_get_names_of_their_own(tiny_onnx, tmp_path, wanted, workload):
    path = tmp_path / "named.onnx"
    model = onnx.load(str(tiny_onnx))
    for node in model.graph.node[:2]:
        node.name = "twice"
    onnx.save(model, path)
    assert [name.partition("_")[0] for name in name_nodes(path)] == ["MatMul"]
    names = [node.name for node in onnx.load(path).graph.node]
    assert len(set(names)) == len(names)
    assert all(names)
    assert furthest(run_onnx(path, workload.evaluation), wanted) == 0


def test_a_conversion_that_breaks_the_numbers_is_seen(tiny_onnx, tmp_path, workload, wanted):
    """Weights stored in another order: the types are right, the embeddings are not."""
    to_bf16(tiny_onnx, tmp_path / "b.onnx")
    model = onnx.load(str(tmp_path / "b.onnx"))
    (weight,) = [w for w in model.graph.initializer if w.data_type == TensorProto.BFLOAT16]
    weight.raw_data = weight.raw_data[::-1]
    onnx.save(model, tmp_path / "b.onnx")
    (found,) = ReferenceEvaluator(str(tmp_path / "b.onnx")).run(None, dict(workload.evaluation))
    assert not furthest(found, wanted) < 1e-2
