"""int8 as TensorRT fuses it: weights times activations in int8, all else in fp16.

Before each multiplication of a matrix of weights stand Q and DQ of the activation, with one scale,
and DQ of the weights, which are stored in int8, with a scale for every column. Scales are fp16: so
DQ gives fp16, and no cast comes between it and the product. Products of two activations, those of
an attention, stay in fp16: their own kernels take all of it at once.

Sources: TensorRT's documentation on explicit quantisation; ONNX's QuantizeLinear-19.
"""

import collections
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, version_converter

from enginegate.engines.half import MATMULS, HalfGraph, read_half_graph
from enginegate.engines.halving import FP16, write_converted
from enginegate.engines.onnxruntime import session_of
from enginegate.errors import EngineError
from enginegate.files import scratch_folder
from enginegate.models import Batch, chunks, opset_of, save_onnx, values_of

_OPSET = 19  # from which QuantizeLinear takes fp16 with a scale of fp16
_LARGEST = 127  # and its negative: symmetric
_BINS = 2048
_HELD = 0.99999  # share of an activation's numbers that int8 holds; 0.9999 cuts what counts
_ROWS = 8  # at once
_MATRIX = 2  # axes

Array = npt.NDArray[Any]


def to_int8(source: Path, target: Path, calibration: Batch) -> frozenset[str]:
    """Convert an fp32 file, its activations' ranges taken from `calibration` [texts, seq].

    Inputs and outputs keep their types. Returns the first outputs of what multiplies in int8.
    """
    graph = read_half_graph(source)
    chosen = {node.output[0]: node for node in graph.nodes if _is_of_weights(node, graph)}
    write_converted(graph, FP16, graph.halves, target)
    model = _of_opset(onnx.load(str(target)))
    held = held_values(source, {node.input[0] for node in chosen.values()}, calibration)
    made = [node for node in model.graph.node if node.op_type in MATMULS]
    given = [node for node in graph.nodes if node.op_type in MATMULS]
    writer = _Writer(graph)
    for old, new in zip(given, made, strict=True):
        if old.output[0] in chosen:
            writer.quantise(old, new, held[old.input[0]])
    _put_before(model, writer)
    save_onnx(model, target)
    return frozenset(chosen)


def _is_of_weights(node: NodeProto, graph: HalfGraph) -> bool:
    """Tell if a node multiplies a matrix of weights, in half precision."""
    weights = graph.weights.get(node.input[1]) if node.op_type in MATMULS else None
    is_matrix = weights is not None and len(weights.dims) == _MATRIX
    return is_matrix and node.output[0] in graph.matmuls and node.input[0] not in graph.weights


class _Writer:
    """Makes Q/DQ nodes, each activation and each weight once."""

    def __init__(self, graph: HalfGraph) -> None:
        self._graph = graph
        self.before: dict[str, list[NodeProto]] = collections.defaultdict(list)
        self.tensors: dict[str, TensorProto] = {}
        self._made: set[str] = set()

    def quantise(self, old: NodeProto, new: NodeProto, held: float) -> None:
        """Let `new`, which is `old` in half precision, take both operands from DQ."""
        before = self.before[new.output[0]]
        transposed = any(a.name == "transB" and a.i for a in old.attribute)
        weights = self._weights(old.input[1], axis=0 if transposed else 1, before=before)
        new.input[0] = self._activation(new.input[0], held, before)
        new.input[1] = weights

    def _activation(self, name: str, held: float, before: list[NodeProto]) -> str:
        scale = self._tensor(f"{name}/scale", _scales(np.array(held)))
        zero = self._tensor(f"{name}/zero", np.array(0, np.int8))
        rounded, result = f"{name}/int8", f"{name}/dequantised"
        if result not in self._made:
            self._made.add(result)
            for kind, taken, given in (
                ("QuantizeLinear", name, rounded),
                ("DequantizeLinear", rounded, result),
            ):
                before.append(helper.make_node(kind, [taken, scale, zero], [given], given))
        return result

    def _weights(self, name: str, *, axis: int, before: list[NodeProto]) -> str:
        result = f"{name}/dequantised{axis}"
        if result not in self._made:
            self._made.add(result)
            values = self._values(name)
            scales = _scales(np.abs(values).max(axis=1 - axis))
            steps = values / np.expand_dims(scales.astype(np.float32), 1 - axis)
            rounded = np.clip(np.rint(steps), -_LARGEST, _LARGEST).astype(np.int8)
            taken = [
                self._tensor(f"{name}/int8{axis}", rounded),
                self._tensor(f"{name}/scales{axis}", scales),
                self._tensor(f"{name}/zeros{axis}", np.zeros(scales.shape, np.int8)),
            ]
            before.append(helper.make_node("DequantizeLinear", taken, [result], result, axis=axis))
        return result

    def _values(self, name: str) -> Array:
        tensor = self._graph.weights[name]
        values: Array = values_of(tensor, self._graph.folder).reshape(tensor.dims)
        return values

    def _tensor(self, name: str, values: Array) -> str:
        self.tensors.setdefault(name, numpy_helper.from_array(values, name))
        return name


