"""FLOPs of a model from its ONNX graph, exact at every batch size and sequence length."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginegate.diagnostics.roofline.graph import Node, Tensor, read_graph
from enginegate.diagnostics.roofline.operators import Work, work_of
from enginegate.diagnostics.roofline.polynomial import CHECK, POINTS, Point, Polynomial, fit, total
from enginegate.errors import ModelError

BACKBONE, HEAD = "backbone", "head"
_BLOCK = re.compile(r"(?:|.*?\.)(?:layers?|blocks?|h)\.\d+(?=\.|$)")
_LOOKUP = "Gather"
_VIEWS = frozenset(
    ["Constant", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"]
)
_CHOOSING = frozenset(
    [_LOOKUP, "GatherElements", "GatherND", "Slice", "Split"]
)  # read what they write

Views = Mapping[Point, tuple[Node, ...]]


@dataclass(frozen=True)
class Layer:
    """The operators of one module.

    Attributes:
        name: path of the module; of an operator without one, its own name.
        block: path of the repeated block it belongs to; empty outside of the blocks.
        part: `backbone`, or `head` for what runs on one vector a text.
        kinds: types of its operators that compute, each once.
        parameters: floating-point constants it owns.
        weights: those of them that every call reads whole, which a table of vectors is not.
        matmul: FLOPs of multiply-adds, 2 each.
        other: all other FLOPs.
        thop: thop's count.
        fused: activation elements that its matrix products read and write, and vectors looked up.
        unfused: those that each of its operators reads and writes, but for mere views.
    """

    name: str
    block: str
    part: str
    kinds: tuple[str, ...]
    parameters: int
    weights: int
    matmul: Polynomial
    other: Polynomial
    thop: Polynomial
    fused: Polynomial
    unfused: Polynomial

    @property
    def flops(self) -> Polynomial:
        """True FLOPs."""
        return self.matmul + self.other


@dataclass(frozen=True)
class Cost:
    """What one call of a model costs.

    Attributes:
        layers: in order of execution.
        uncounted: operators without a rule, as `kind x count`; the FLOPs are a lower bound then.
    """

    layers: tuple[Layer, ...]
    uncounted: tuple[str, ...]

    def of(self, part: str) -> tuple[Layer, ...]:
        """The layers of a part."""
        return tuple(layer for layer in self.layers if layer.part == part)

    @property
    def blocks(self) -> dict[str, tuple[Layer, ...]]:
        """The layers of each repeated block."""
        names = dict.fromkeys(layer.block for layer in self.layers if layer.block)
        return {n: tuple(layer for layer in self.layers if layer.block == n) for n in names}


def true_flops(layers: Iterable[Layer]) -> Polynomial:
    """2 for each multiply-add, and all other arithmetic."""
    return total(layer.flops for layer in layers)


def matmul_flops(layers: Iterable[Layer]) -> Polynomial:
    """2 for each multiply-add of matrix products: what torch's FlopCounterMode counts."""
    return total(layer.matmul for layer in layers)


def thop_flops(layers: Iterable[Layer]) -> Polynomial:
    """Sum of what the package thop calls FLOPs."""
    return total(layer.thop for layer in layers)


def cost_of(path: Path, output: str = "") -> Cost:
    """The cost of an ONNX model, its dynamic axes 0 and 1 being batch and sequence.

    `output` names the embedding. Raises ModelError for a file that cannot be read, a dynamic axis
    that is neither, or work that is no polynomial of batch and sequence.
    """
    graph = read_graph(path, output)
    views = {point: graph.at(point) for point in (*POINTS, CHECK)}
    nodes = views[CHECK]
    head = _head(views, graph.output)
    layers: dict[tuple[str, str], list[int]] = {}
    for index, node in enumerate(nodes):
        part = HEAD if index in head else BACKBONE
        layers.setdefault((node.scope, part), []).append(index)
    owners = _owners(nodes)
    found = (_layer(views, *key, members, owners) for key, members in layers.items())
    return Cost(
        tuple(layer for layer in found if layer.flops or layer.parameters), _uncounted(nodes)
    )


