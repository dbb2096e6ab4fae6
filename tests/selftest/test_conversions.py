"""Conversions of an ONNX file for a GPU, run for real: what they do to types and to embeddings."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from enginegate.engines.half import read_half_graph
from enginegate.engines.int8 import held_values, to_int8
from enginegate.engines.onnxruntime import open_onnx, run_onnx
from enginegate.engines.quantize import (
    name_nodes,
    products_to_bf16,
    round_to,
    roundings_of,
    to_bf16,
    to_fp16,
)
from enginegate.errors import EngineError
from enginegate.models.workload import default_corpus, hashed_tokenizer, make_workload
from enginegate.variants import Precision

from .tiny import write_bert

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


def test_products_alone_are_in_bf16_for_onnx_runtime(tiny_onnx, tmp_path, workload, wanted):
    products_to_bf16(tiny_onnx, tmp_path / "b.onnx")
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


@pytest.mark.parametrize("convert", [to_fp16, to_bf16, products_to_bf16])
def test_nodes_are_in_order_for_a_runtime(tmp_path, convert):
    write_two(tmp_path / "two.onnx")
    convert(tmp_path / "two.onnx", tmp_path / "h.onnx")
    name_nodes(tmp_path / "h.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "h.onnx"))


def test_types_that_the_file_states_are_true_after_a_conversion(tmp_path):
    write_two(tmp_path / "two.onnx")
    to_fp16(tmp_path / "two.onnx", tmp_path / "h.onnx")
    model = onnx.load(tmp_path / "h.onnx")
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert types_of(tmp_path / "h.onnx", "Tanh") == [TensorProto.FLOAT16]


def test_bf16_of_a_gemm_casts_its_bias_and_keeps_shared_weights_once(tmp_path):
    values, wanted = write_two(tmp_path / "two.onnx")
    to_bf16(tmp_path / "two.onnx", tmp_path / "b.onnx")
    assert len(onnx.load(tmp_path / "b.onnx").graph.initializer) == 2
    (found,) = ReferenceEvaluator(str(tmp_path / "b.onnx")).run(None, {"x": values})
    assert furthest(found, wanted) < 3e-2


INT8_TYPES = {
    "QuantizeLinear": [TensorProto.FLOAT16, TensorProto.FLOAT16, TensorProto.INT8],
    "DequantizeLinear": [TensorProto.INT8, TensorProto.FLOAT16, TensorProto.INT8],
    "MatMul": [TensorProto.FLOAT16] * 2,
}


def test_int8_is_what_tensorrt_fuses(tmp_path, workload):
    """DQ of fp16 right before each product of weights, a scale for a column, no cast between."""
    write_bert(tmp_path / "b.onnx", layers=1)
    chosen = to_int8(tmp_path / "b.onnx", tmp_path / "q.onnx", workload.calibration)
    model = onnx.load(tmp_path / "q.onnx")
    onnx.checker.check_model(model, full_check=True)
    makers = {name: node for node in model.graph.node for name in node.output}
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type == "MatMul"]
    weighted = [n for n in products if makers[n.input[1]].op_type == "DequantizeLinear"]
    assert len(weighted) == len(chosen) == 6
    for node in weighted:
        given, scales, zeros = (tensors[name] for name in makers[node.input[1]].input)
        assert [given.dtype, scales.dtype] == [np.dtype(np.int8), np.dtype(np.float16)]
        assert scales.shape == zeros.shape == given.shape[1:]
        assert not zeros.any()
        quantised = makers[makers[node.input[0]].input[0]]
        assert quantised.op_type == "QuantizeLinear"
        assert tensors[quantised.input[1]].shape == ()
        assert makers[quantised.input[0]].op_type not in ("DequantizeLinear", "QuantizeLinear")
    for kind, wanted in INT8_TYPES.items():
        found = types_of(tmp_path / "q.onnx", kind)
        assert found == wanted * (len(found) // len(wanted))
    (attention,) = {makers[n.input[0]].op_type for n in products if n not in weighted} - {"Mul"}
    assert attention == "Softmax"


def test_int8_gives_the_embeddings(tmp_path, workload, fake_gpu):
    write_bert(tmp_path / "b.onnx", layers=2)
    to_int8(tmp_path / "b.onnx", tmp_path / "q.onnx", workload.calibration)
    found = run_onnx(on_the_fake(tmp_path / "q.onnx", tmp_path), workload.evaluation)
    error = furthest(found, run_onnx(tmp_path / "b.onnx", workload.evaluation))
    assert 1e-3 < error < 5e-2


def test_int8_of_a_gemm_scales_the_rows_of_a_transposed_weight(tmp_path):
    values, _ = write_two(tmp_path / "two.onnx")
    model = onnx.load(tmp_path / "two.onnx")
    model.graph.node[0].attribute.append(helper.make_attribute("transB", 1))
    onnx.save(model, tmp_path / "two.onnx")
    batch: Any = {"x": values}
    to_int8(tmp_path / "two.onnx", tmp_path / "q.onnx", batch)
    nodes = onnx.load(tmp_path / "q.onnx").graph.node
    axes = [a.i for n in nodes for a in n.attribute if a.name == "axis"]
    assert axes == [0, 1]
    (found,) = ReferenceEvaluator(str(tmp_path / "q.onnx")).run(None, batch)
    assert furthest(found, run_onnx(tmp_path / "two.onnx", batch)) < 5e-2


def test_what_int8_holds_is_counted_and_single_numbers_are_cut(tmp_path):
    write_two(tmp_path / "two.onnx")
    values = np.linspace(-1, 1, 6 * 40_000, dtype=np.float32).reshape(-1, 6)
    values[7, 3] = 100
    batch: Any = {"x": values}
    (held,) = held_values(tmp_path / "two.onnx", {"x"}, batch).values()
    assert 1 <= held < 1.1
    none: Any = {"x": np.zeros((4, 6), np.float32)}
    assert held_values(tmp_path / "two.onnx", {"x"}, none) == {"x": 0.0}


def test_an_opset_that_cannot_be_raised_is_an_error(tmp_path, workload):
    write_bert(tmp_path / "b.onnx")
    model = onnx.load(tmp_path / "b.onnx")
    model.opset_import[0].version = 7
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(EngineError, match=r"opset 7 cannot be those of 19, .*; export the model"):
        to_int8(tmp_path / "b.onnx", tmp_path / "q.onnx", workload.calibration)


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
    products_to_bf16(tiny_onnx, tmp_path / "b.onnx")
    model = onnx.load(str(tmp_path / "b.onnx"))
    (weight,) = [w for w in model.graph.initializer if w.data_type == TensorProto.BFLOAT16]
    weight.raw_data = weight.raw_data[::-1]
    onnx.save(model, tmp_path / "b.onnx")
    (found,) = ReferenceEvaluator(str(tmp_path / "b.onnx")).run(None, dict(workload.evaluation))
    assert not furthest(found, wanted) < 1e-2


ROPE = """<ir_version: 9, opset_import: ["" : 17]>
rope (int64[rows, seq] ids, int64[rows, seq] mask) => (float[rows, 8] y)
<float[90, 8] words, float[8, 8] weight, float[1, 4, 1] angles,
 float two = {2.0}, float little = {0.000001}>
{
    shape = Shape(ids)
    one = Constant<value_int = 1>()
    zero = Constant<value_int = 0>()
    length = Gather(shape, one)
    places = Range(zero, length, one)
    floats = Cast<to = 1>(places)
    front = Constant<value_ints = [0, 1]>()
    row = Unsqueeze(floats, front)
    turned = MatMul(angles, row)
    swapped = Transpose<perm = [0, 2, 1]>(turned)
    both = Concat<axis = 2>(swapped, swapped)
    cos = Cos(both)
    x = Gather(words, ids)
    rotated = Mul(x, cos)
    square = Pow(rotated, two)
    mean = ReduceMean<axes = [2], keepdims = 1>(square)
    raised = Add(mean, little)
    root = Sqrt(raised)
    inverse = Reciprocal(root)
    normed = Mul(rotated, inverse)
    dense = MatMul(normed, weight)
    soft = Tanh(dense)
    weights = Cast<to = 1>(mask)
    last = Constant<value_ints = [-1]>()
    column = Unsqueeze(weights, last)
    masked = Mul(soft, column)
    axis = Constant<value_ints = [1]>()
    total = ReduceSum<keepdims = 0>(masked, axis)
    count = ReduceSum<keepdims = 0>(column, axis)
    y = Div(total, count)
}"""
KEPT_OF_ROPE = {
    *("floats", "row", "turned", "swapped", "both", "cos"),  # of positions
    *("square", "mean", "raised", "root", "inverse"),
    *("masked", "total", "count", "y"),  # pooling
}


def write_rope(path, scale=1.0):
    """Rotated words, RMSNorm, one matrix, mean pooling: all that is kept in fp32."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(ROPE)
    values = {
        "words": scale * rng.normal(size=(90, 8)),
        "weight": rng.normal(size=(8, 8)),
        "angles": rng.uniform(0.01, 1, size=(1, 4, 1)),
    }
    tensors = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items()]
    model.graph.initializer.extend(tensors)
    onnx.save(model, path)
    ids = rng.integers(0, 90, size=(4, 300))
    return {"ids": ids, "mask": (ids < 80).astype(np.int64)}


