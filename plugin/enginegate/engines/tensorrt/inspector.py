"""What TensorRT's engine inspector says: which type each matrix multiplication ran in.

The inspector's JSON has a `Layers` list; each layer names its kernel (`TacticName`), the types of
its inputs (`Format/Datatype`), and in `Metadata` the ONNX nodes that went into it.
"""

import collections
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from enginegate.errors import EngineError

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_KERNELS = (  # the name of a kernel says what it multiplies, before what it adds up in
    (re.compile(r"tf32"), "tf32"),
    (re.compile(r"bf16"), "bf16"),
    (re.compile(r"i8i8|i8i32|_i8_|int8|imma|s8s8"), "i8"),
    (re.compile(r"e4m3|fp8|f8f8"), "f8"),
    (re.compile(r"f16f16|fp16|_h\d*gemm|hgemm|f16_f16"), "f16"),
    (re.compile(r"f32f32|sgemm|simt_f32"), "f32"),
)
_DATATYPES = (
    ("bfloat16", "bf16"),
    ("bf16", "bf16"),
    ("half", "f16"),
    ("fp16", "f16"),
    ("int8", "i8"),
    ("fp8", "f8"),
    ("float", "f32"),
    ("fp32", "f32"),
)
_MOVERS = ("constant", "move", "noop", "reformat", "shuffle")
UNSEEN = "unseen"


def types_of(text: str, matmuls: Collection[str]) -> dict[str, int]:
    """Count the ONNX nodes named in `matmuls` by the type they ran in; `unseen` if none tells.

    `text` is the inspector's JSON. Raises EngineError if it is none or holds layer names only.
    """
    layers = [_checked(layer) for layer in _layers(text)]
    return dict(collections.Counter(_type_of(node, layers) for node in matmuls))


def _layers(text: str) -> Iterable[Any]:
    try:
        return list(json.loads(text)["Layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"TensorRT's engine inspector gave no list of layers: {error!r}"
        ) from error


def _checked(layer: Any) -> Mapping[str, Any]:
    if not isinstance(layer, Mapping):
        raise EngineError(
            f"TensorRT's engine inspector names layers only ({layer!r}): the plan was built "
            "without ProfilingVerbosity.DETAILED; delete it from the engine cache"
        )
    return layer


def _nodes(layer: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_NODE.findall(str(layer.get("Metadata", ""))))


def _type_of(node: str, layers: Sequence[Mapping[str, Any]]) -> str:
    """Of all layers that the node went into, that of the one whose kernel names what it does."""
    mine = [layer for layer in layers if node in _nodes(layer)]
    kernels = [name for layer in mine if (name := _type_of_kernel(layer))]
    moved = [_first_type(layer.get("Inputs", ())) for layer in mine if not _only_moves(layer)]
    return next(iter([*kernels, *moved]), UNSEEN)


def _type_of_kernel(layer: Mapping[str, Any]) -> str:
    tactic = str(layer.get("TacticName", "")).lower()
    return next((name for pattern, name in _KERNELS if pattern.search(tactic)), "")


def _only_moves(layer: Mapping[str, Any]) -> bool:
    return str(layer.get("LayerType", "")).lower() in _MOVERS


def _first_type(tensors: Iterable[Mapping[str, Any]]) -> str:
    texts = [str(t.get("Format/Datatype") or t.get("Datatype") or "").lower() for t in tensors]
    found = (name for text in texts for word, name in _DATATYPES if word in text)
    return next(found, UNSEEN)
