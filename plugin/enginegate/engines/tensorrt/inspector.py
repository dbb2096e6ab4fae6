"""What TensorRT's engine inspector says: which type each matrix multiplication ran in.

The inspector's JSON has a `Layers` list; each layer names its kernel (`TacticName`), its inputs
with their types, and in `Metadata` the ONNX nodes that went into it. A type is in `DataType` from
TensorRT 11 on, before in `Format/Datatype` or `Datatype`, as one word or in a sentence.

A kernel's name counts for its operands alone: what it writes and what it sums up in are other
types. A gemm of XMMA is called `f16f32_f16f32_f32`: first operand and result, second operand and
sum, epilogue. Of cuBLAS and CUTLASS it is `[result_]<sum><tile>gemm[_operand]`.
"""

import collections
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from enginegate.errors import EngineError

Layer = Mapping[str, Any]
_NODE = re.compile(r"\[ONNX Layer: ([^\]|]*?) *[\]|]")  # `[ONNX Layer: x | Local Function: f]`
_ELEMENT = r"(tf32|bf16|f16|f32|f64|i4|i8|i32|u8|e2m1|e4m3|e5m2)"
_XMMA = re.compile(rf"(?<![a-z0-9]){_ELEMENT}{_ELEMENT}_{_ELEMENT}{_ELEMENT}(?![a-z0-9])")
_OPERAND = r"(tf32|bf16|fp16|f16|fp32|f32|int8|s8|u8|e4m3|e5m2)"
_BLAS = re.compile(
    rf"(?<![a-z])(?:{_OPERAND}_)?([hsi])(\d*){_OPERAND}?gemm(?:_{_OPERAND})?(?![a-z])"
)
_BY_SUM = MappingProxyType({"h": "f16", "i": "i8"})
_TYPES = MappingProxyType(
    {
        **dict.fromkeys(("float", "fp32", "f32"), "f32"),
        **dict.fromkeys(("half", "fp16", "f16"), "f16"),
        **dict.fromkeys(("bfloat16", "bf16"), "bf16"),
        **dict.fromkeys(("int8", "i8", "s8"), "i8"),
        **dict.fromkeys(("uint8", "u8"), "u8"),
        **dict.fromkeys(("fp8", "e4m3", "e5m2"), "f8"),
        **dict.fromkeys(("fp4", "e2m1"), "f4"),
        **dict.fromkeys(("int4", "i4"), "i4"),
        "tf32": "tf32",
        "f64": "f64",
    }
)
_MOVERS = frozenset({"constant", "move", "noop", "reformat", "shuffle", "signal", "wait"})
_MULTIPLIES = re.compile(r"gemm|gemv|mha|matmul|matrixmultiply|convolution|myl_fc")
UNSEEN = "unseen"
UNTOLD = "f32 or tf32"  # operands of f32, by a kernel whose name does not say how


def types_of(texts: Sequence[str], matmuls: Collection[str], *, tf32: bool) -> dict[str, int]:
    """Count the ONNX nodes named in `matmuls` by the type they ran in; `unseen` if none tells.

    `texts` are the inspector's JSON, one for each batch size; a node that ran in several types is
    counted as all of them, `f16 or f32`. `tf32`: the builder was free to take TF32, so that f32 is
    only what a kernel's name says; without it a kernel that does not tell multiplies f32 as such.
    Raises EngineError if it is no JSON of layers or holds layer names only.
    """
    plans = [[_checked(layer) for layer in _layers(text)] for text in texts]
    known = {} if tf32 else {UNTOLD: "f32"}
    found: collections.Counter[str] = collections.Counter()
    for node in matmuls:
        kinds = {known.get(kind, kind) for layers in plans for kind in (_type_of(node, layers),)}
        found[" or ".join(sorted(kinds))] += 1
    return dict(found)


def _layers(text: str) -> Iterable[Any]:
    try:
        return list(json.loads(text)["Layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"TensorRT's engine inspector gave no list of layers: {error!r}"
        ) from error


def _checked(layer: Any) -> Layer:
    if not isinstance(layer, Mapping):
        raise EngineError(
            f"TensorRT's engine inspector names layers only ({layer!r}): the plan was built "
            "without ProfilingVerbosity.DETAILED; delete it from the engine cache"
        )
    return layer


def _nodes(layer: Layer) -> tuple[str, ...]:
    return tuple(_NODE.findall(str(layer.get("Metadata", ""))))


def _type_of(node: str, layers: Sequence[Layer]) -> str:
    """Of all layers that the node went into, that of the one that multiplies, else of any."""
    mine = [layer for layer in layers if node in _nodes(layer) and not _only_moves(layer)]
    multiplying = [layer for layer in mine if _multiplies(layer)]
    return next(map(_type_of_layer, multiplying or mine), UNSEEN)


def _only_moves(layer: Layer) -> bool:
    return str(layer.get("LayerType", "")).lower() in _MOVERS


def _multiplies(layer: Layer) -> bool:
    texts = (str(layer.get(key, "")).lower() for key in ("LayerType", "TacticName", "Name"))
    return any(_MULTIPLIES.search(text) for text in texts)


def _type_of_layer(layer: Layer) -> str:
    tactic = str(layer.get("TacticName", "")).lower()
    return _by_xmma(tactic) or _by_blas(tactic, layer) or _by_inputs(layer, UNTOLD)


def _by_xmma(tactic: str) -> str:
    """The type of both operands; `unseen` for two types, which are none of an engine's own."""
    found = _XMMA.search(tactic)
    if not found:
        return ""
    operands = {_TYPES.get(found[index], UNSEEN) for index in (1, 3)}
    if "tf32" in operands:
        return "tf32"  # the first may be stored as f32
    return operands.pop() if len(operands) == 1 else UNSEEN


def _by_blas(tactic: str, layer: Layer) -> str:
    """Of a name that says no operand: fp16 sums fp16, int32 sums int8, a tile is no f32's."""
    found = _BLAS.search(tactic)
    if not found:
        return ""
    result, sums, tile, inside, operand = found.groups()
    if named := inside or operand or result:
        return _TYPES[named]
    return _BY_SUM.get(sums) or (_by_inputs(layer, "tf32") if tile else "f32")


def _by_inputs(layer: Layer, of_floats: str) -> str:
    """The type of most matrices among the inputs: masks and scales may be of another."""
    counts = collections.Counter(_matrices(layer)).most_common(2)
    if not counts or len({count for _, count in counts}) < len(counts):
        return UNSEEN
    return of_floats if counts[0][0] == "f32" else counts[0][0]


def _matrices(layer: Layer) -> Iterator[str]:
    for tensor in layer.get("Inputs", ()):
        sizes = tensor.get("Dimensions", (0, 0))
        name = _type_named(tensor)
        if name and len(sizes) > 1 and math.prod(sizes) != 1:  # else a bias, or a scalar
            yield name


def _type_named(tensor: Mapping[str, Any]) -> str:
    said = (str(tensor[key]) for key in tensor if key.lower().endswith("datatype"))
    words = re.findall("[a-z0-9]+", next(said, "").lower())
    return next((_TYPES[word] for word in words if word in _TYPES), "")