def test_what_fp16_cannot_hold_stays_in_fp32(tmp_path):
    write_rope(tmp_path / "r.onnx")
    graph = read_half_graph(tmp_path / "r.onnx")
    floats = {name for n in graph.nodes for name in n.output if name in graph.floats}
    assert floats - graph.halves == KEPT_OF_ROPE
    assert graph.matmuls == {"dense"}  # not that of the positions


@pytest.mark.parametrize("convert", [to_fp16, products_to_bf16, to_bf16])
def test_converted_types_are_those_of_the_plan(tmp_path, convert):
    write_rope(tmp_path / "r.onnx")
    convert(tmp_path / "r.onnx", tmp_path / "h.onnx")
    model = onnx.load(tmp_path / "h.onnx")
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    values = (*model.graph.value_info, *model.graph.output)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    graph = read_half_graph(tmp_path / "r.onnx")
    wanted = graph.matmuls if convert is products_to_bf16 else graph.halves
    kind = TensorProto.FLOAT16 if convert is to_fp16 else TensorProto.BFLOAT16
    found = {name for n in graph.nodes for name in n.output if types.get(name) == kind}
    assert found == wanted
    assert {types[name] for name in KEPT_OF_ROPE} == {TensorProto.FLOAT}


def test_kept_in_fp32_a_norm_of_400_and_far_positions_are_right(tmp_path):
    """In fp16 squares of 400 are infinite, and an angle of 300 is a quarter off."""
    batch = write_rope(tmp_path / "r.onnx", scale=400)
    to_fp16(tmp_path / "r.onnx", tmp_path / "h.onnx")
    wanted = run_onnx(tmp_path / "r.onnx", batch)
    assert furthest(run_onnx(tmp_path / "h.onnx", batch), wanted) < 2e-3