def _uncounted(nodes: Sequence[Node]) -> tuple[str, ...]:
    counts = Counter(node.kind for node in nodes if work_of(node) is None)
    return tuple(f"{kind} x {count}" for kind, count in sorted(counts.items()))


def _head(views: Views, output: str) -> frozenset[int]:
    """Indices of the nodes between the embedding and the last that reads something per token.

    Empty where the length is fixed in the file: nothing tells token from text then.
    """
    short, long = views[POINTS[0]], views[POINTS[1]]
    makers = {tensor.name: n for n, node in enumerate(short) for tensor in node.outputs}
    found: set[int] = set()
    waiting = [output]
    while waiting:
        index = makers.get(waiting.pop())
        if index is not None and index not in found and _reads_texts(short[index], long[index]):
            found.add(index)
            waiting += [t.name for t in short[index].given if not t.constant]
    return frozenset(found) if len(found) < len(makers) else frozenset()


def _reads_texts(short: Node, long: Node) -> bool:
    """Tell if no input of a node grows with the length; seen at two lengths."""
    pairs = zip(short.given, long.given, strict=True)
    return all(a.constant or (a.shape is not None and a.shape == b.shape) for a, b in pairs)


def _owners(nodes: Sequence[Node]) -> dict[str, int]:
    """The first node that reads each floating-point constant; numbers alone are no parameters."""
    owners: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for tensor in node.given:
            if tensor.constant and tensor.floating and tensor.shape:
                owners.setdefault(tensor.name, index)
    return owners


def _layer(
    views: Views, scope: str, part: str, members: Sequence[int], owners: Mapping[str, int]
) -> Layer:
    nodes = [views[CHECK][index] for index in members]
    owned = {t.name: t for i, n in zip(members, nodes, strict=True) for t in _own(i, n, owners)}
    tables = {n.given[0].name for n in nodes if n.kind == _LOOKUP}
    whole = [t.elements for name, t in owned.items() if name not in tables]
    block = _BLOCK.match(scope)

    def fitted(measure: Callable[[Node], int]) -> Polynomial:
        return total(_fitted(views, index, measure) for index in members)

    return Layer(
        name=scope,
        block=block[0] if block else "",
        part=part,
        kinds=tuple(dict.fromkeys(n.kind for n in nodes if _computes(n))),
        parameters=sum(t.elements for t in owned.values()),
        weights=sum(whole),
        matmul=fitted(lambda node: _work(node).matmul),
        other=fitted(lambda node: _work(node).other),
        thop=fitted(lambda node: _work(node).thop),
        fused=fitted(_fused),
        unfused=fitted(_unfused),
    )


def _own(index: int, node: Node, owners: Mapping[str, int]) -> list[Tensor]:
    return [t for t in node.given if owners.get(t.name) == index]


def _fitted(views: Views, index: int, measure: Callable[[Node], int]) -> Polynomial:
    found = fit(lambda point: measure(views[point][index]))
    if found is None:
        node = views[CHECK][index]
        raise ModelError(
            f"the work of {node.name} ({node.kind}) is no polynomial of batch and sequence: "
            "its shapes depend on something else; export the model without that"
        )
    return found


def _work(node: Node) -> Work:
    return work_of(node) or Work()


def _computes(node: Node) -> bool:
    work = _work(node)
    return bool(work.matmul or work.other)


def _fused(node: Node) -> int:
    if node.kind == _LOOKUP and node.given[0].constant and node.given[0].floating:
        return node.outputs[0].elements
    return _activations(node) if _work(node).matmul else 0


def _unfused(node: Node) -> int:
    if node.kind in _VIEWS or node.outputs[0].constant or not node.outputs[0].floating:
        return 0
    return 2 * node.outputs[0].elements if node.kind in _CHOOSING else _activations(node)


def _activations(node: Node) -> int:
    tensors = (*node.given, *node.outputs)
    return sum(t.elements for t in tensors if t.floating and not t.constant)
