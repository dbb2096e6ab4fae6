"""Conversions of an ONNX file to lower precision, for every runtime that takes ONNX."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
from onnx import version_converter

from enginegate.engines.half import MATMULS, put_in_order, read_half_graph
from enginegate.engines.halving import BF16, FP16, ROUNDING, write_converted, write_rounded
from enginegate.files import scratch_folder
from enginegate.models import Batch, chunks, is_large_file, opset_of, save_onnx
from enginegate.variants import Precision

_CALIBRATION_ROWS = 8
_OPSET_OF_QDQ, _OPSET_IF_OLDER = 10, 11  # as in `quantize_static`
_SYMMETRIC = MappingProxyType(
    {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
)
_TYPES = MappingProxyType({Precision.FP16: FP16, Precision.BF16: BF16})


def to_fp16(source: Path, target: Path) -> frozenset[str]:
    """Convert weights and arithmetic to fp16, but for what fp16 cannot hold.

    Inputs and outputs keep their types; `engines.half` tells what stays in fp32. Returns the first
    outputs of what multiplies matrices in fp16.
    """
    graph = read_half_graph(source)
    write_converted(graph, FP16, graph.halves, target)
    return graph.matmuls


def to_bf16(source: Path, target: Path) -> frozenset[str]:
    """Convert the same to bfloat16."""
    graph = read_half_graph(source)
    write_converted(graph, BF16, graph.halves, target)
    return graph.matmuls


def products_to_bf16(source: Path, target: Path) -> frozenset[str]:
    """Multiply matrices in bfloat16: weights stored so, other operands and results cast.

    All else, and inputs and outputs, keeps its type. MatMul and Gemm take bfloat16 from opset 13.
    """
    graph = read_half_graph(source)
    write_converted(graph, BF16, graph.matmuls, target)
    onnx.checker.check_model(str(target))  # a path: no message holds a model over 2 GB
    return graph.matmuls


def round_to(precision: Precision, source: Path, target: Path) -> None:
    """Write the fp32 graph with every value rounded that `precision` would have rounded."""
    write_rounded(read_half_graph(source), _TYPES[precision], target)


def roundings_of(path: Path, output: str) -> frozenset[str]:
    """Names of the nodes of such a file that round what follows from the texts."""
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    needed, found = {output}, set()
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            found.add(node.name)
    return frozenset(name for name in found if name.startswith(ROUNDING))


def copy_onnx(source: Path, target: Path) -> None:
    """Write the model as it is, with external weights gathered."""
    save_onnx(onnx.load(str(source)), target)


def name_nodes(path: Path) -> list[str]:
    """Order the nodes and name each; the names of those that multiply matrices."""
    model = onnx.load(str(path))
    put_in_order(model)
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        node.name = node.name if node.name and node.name not in taken else f"{node.op_type}_{index}"
        taken.add(node.name)
    save_onnx(model, path)
    return [node.name for node in model.graph.node if node.op_type in MATMULS]


def matmuls_of(path: Path) -> int:
    """Count the nodes that multiply matrices."""
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return sum(node.op_type in MATMULS for node in nodes)


def quantize_qdq(source: Path, target: Path, calibration: Batch) -> None:
    """Explicit Q/DQ around every MatMul: int8 symmetric, ranges from `calibration` [texts, seq].

    For a processor; `engines.int8` does it as TensorRT fuses it.
    """
    ranges = _ranges_of(source, calibration)  # first, when the model is not in memory yet
    quantizer = _quantizer(_quantisable(source), ranges)
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(target), is_large_file(source))


def _quantisable(source: Path) -> onnx.ModelProto:
    """The model with the types of its values, of an opset that has Q/DQ."""
    # here, for an engine that is only loaded, as on a server, has no use for it
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    model: onnx.ModelProto = load_model_with_shape_infer(source)
    if opset_of(model) >= _OPSET_OF_QDQ:
        return model
    return version_converter.convert_version(model, _OPSET_IF_OLDER)


def _quantizer(model: onnx.ModelProto, ranges: Any) -> Any:
    """The one that `quantize_static` makes, after holding the model three times."""
    from onnxruntime.quantization import QDQQuantizer, QuantType

    return QDQQuantizer(
        model,
        per_channel=False,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=list(MATMULS),
        extra_options=dict(_SYMMETRIC),
    )


def _ranges_of(source: Path, calibration: Batch) -> Any:
    """The least and the largest of each operand and result of a multiplication."""
    from onnxruntime.quantization import create_calibrator

    with scratch_folder() as folder:
        watched = str(folder / "watched.onnx")
        made = create_calibrator(source, list(MATMULS), watched, use_external_data_format=True)
        made.collect_data(_Reader(calibration))
        return made.compute_data()


class _Reader:
    """Feeds the calibration texts a few rows at a time."""

    def __init__(self, calibration: Batch) -> None:
        self._batches = chunks(calibration, _CALIBRATION_ROWS)

    def get_next(self) -> Batch | None:
        return next(self._batches, None)
