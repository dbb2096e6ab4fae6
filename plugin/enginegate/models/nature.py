"""What an ONNX file is by itself: the type of its weights, and what of it is quantised."""

import collections
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

from enginegate.variants import Precision

FLOAT, FLOAT16, BFLOAT16 = 1, 10, 16  # of TensorProto.DataType, which never change
HALVES: Mapping[int, Precision] = MappingProxyType(
    {FLOAT16: Precision.FP16, BFLOAT16: Precision.BF16}
)
_MULTIPLY = ("MatMul", "Gemm", "Attention", "Conv")  # in the names of their operators
_PASSING = frozenset({"Transpose", "Reshape", "Identity", "Unsqueeze", "Squeeze"})
_FLOATS_ALL_THE_SAME = ("QuickGelu",)  # a Q, and nothing quantised
_KINDS: Mapping[str, frozenset[int]] = MappingProxyType(  # element types, the coarsest first
    {"int4": frozenset({21, 22}), "fp8": frozenset({17, 18, 19, 20})}
)


@dataclass(frozen=True)
class Nature:
    """What a file is, before anything is built of it.

    Attributes:
        precision: of most of its weights; int8 where anything is quantised.
        kind: `int8`, `int4`, `fp8` and the like where anything is quantised; else empty.
        multiplications: matrix multiplications in it.
        quantised: those of them whose operands both are.
    """

    precision: Precision = Precision.FP32
    kind: str = ""
    multiplications: int = 0
    quantised: int = 0

    @property
    def is_quantised(self) -> bool:
        """Tell if it holds quantised values, of which nothing finer can be made."""
        return bool(self.kind)

    @property
    def words(self) -> str:
        """`fp32`, `fp32 on an fp16 file`, `int8 file, 12 of its 16 multiplications in int8`."""
        if self.is_quantised:
            count = f"{self.quantised} of its {self.multiplications} multiplications"
            return f"{self.kind} file, {count} in {self.kind}"
        own = self.precision is Precision.FP32
        return f"{Precision.FP32}" if own else f"{Precision.FP32} on an {self.precision} file"


def messages(message: Any, kind: str) -> Iterator[Any]:
    """Every message of a kind in a model, in subgraphs, functions and attributes too."""
    name = message.DESCRIPTOR.name
    if name == kind:
        yield message
    if name == "TensorProto":
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from messages(part, kind)


def read_nature(model: Any) -> Nature:
    """The nature of a model, its external data not needed."""
    nodes = list(messages(model, "NodeProto"))
    makers = {name: node for node in nodes for name in node.output}
    products = [node for node in nodes if any(part in node.op_type for part in _MULTIPLY)]
    kind = _kind(model, nodes) if any(map(_is_quantiser, nodes)) else ""
    precision = Precision.INT8 if kind else _precision(model)
    quantised = sum(_multiplies_quantised(node, makers) for node in products)
    return Nature(precision, kind, len(products), quantised)


def has_halves(model: Any) -> bool:
    """Tell if a model keeps or makes any value in 16 bits."""
    tensors = (tensor.data_type for tensor in messages(model, "TensorProto"))
    casts = (node for node in messages(model, "NodeProto") if node.op_type == "Cast")
    made = (attribute.i for node in casts for attribute in node.attribute)
    return any(kind in HALVES for kinds in (tensors, made) for kind in kinds)


def _precision(model: Any) -> Precision:
    """That of most of the weights' values."""
    counts: collections.Counter[int] = collections.Counter()
    for tensor in messages(model, "TensorProto"):
        counts[tensor.data_type] += prod(tensor.dims)
    kinds = {FLOAT: Precision.FP32, **HALVES}
    return max(kinds.items(), key=lambda kind: counts[kind[0]])[1]


def _is_quantiser(node: Any) -> bool:
    name = node.op_type
    starts = name.startswith("Q") and name not in _FLOATS_ALL_THE_SAME
    return starts or any(part in name for part in ("uantize", "Integer", "NBits"))


def _kind(model: Any, nodes: Sequence[Any]) -> str:
    """The coarsest type that a model is quantised to."""
    stated = (a for node in nodes if "NBits" in node.op_type for a in node.attribute)
    if bits := [a.i for a in stated if a.name == "bits"]:
        return f"int{min(bits)}"
    types = {tensor.data_type for tensor in messages(model, "TensorProto")}
    return next((kind for kind, of in _KINDS.items() if types & of), "int8")


def _multiplies_quantised(node: Any, makers: Mapping[str, Any]) -> bool:
    name = node.op_type
    if "Integer" in name or name.startswith(("Q", "DynamicQuantize")):
        return True
    operands = node.input[:2]
    return all(_is_dequantised(operand, makers) for operand in operands)


def _is_dequantised(name: str, makers: Mapping[str, Any]) -> bool:
    """Tell if a value is integers read back, as a runtime fuses them into a product."""
    node = makers.get(name)
    while node is not None and node.op_type in _PASSING:
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"