def test_all_in_fp16_the_same_is_wrong(tmp_path):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    batch = write_rope(tmp_path / "r.onnx", scale=400)
    model = convert_float_to_float16(onnx.load(tmp_path / "r.onnx"), keep_io_types=True)
    onnx.save(model, tmp_path / "h.onnx")
    (found,) = ReferenceEvaluator(str(tmp_path / "h.onnx")).run(None, batch)
    assert not furthest(found, run_onnx(tmp_path / "r.onnx", batch)) < 0.1


def on_the_fake(path, folder):
    """The file as the fake GPU runs it."""
    from fake_network import runnable

    name_nodes(path)
    target = folder / "fake.onnx"
    target.write_bytes(runnable(onnx.load(path), {}))
    return target


def test_the_fake_gpu_overflows_where_fp16_does(tmp_path, fake_gpu):
    """ONNX Runtime alone would not: it drops the casts between."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    batch = write_rope(tmp_path / "r.onnx", scale=400)
    model = convert_float_to_float16(onnx.load(tmp_path / "r.onnx"), keep_io_types=True)
    onnx.save(model, tmp_path / "h.onnx")
    wanted = run_onnx(tmp_path / "r.onnx", batch)
    assert furthest(run_onnx(tmp_path / "h.onnx", batch), wanted) < 0.1
    found = run_onnx(on_the_fake(tmp_path / "h.onnx", tmp_path), batch)
    assert not furthest(found, wanted) < 0.1


@pytest.mark.parametrize("convert", [to_fp16, to_bf16])
@pytest.mark.parametrize("scale", [1, 400])
def test_the_fake_gpu_rounds_every_result(tmp_path, fake_gpu, scale, convert):
    """As ONNX's own evaluator, which computes each node in the type that it has."""
    batch = write_rope(tmp_path / "r.onnx", scale)
    convert(tmp_path / "r.onnx", tmp_path / "h.onnx")
    (exact,) = ReferenceEvaluator(str(tmp_path / "h.onnx")).run(None, batch)
    found = run_onnx(on_the_fake(tmp_path / "h.onnx", tmp_path), batch)
    wanted = run_onnx(tmp_path / "r.onnx", batch)
    assert furthest(found, exact) < 0.2 * furthest(exact, wanted)


