"""The type that a multiplication ran in, read from profiles of graphs as they are published."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from enginegate.engines.onnxruntime import executed_in, open_onnx
from enginegate.engines.openvino import _type_of

# Operator, types of its operands and results as ONNX Runtime's profile has them, what multiplied.
KERNELS = {
    "fp32 file": ("MatMul", "float float -> float", "f32"),
    "fp32, scaled": ("FusedMatMul", "float float -> float", "f32"),
    "fp32, with bias": ("Gemm", "float float float -> float", "f32"),
    "fp32, fused attention": ("Attention", "float float float int32 -> float", "f32"),
    "fp32, masked attention": (
        "MultiHeadAttention",
        "float float float bool -> float",
        "f32",
    ),
    "fp16 on a GPU": ("MatMul", "float16 float16 -> float16", "f16"),
    "dynamic int8, fused": ("DynamicQuantizeMatMul", "float int8 float int8 -> float", "i8"),
    "dynamic uint8, fused": ("DynamicQuantizeMatMul", "float uint8 float uint8 -> float", "u8"),
    "dynamic int8, recurrent": ("DynamicQuantizeLSTM", "float int8 int8 float -> float", "i8"),
    "dynamic int8, plain": ("MatMulInteger", "uint8 int8 uint8 int8 -> int32", "u8"),
    "dynamic int8, scaled": ("MatMulIntegerToFloat", "uint8 int8 float float -> float", "u8"),
    "static int8": ("QLinearMatMul", "int8 float int8 int8 float int8 -> int8", "i8"),
    "static int8, with bias": ("QGemm", "uint8 float uint8 int8 float int8 -> uint8", "u8"),
    "static int8, attention": ("QAttention", "uint8 int8 float float float -> float", "u8"),
    "dynamic int8, convolution": ("ConvInteger", "uint8 int8 uint8 -> int32", "u8"),
    "recurrent": ("LSTM", "float float float -> float float", "f32"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_the_type_of_a_kernel(name):
    kind, types, wanted = KERNELS[name]
    operands, results = ([{t: [1, 2]} for t in part.split()] for part in types.split(" -> "))
    said = {"op_name": kind, "input_type_shape": operands, "output_type_shape": results}
    assert executed_in([{"name": "x_kernel_time", "args": said}]).matmuls == {wanted: 1}


def test_what_multiplies_nothing_is_not_counted():
    for kind in ("Add", "DynamicQuantizeLinear", "QLinearAdd", "Gather", "Softmax"):
        said = {"op_name": kind, "input_type_shape": [{"int8": [1]}], "output_type_shape": []}
        assert executed_in([{"name": "x_kernel_time", "args": said}]).matmuls == {}


@pytest.mark.parametrize("weights", [QuantType.QInt8, QuantType.QUInt8])
def test_a_dynamic_int8_file_ran_in_int8(tmp_path, weights):
    """For real: ONNX Runtime fuses it to DynamicQuantizeMatMul, whose first operand is a float."""
    matrix = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", 8]) for n in "xy")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "one", [x], [y], [numpy_helper.from_array(matrix, "w")])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "one.onnx")
    quantize_dynamic(tmp_path / "one.onnx", tmp_path / "int8.onnx", weight_type=weights)
    batch: Any = {"x": np.ones((2, 8), np.float32)}
    found = open_onnx(tmp_path / "int8.onnx", "y", batch, 1).executed.matmuls
    assert found == {"i8" if weights is QuantType.QInt8 else "u8": 1}


def operation(kind, said, *operands):
    """An operation of OpenVINO's runtime graph."""
    facts = {"layerType": kind, "runtimePrecision": said}
    info = {name: SimpleNamespace(value=value) for name, value in facts.items()}
    types = [SimpleNamespace(get_type_name=lambda name=name: name) for name in operands]
    inputs = [SimpleNamespace(get_element_type=lambda kind=kind: kind) for kind in types]
    return SimpleNamespace(get_rt_info=lambda: info, inputs=lambda: inputs)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (("Subgraph", "u8", "f32", "f32", "u8", "f32"), "f32"),  # a boolean mask
        (("Subgraph", "u8", "bf16", "bf16", "u8", "bf16"), "bf16"),
        (("Subgraph", "u8", "f16", "f16", "u8", "u8", "f16"), "f16"),  # two of them
        (("Subgraph", "u8", "u8", "u8", "f32", "u8"), "u8"),  # int8 with a mask of floats
        (("Subgraph", "i8", "i8", "i8", "f32", "i8"), "i8"),
        (("Subgraph", "f32", "f32", "f32", "f32"), "f32"),
        (("FullyConnected", "u8", "u8", "i8", "f32", "f32", "f32"), "u8"),
    ],
)
def test_the_type_of_a_fused_subgraph_is_that_of_most_operands(given, wanted):
    assert _type_of(operation(*given)) == wanted
