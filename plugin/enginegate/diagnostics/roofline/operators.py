"""What each ONNX operator computes. The conventions, all of them, are here.

A FLOP is one addition, multiplication, division, comparison or elementary function (exp, erf, tanh,
square root …) on floating-point numbers. Work on integers and truth values counts as none, and so
does moving, choosing or converting values. A bias is an addition per element.

`thop` counts otherwise, and its figures are known as FLOPs too: one per multiply-add of a layer
with weights, none for its bias, 4 per element of a LayerNorm with scale and shift (2 without),
nothing else; a product of two activations, as in attention, is none of its layers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from enginegate.diagnostics.roofline.graph import Node, Tensor


@dataclass(frozen=True)
class Work:
    """What one operator does.

    Attributes:
        matmul: FLOPs of multiply-adds in matrix products and convolutions, 2 each.
        other: all other FLOPs.
        thop: the same operator in thop's count.
    """

    matmul: int = 0
    other: int = 0
    thop: int = 0


Rule = Callable[[Node], Work]


def work_of(node: Node) -> Work | None:
    """The work of a node; None for an operator without a rule here.

    Raises ModelError if a shape that matters is not known.
    """
    rule = _RULES.get(node.kind)
    if rule is None:
        return None
    return rule(node) if node.floating and not node.outputs[0].constant else Work()


def _nothing(_node: Node) -> Work:
    return Work()


def _per_output(flops: int) -> Rule:
    return lambda node: Work(other=flops * node.outputs[0].elements)


def _per_input(flops: int) -> Rule:
    return lambda node: Work(other=flops * node.given[0].elements)


def _variadic(node: Node) -> Work:
    """Sum, Max, Min of several tensors; of Clip, a comparison for each bound that is there."""
    return Work(other=(len(node.given) - 1) * node.outputs[0].elements)


def _matmul(node: Node) -> Work:
    """[…, m, k] x […, k, n]: k multiply-adds for each output element."""
    left, right = node.given[:2]
    return _product(node.outputs[0], left.sizes[-1], weighted=left.constant or right.constant)


def _gemm(node: Node) -> Work:
    """[m, k] x [k, n] + c."""
    left, right = node.given[:2]
    inner = left.sizes[0 if node.attributes.get("transA") else -1]
    weighted = left.constant or right.constant
    return _with_bias(_product(node.outputs[0], inner, weighted=weighted), node)


def _conv(node: Node) -> Work:
    """Weights [out, in / groups, *kernel]: their size / out multiply-adds for each output."""
    weights = node.given[1]
    inner = math.prod(weights.sizes[1:])
    return _with_bias(_product(node.outputs[0], inner, weighted=weights.constant), node)


def _product(output: Tensor, inner: int, *, weighted: bool) -> Work:
    macs = output.elements * inner
    return Work(matmul=2 * macs, thop=macs if weighted else 0)


def _with_bias(product: Work, node: Node) -> Work:
    """A third input is the bias."""
    added = node.outputs[0].elements if len(node.given) > 2 else 0  # noqa: PLR2004
    return Work(product.matmul, added, product.thop)


def _layer_norm(node: Node) -> Work:
    """Mean, difference, square, its mean, scaling by 1 / deviation: 5; scale and shift: 2."""
    elements, affine = node.given[0].elements, len(node.given) - 1
    return Work(other=(5 + affine) * elements, thop=(4 if affine else 2) * elements)


def _rms_norm(node: Node) -> Work:
    """Square, its mean, scaling by 1 / root: 3; scale: 1."""
    return Work(other=(2 + len(node.given)) * node.given[0].elements)


def _gelu(node: Node) -> Work:
    """Half of x (1 + erf(x / sqrt 2)): 5; with tanh(sqrt(2 / pi) (x + 0.044715 x^3)): 9."""
    tanh = node.attributes.get("approximate", b"none") == b"tanh"
    return Work(other=(9 if tanh else 5) * node.outputs[0].elements)


_MOVING = """
    Cast CastLike Concat Constant ConstantOfShape Dropout Expand EyeLike Flatten Gather
    GatherElements GatherND Identity NonZero OneHot Pad Range Reshape ScatterElements ScatterND
    Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where
    And Or Not Xor IsNaN IsInf BitwiseAnd BitwiseOr BitwiseNot
"""
_ONE_EACH = """
    Add Sub Mul Div Neg Abs Sqrt Reciprocal Exp Log Pow Tanh Erf Floor Ceil Round Sign Sin Cos
    Equal Greater GreaterOrEqual Less LessOrEqual Relu Mod
"""
_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(_MOVING.split(), _nothing),
        **dict.fromkeys(_ONE_EACH.split(), _per_output(1)),
        **dict.fromkeys(("Clip", "Max", "Min", "Sum"), _variadic),
        **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"), _per_input(1)),
        **dict.fromkeys(("ReduceL2", "ReduceSumSquare"), _per_input(2)),
        "ArgMax": _per_input(1),
        "Sigmoid": _per_output(4),  # negate, exp, add, divide
        "Softplus": _per_output(3),  # exp, add, log
        "LeakyRelu": _per_output(2),  # compare, multiply
        "QuantizeLinear": _per_output(2),  # scale, round
        "DequantizeLinear": _per_output(2),  # subtract, scale
        "Softmax": _per_output(5),  # largest, subtract, exp, sum, divide
        "LogSoftmax": _per_output(6),
        "Gelu": _gelu,
        "LayerNormalization": _layer_norm,
        "RMSNormalization": _rms_norm,
        "MatMul": _matmul,
        "Gemm": _gemm,
        "Conv": _conv,
    }
)
