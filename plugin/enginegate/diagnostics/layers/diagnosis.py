"""What an engine spends its time on, and which of its layers damage its embeddings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from enginegate.diagnostics.layers.rebuild import BLAME_TEXTS, Rebuilder, rebuilder_of
from enginegate.diagnostics.layers.search import ROUNDING, Array, Blamed, embedding_error, rank
from enginegate.engines import Built, Profile, Profiles, get_backend
from enginegate.errors import EngineError
from enginegate.models import Exported, Layer, Workload, read_layers

PROFILED_BATCH = 8
_KERNELS = 10  # told of each engine
_SAME = 0.1  # two damages that differ by less, relative to the larger, are of the same engine
_CULPRIT = 0.1  # share that makes a layer worth naming
_DIVERGED = 0.1  # local error, as a share of the damage, that makes a divergence


@dataclass(frozen=True)
class Diagnosis:
    """Layers by what repairing each gives back, None where not sought, and what else to say."""

    layers: tuple[Blamed, ...] | None
    notes: tuple[str, ...]


def profiled(built: Built, workload: Workload, threads: int) -> Profile | None:
    """Profile an engine, its longest kernels only; None if its backend does not tell."""
    backend = get_backend(built.backend)
    if not isinstance(backend, Profiles):
        return None
    entry, batch = built.entry, workload.batch(PROFILED_BATCH)
    found = backend.profile(entry.folder, entry.properties, batch, threads)
    return replace(found, kernels=found.kernels[:_KERNELS])


def blamed(
    built: Built,
    model: Exported,
    workload: Workload,
    embeddings: Array,
    reference: Array,
    threads: int,
) -> Diagnosis:
    """The engine's layers blamed, or a note why they cannot be."""
    try:
        rebuilder = rebuilder_of(built, model, workload, threads)
    except EngineError as error:
        return Diagnosis(None, (f"blame: not possible: {error}",))
    found = workload.used(embeddings)
    return blame_layers(rebuilder, read_layers(model.onnx), found, reference)


def blame_layers(
    rebuilder: Rebuilder, layers: Sequence[Layer], embeddings: Array, reference: Array
) -> Diagnosis:
    """Blame the layers of an engine that gave `embeddings` for texts of which `reference` is right.

    Both float32 [texts, dim]; the first `BLAME_TEXTS` are used.
    """
    found, expected = embeddings[:BLAME_TEXTS], reference[:BLAME_TEXTS]
    whole = embedding_error(found, expected)
    again = embedding_error(rebuilder.embed(frozenset()), expected)
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
