"""Which layers do the damage, and the fewest to keep in fp32: pure, given what embeds the texts."""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from enginegate.models import Layer, grouped, nodes_of

Array = npt.NDArray[np.floating]
Embed = Callable[[frozenset[str]], Array]

_WORTH_REFINING = 0.25  # of what the best group repairs
_LEAST_COST = 0.01
ROUNDING = 1e-10  # a damage of fp32's own rounding; fp16's is a thousand times as much


@dataclass(frozen=True)
class Blamed:
    """What one layer does to the embeddings.

    Attributes:
        layer: its name.
        kind: its most telling operation.
        position: its place in the order of execution, from 0.
        local_error: the damage when only this layer runs as in the engine, all others in fp32.
        repaired_share: share of the engine's damage that goes when only this layer runs in fp32.
    """

    layer: str
    kind: str
    position: int
    local_error: float
    repaired_share: float


def embedding_error(found: Array, reference: Array) -> float:
    """Mean over the texts of half the squared distance, relative to the reference's squared length.

    Of vectors of equal length that is 1 - cosine; it also sees a changed length. Both [texts, dim],
    or [texts, tokens, dim], where a text's vectors are taken for one.
    A text counts 1 at most, and 1 where it is not finite.
    """
    expected, found = (np.reshape(v, (len(v), -1)).astype(np.float64) for v in (reference, found))
    with np.errstate(invalid="ignore", over="ignore"):
        off = ((found - expected) ** 2).sum(axis=1)
        shares = off / (2 * (expected**2).sum(axis=1))
    return float(np.where(shares <= 1, shares, 1.0).mean())


def rank(
    layers: Sequence[Layer],
    touched: Set[str],
    embed: Embed,
    reference: Array,
    *,
    every: bool = False,
) -> tuple[Blamed, ...]:
    """The layers by what repairing each gives back, largest first; then by their local error.

    `embed(nodes)` gives the embeddings of the engine with those nodes in fp32. `touched` are the
    nodes that the engine changed at all. Groups come first; only the layers of groups that repair a
    quarter of what the best one does are tried one by one, or with `every` all of them. Empty where
    the damage is only rounding.
    """
    changed = [layer for layer in layers if not touched.isdisjoint(layer.nodes)]
    whole = embedding_error(embed(frozenset()), reference)
    if whole <= ROUNDING:
        return ()

    def repaired(nodes: frozenset[str]) -> float:
        return 1 - embedding_error(embed(nodes), reference) / whole

    def blamed(layer: Layer) -> Blamed:
        others = nodes_of(other for other in changed if other != layer)
        alone = embedding_error(embed(others), reference)
        share = repaired(frozenset(layer.nodes))
        return Blamed(layer.name, layer.kind, layers.index(layer), alone, share)

    tried = changed if every else _worth_trying(changed, repaired)
    found = [blamed(layer) for layer in tried]
    return tuple(sorted(found, key=lambda b: (-round(b.repaired_share, 2), -b.local_error)))


def _worth_trying(
    layers: Iterable[Layer], repaired: Callable[[frozenset[str]], float]
) -> list[Layer]:
    groups = grouped(layers)
    shares = {name: repaired(nodes_of(members)) for name, members in groups.items()}
    least = _WORTH_REFINING * max(shares.values(), default=0)
    return [layer for name, members in groups.items() if shares[name] >= least for layer in members]


def by_worth(layers: Sequence[Layer], blamed: Sequence[Blamed], whole: float) -> tuple[Layer, ...]:
    """The blamed layers, first those that do most of the damage `whole` for what they cost.

    What a layer does is the mean of what goes when it is the first to be repaired and of what stays
    when it is the last, a short form of its Shapley value. Its cost is the share of the weights
    that it multiplies by, plus a hundredth.
    """
    weights = sum(layer.weights for layer in layers) or 1
    known = {layer.name: layer for layer in layers}

    def does(found: Blamed) -> float:
        return (found.repaired_share + found.local_error / whole) / 2

    def worth(found: Blamed) -> float:
        return does(found) / (known[found.layer].weights / weights + _LEAST_COST)

    return tuple(known[found.layer] for found in sorted(blamed, key=worth, reverse=True))


def fewest(
    order: Sequence[Layer], enough: Callable[[tuple[Layer, ...]], bool]
) -> tuple[Layer, ...] | None:
    """The shortest beginning of `order` that is enough, less the layers it does not need.

    Its length is found by doubling and halving. None where even all are not enough.
    """
    short, long = 0, min(1, len(order))
    while not enough(tuple(order[:long])):
        if long == len(order):
            return None
        short, long = long, min(2 * long, len(order))
    while long - short > 1:
        middle = (short + long) // 2
        short, long = (short, middle) if enough(tuple(order[:middle])) else (middle, long)
    return _pruned(tuple(order[:long]), enough)


def _pruned(
    kept: tuple[Layer, ...], enough: Callable[[tuple[Layer, ...]], bool]
) -> tuple[Layer, ...]:
    """Without each layer that is not needed, tried from the costliest on."""
    for layer in sorted(kept, key=lambda layer: -layer.weights):
        rest = tuple(other for other in kept if other != layer)
        kept = rest if rest and enough(rest) else kept
    return kept