@pytest.mark.parametrize("scale", [1, 400])
def test_rounded_is_what_a_converted_graph_gives_where_it_is_computed(tmp_path, scale):
    """ONNX's own evaluator computes each node in the type that it has."""
    batch = write_rope(tmp_path / "r.onnx", scale)
    to_fp16(tmp_path / "r.onnx", tmp_path / "h.onnx")
    round_to(Precision.FP16, tmp_path / "r.onnx", tmp_path / "e.onnx")
    (exact,) = ReferenceEvaluator(str(tmp_path / "h.onnx")).run(None, batch)
    found, wanted = run_onnx(tmp_path / "e.onnx", batch), run_onnx(tmp_path / "r.onnx", batch)
    assert furthest(found, exact) < 0.2 * furthest(found, wanted)


def test_every_rounding_is_seen_at_work(tmp_path):
    batch = write_rope(tmp_path / "r.onnx")
    round_to(Precision.FP16, tmp_path / "r.onnx", tmp_path / "e.onnx")
    roundings = roundings_of(tmp_path / "e.onnx", "y")
    made = {"rotated", "normed", "dense", "soft", "weights"}
    assert {f"rounding/{name}/exact/to_half" for name in made} < roundings
    assert "rounding/inverse/to_half" in roundings  # made in fp32, taken in fp16
    engine = open_onnx(tmp_path / "e.onnx", "y", batch, 1, roundings)
    assert set(engine.executed.matmuls) == {"f32"}


def test_a_rounding_that_the_runtime_leaves_out_is_an_error(tmp_path, monkeypatch):
    """Two equal products, of which one is left where equal nodes may be merged."""
    write_two(tmp_path / "two.onnx")
    model = onnx.load(tmp_path / "two.onnx")
    twin = helper.make_node("MatMul", ["t", "w"], ["twin"])
    both = helper.make_node("Add", ["z", "twin"], ["sum"])
    model.graph.node.extend([twin, both])
    model.graph.output[0].name = "sum"
    onnx.save(model, tmp_path / "two.onnx")
    round_to(Precision.FP16, tmp_path / "two.onnx", tmp_path / "e.onnx")
    batch: Any = {"x": np.ones((2, 6), np.float32)}
    roundings = roundings_of(tmp_path / "e.onnx", "sum")
    open_onnx(tmp_path / "e.onnx", "sum", batch, 1, roundings)
    monkeypatch.setattr("enginegate.engines.onnxruntime._MERGES", "none")
    with pytest.raises(EngineError, match="left out 1 of 6 casts that round"):
        open_onnx(tmp_path / "e.onnx", "sum", batch, 1, roundings)


def test_a_mask_of_the_lowest_float_is_cut_and_a_weight_is_not(tmp_path):
    nodes = [
        helper.make_node("Add", ["x", "fill"], ["masked"]),
        helper.make_node("Mul", ["masked", "large"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", 2]) for n in "xy")
    values = {"fill": np.float32(-3.4e38), "large": np.array([7e4, -7e4], np.float32)}
    weights = [numpy_helper.from_array(np.asarray(v), n) for n, v in values.items()]
    graph = helper.make_graph(nodes, "masks", [x], [y], weights)
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    found = read_half_graph(tmp_path / "m.onnx").weights
    assert numpy_helper.to_array(found["fill"]) == -65504
    assert list(numpy_helper.to_array(found["large"])) == [7e4, -7e4]
