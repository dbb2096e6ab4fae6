"""From an engine to the layers that damage its embeddings, and what is to be said of that."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from enginegate.blame.layers import read_layers
from enginegate.blame.rebuild import BLAME_TEXTS, Rebuilder
from enginegate.blame.search import ROUNDING, Array, Blamed, damage, rank
from enginegate.models import Exported

_SAME = 0.1  # two damages that differ by less, relative to the larger, are of the same engine
_CULPRIT = 0.1  # share that makes a layer worth naming
_DIVERGED = 0.1  # local error, as a share of the damage, that makes a divergence


@dataclass(frozen=True)
class Diagnosis:
    """Layers by what repairing each gives back, and what else is to be said."""

    layers: tuple[Blamed, ...]
    notes: tuple[str, ...]


def blame_layers(
    rebuilder: Rebuilder, model: Exported, embeddings: Array, reference: Array
) -> Diagnosis:
    """Blame the layers of an engine that gave `embeddings` for texts of which `reference` is right.

    Both float32 [texts, dim]; the first `BLAME_TEXTS` are used. Raises EngineError if it cannot be
    rebuilt.
    """
    found, expected = embeddings[:BLAME_TEXTS], reference[:BLAME_TEXTS]
    layers = read_layers(model.onnx)
    whole = damage(found, expected)
    again = damage(rebuilder.embed(frozenset()), expected)
    ranked = rank(layers, rebuilder.keeping.touched, rebuilder.embed, expected)
    return Diagnosis(ranked, tuple(_notes(ranked, whole, again)))


def _notes(ranked: Sequence[Blamed], whole: float, again: float) -> Iterator[str]:
    if abs(whole - again) > _SAME * max(whole, again):
        yield (
            f"blame: built anew the engine does a damage of {again:.2g}, not {whole:.2g}: it is "
            "stale or of another model, and what is said of its layers is said of the new one"
        )
    if whole <= ROUNDING:
        yield "blame: there is no damage to blame a layer for"
    elif not ranked or ranked[0].repaired_share < _CULPRIT:
        yield (
            f"blame: no layer repairs {_CULPRIT:.0%} of the damage of {whole:.2g}: it is spread "
            "over many, or lies outside the layers (in tokens, in the order of rows)"
        )
    if diverged := [layer for layer in ranked if layer.local_error > _DIVERGED * whole]:
        first = min(diverged, key=lambda layer: layer.position)
        yield f"blame: the first layer to diverge is {first.layer}"
