"""What a graph computes of shapes, computed beforehand, so that every size becomes known."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

Values = dict[str, npt.NDArray[np.generic]]

_SHAPE = "Shape"
_ARITHMETIC = """
    Add Cast Concat Constant ConstantOfShape Div Equal Expand Gather Identity Max Min Mod Mul Range
    ReduceProd Reshape Shape Size Slice Squeeze Sub Unsqueeze Where
"""


def fold_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with sizes, and what is made of sizes and constants alone, as constants.

    `model` carries its inferred shapes; they are dropped, for another inference.
    """
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    sizes = {
        value.name: np.array([d.dim_value for d in value.type.tensor_type.shape.dim], np.int64)
        for value in (*model.graph.value_info, *model.graph.input)
        if _known(value)
    }
    left = [node for node in model.graph.node if not _fold(node, values, sizes)]
    return _with_constants(model, left, values)


def _known(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim)


def _fold(node: onnx.NodeProto, values: Values, sizes: Mapping[str, npt.NDArray[np.int64]]) -> bool:
    """Add what the node gives to `values` if that is known; whether it was."""
    if node.op_type == _SHAPE and node.input[0] in sizes:
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        wanted = slice(ends.get("start"), ends.get("end"))
        values[node.output[0]] = sizes[node.input[0]][wanted]
        return True
    if node.domain or node.op_type not in _ARITHMETIC.split():
        return False
    if not all(name in values for name in node.input if name):
        return False
    given = {name: values[name] for name in node.input if name}
    found = ReferenceEvaluator(node).run(None, given)
    values |= dict(zip(node.output, map(np.asarray, found), strict=True))
    return True


def _with_constants(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], values: Values
) -> onnx.ModelProto:
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    del folded.graph.node[:], folded.graph.initializer[:], folded.graph.value_info[:]
    folded.graph.node.extend(nodes)
    folded.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
    return folded