def _scales(largest: Array) -> Array:
    """Steps of int8 up to `largest`, in fp16; 1 where there is nothing but zeros."""
    scales = (largest / _LARGEST).astype(np.float16)
    return np.where(scales > 0, scales, np.float16(1))


def _put_before(model: ModelProto, writer: _Writer) -> None:
    """Put the new nodes before those that take them; weights that nobody takes any more go."""
    nodes = [n for node in model.graph.node for n in (*writer.before[node.output[0]], node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    taken = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in taken]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *writer.tensors.values()])


def _of_opset(model: ModelProto) -> ModelProto:
    """The model with operators of the opset that Q/DQ in fp16 need, or of its own later one."""
    if opset_of(model) >= _OPSET:
        return model
    weights = list(model.graph.initializer)
    try:
        result = version_converter.convert_version(_skeleton(model), _OPSET)
    except Exception as error:  # the converter raises its own, unrelated kinds
        raise EngineError(
            f"its operators of opset {opset_of(model)} cannot be those of {_OPSET}, which int8 "
            f"with fp16 needs: {error}; export the model with opset {_OPSET} or later"
        ) from error
    del result.graph.input[len(model.graph.input) :]
    result.graph.initializer.extend(weights)
    return result


def _skeleton(model: ModelProto) -> ModelProto:
    """The model with its weights among the inputs, without their values."""
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.initializer[:]
    known = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in known:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            result.graph.input.append(info)
    return result


def held_values(source: Path, names: Collection[str], batch: Batch) -> Mapping[str, float]:
    """The magnitude that `_HELD` of the numbers of each named value are within.

    Numbers are counted in bins up to the largest: two passes over the texts.
    """
    largest: dict[str, float] = dict.fromkeys(names, 0.0)
    counts = {name: np.zeros(_BINS, np.int64) for name in names}
    with scratch_folder() as folder:
        path = _with_outputs(source, folder / "watched.onnx", largest)
        for found in _runs(path, list(names), batch):
            largest |= {n: max(largest[n], float(np.abs(v).max())) for n, v in found.items()}
        for found in _runs(path, list(names), batch):
            for name, values in found.items():
                edges = (0.0, largest[name] or 1.0)
                counts[name] += np.histogram(np.abs(values), _BINS, edges)[0]
    return {name: largest[name] * _share(count) for name, count in counts.items()}


def _share(counts: Array) -> float:
    """The part of the bins that holds enough."""
    wanted = _HELD * counts.sum()
    return float(np.searchsorted(np.cumsum(counts), wanted) + 1) / _BINS


def _with_outputs(source: Path, path: Path, names: Collection[str]) -> Path:
    model = onnx.load(str(source))
    known = {value.name for value in (*model.graph.output, *model.graph.input)}
    for name in names:
        if name not in known:
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    save_onnx(model, path)
    return path


def _runs(path: Path, names: list[str], batch: Batch) -> Iterator[dict[str, Array]]:
    session = session_of(path)
    made = [name for name in names if name not in batch]  # an input is no output
    for part in chunks(batch, _ROWS):
        found = dict(zip(made, session.run(made, dict(part)) if made else [], strict=True))
        yield {name: found[name] if name in found else part[name] for name in names}
