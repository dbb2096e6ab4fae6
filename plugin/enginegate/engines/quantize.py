"""Conversions of an ONNX file to lower precision, for every runtime that takes ONNX."""

from collections.abc import Iterator, Mapping, MutableMapping
from graphlib import TopologicalSorter
from pathlib import Path

import ml_dtypes
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from enginegate.models import Batch, chunks, is_large_file, save_onnx

MATMULS = ("MatMul", "Gemm")
_CALIBRATION_ROWS = 8


def to_fp16(source: Path, target: Path) -> None:
    """Convert weights and arithmetic to fp16; inputs and outputs keep their types."""
    converted = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True)
    save_onnx(converted, target)


def others_to_fp16(source: Path, target: Path) -> None:
    """Convert all but the matrix multiplications to fp16, for Q/DQ to be put around those."""
    kept = [*DEFAULT_OP_BLOCK_LIST, *MATMULS]
    model = onnx.load(str(source))
    converted = convert_float_to_float16(model, keep_io_types=True, op_block_list=kept)
    del converted.graph.value_info[:]  # it still has the types from before
    _put_in_order(converted)
    save_onnx(converted, target)


def _put_in_order(model: ModelProto) -> None:
    """Every node after those that it needs, as ONNX wants it. The converter appends its casts."""
    nodes = list(model.graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    needs = {i: [makers[n] for n in node.input if n in makers] for i, node in enumerate(nodes)}
    order = TopologicalSorter(needs).static_order()
    del model.graph.node[:]
    model.graph.node.extend(nodes[index] for index in order)


def to_bf16(source: Path, target: Path) -> None:
    """Multiply matrices in bfloat16: weights stored so, other operands and results cast.

    All else, and inputs and outputs, keeps its type. MatMul and Gemm take bfloat16 from opset 13.
    """
    model = onnx.load(str(source))
    weights = {w.name: w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT}
    stored: dict[str, TensorProto] = {}
    nodes = [n for node in model.graph.node for n in _in_bf16(node, weights, stored)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(stored.values())
    _drop_unused(model)
    save_onnx(model, target)
    onnx.checker.check_model(str(target))  # a path: no message holds a model over 2 GB


def _in_bf16(
    node: NodeProto, weights: Mapping[str, TensorProto], stored: MutableMapping[str, TensorProto]
) -> Iterator[NodeProto]:
    """The node itself, or casts of its operands, it in bf16, and the cast of its result."""
    if node.op_type not in MATMULS:
        yield node
        return
    for index, name in enumerate(node.input):
        cast = f"{name}_bf16_of_{node.output[0]}"
        if name in weights:
            node.input[index] = f"{name}_bf16"
            stored[name] = stored.get(name) or _bf16_of(weights[name])
        elif name:
            yield helper.make_node("Cast", [name], [cast], cast, to=TensorProto.BFLOAT16)
            node.input[index] = cast
    (result,) = node.output
    node.output[0] = f"{result}_bf16"
    yield node
    yield helper.make_node(
        "Cast", [node.output[0]], [result], f"{result}_f32", to=TensorProto.FLOAT
    )


def _bf16_of(weight: TensorProto) -> TensorProto:
    values = numpy_helper.to_array(weight).astype(ml_dtypes.bfloat16)
    return helper.make_tensor(
        f"{weight.name}_bf16", TensorProto.BFLOAT16, values.shape, values.tobytes(), raw=True
    )


def _drop_unused(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [weight for weight in model.graph.initializer if weight.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def copy_onnx(source: Path, target: Path) -> None:
    """Write the model as it is, with external weights gathered."""
    save_onnx(onnx.load(str(source)), target)


def name_nodes(path: Path) -> list[str]:
    """Order the nodes and name each; the names of those that multiply matrices."""
    model = onnx.load(str(path))
    _put_in_order(model)
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        node.name = node.name if node.name and node.name not in taken else f"{node.op_type}_{index}"
        taken.add(node.name)
    save_onnx(model, path)
    return [node.name for node in model.graph.node if node.op_type in MATMULS]


def quantize_qdq(source: Path, target: Path, calibration: Batch, *, results: bool = True) -> None:
    """Explicit Q/DQ around every MatMul: int8 symmetric, ranges from `calibration` [texts, seq].

    `results`: also after it. TensorRT wants operands alone: its kernels write what comes next.
    """
    quantize_static(
        str(source),
        str(target),
        _Reader(calibration),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=list(MATMULS),
        use_external_data_format=is_large_file(source),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": [] if results else list(MATMULS),
        },
    )


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the calibration texts a few rows at a time."""

    def __init__(self, calibration: Batch) -> None:
        self._batches = chunks(calibration, _CALIBRATION_ROWS)

    def get_next(self) -> Batch | None:
        return next(self._batches, None)
