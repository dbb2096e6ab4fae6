"""Layers of an ONNX graph, named as a person names them: `block 3/attention/self/query`.

A node belongs to the torch module that made it: the exporter notes its path in the node's metadata,
older ones in its name. A graph that tells neither has a layer per node.
"""

import ast
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import Any

from enginegate.errors import OptionError

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_BLOCK = re.compile(r"(?:^|.*\.)(?:layers?|blocks?|h)\.(\d+)(?=\.|$)")
_MULTIPLIES = ("MatMul", "Gemm", "Conv", "Attention")
_TELLING = (*_MULTIPLIES, "Softmax", "LayerNormalization", "Gelu", "Gather")
_BEFORE, _AFTER = "inputs", "pooling"

Module = tuple[str, str]  # path and class


@dataclass(frozen=True)
class Layer:
    """Nodes of one module.

    Attributes:
        name: parts with slashes between them; the first is its group.
        kind: the operation that tells most of what it does.
        nodes: its nodes by the name of their first output, which conversions of a graph keep.
        matmuls: how many of them multiply matrices.
        weights: elements of the weights that those multiply by, as a measure of what it costs.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    matmuls: int
    weights: int = 0

    @property
    def group(self) -> str:
        """`block 3` of `block 3/attention/self/query`."""
        return self.name.partition("/")[0]


def read_layers(path: Path) -> tuple[Layer, ...]:
    """The layers of an ONNX file in order of execution; weights outside the file are not read."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return layers_of(graph.node, {t.name: math.prod(t.dims) for t in graph.initializer})


def layers_of(nodes: Sequence[Any], sizes: Mapping[str, int]) -> tuple[Layer, ...]:
    """The layers of ONNX nodes, which are in order of execution; `sizes` are those of weights."""
    names = _names([_module(node) for node in nodes], nodes)
    members: dict[str, list[Any]] = {}
    for name, node in zip(names, nodes, strict=True):
        members.setdefault(name, []).append(node)
    return tuple(_layer(name, found, sizes) for name, found in members.items())


def _layer(name: str, nodes: Sequence[Any], sizes: Mapping[str, int]) -> Layer:
    kinds = [node.op_type for node in nodes]
    kind = next((kind for kind in _TELLING if kind in kinds), kinds[-1])
    outputs = tuple(node.output[0] for node in nodes)
    matmuls = [node for node in nodes if node.op_type in _MULTIPLIES]
    weights = sum(sizes.get(value, 0) for node in matmuls for value in node.input)
    return Layer(name, kind, outputs, len(matmuls), weights)


def _module(node: Any) -> Module:
    """Path and class of the module that made a node; two empty words where that is not known."""
    notes = {note.key: note.value for note in node.metadata_props}
    if _SCOPES in notes:
        paths, classes = ast.literal_eval(notes[_SCOPES]), ast.literal_eval(notes[_CLASSES])
        named = [i for i, path in enumerate(paths[:-1]) if path and path[0] != "_"]
        inner = max(named, default=None)
        return ("", "") if inner is None else (paths[inner], classes[inner].rpartition(".")[2])
    path, _, _ = node.name.strip("/").rpartition("/")
    return path.replace("/", "."), ""


def _names(modules: Sequence[Module], nodes: Sequence[Any]) -> list[str]:
    if not any(path for path, _ in modules):
        return [node.name or node.output[0] for node in nodes]
    blocks = [_BLOCK.match(path) for path, _ in modules]
    first = next((i for i, block in enumerate(blocks) if block), len(blocks))
    shell = next((block.group() for block in blocks if block), "").split(".")
    return [
        f"block {block[1]}{path[block.end() :].replace('.', '/')}"
        if block
        else _outside(path, kind, shell) or (_BEFORE if index < first else _AFTER)
        for index, ((path, kind), block) in enumerate(zip(modules, blocks, strict=True))
    ]


def _outside(path: str, kind: str, shell: Sequence[str]) -> str:
    """Name of a module that is in no block, without the wrappers that it shares with the blocks."""
    parts = path.split(".") if path else []
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(parts, shell, strict=False))))
    inner = parts[shared:]
    if inner and inner[-1].isdigit():
        inner[-1] = kind.lower()
    return "/".join(inner)


def matching(layers: Iterable[Layer], patterns: Iterable[str]) -> tuple[Layer, ...]:
    """The layers that any pattern names: a layer, a group, or a wildcard such as `*/query`.

    Raises OptionError for a pattern that names none.
    """
    known = tuple(layers)
    wanted: set[str] = set()
    for pattern in patterns:
        found = {layer.name for layer in known if _matches(layer.name, pattern)}
        if not found:
            raise _no_layer(pattern, known)
        wanted |= found
    return tuple(layer for layer in known if layer.name in wanted)


def _no_layer(pattern: str, known: Iterable[Layer]) -> OptionError:
    groups = ", ".join(dict.fromkeys(layer.group for layer in known))
    return OptionError(
        f"keep: no layer is named {pattern!r}; groups are {groups}; pytest --gate-blame lists the "
        "layers"
    )


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}/") or fnmatchcase(name, pattern)


def nodes_of(layers: Iterable[Layer]) -> frozenset[str]:
    """The nodes of several layers."""
    return frozenset(node for layer in layers for node in layer.nodes)


def grouped(layers: Iterable[Layer]) -> Mapping[str, tuple[Layer, ...]]:
    """Layers by group, in order of execution."""
    groups: dict[str, tuple[Layer, ...]] = {}
    for layer in layers:
        groups[layer.group] = (*groups.get(layer.group, ()), layer)
    return groups
