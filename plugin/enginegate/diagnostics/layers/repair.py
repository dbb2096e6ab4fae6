"""The fewest layers to keep in fp32 so that an engine is within its limits, and what they cost."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from enginegate.diagnostics.layers.rebuild import BLAME_TEXTS, Rebuilder, rebuilder_of
from enginegate.diagnostics.layers.search import Array, by_worth, embedding_error, fewest, rank
from enginegate.engines import (
    Built,
    Embeddings,
    Engine,
    Keeps,
    embed_all,
    get_backend,
    median_call_s,
    open_reference,
)
from enginegate.errors import EngineError
from enginegate.models import Exported, Layer, Workload, nodes_of, read_layers
from enginegate.variants import Precision

_BATCH, _CALLS = 8, 9

Accept = Callable[[Embeddings, Engine], tuple[str, ...]]
Build = Callable[[Sequence[str]], Built]


@dataclass(frozen=True)
class Step:
    """An engine that was tried on the way to a repair.

    Attributes:
        kept: layers in fp32.
        recovered_share: share of the damage that is gone.
        speedup: time of the reference / its own.
        enough: whether it is within the limits.
    """

    kept: tuple[str, ...]
    recovered_share: float
    speedup: float
    enough: bool


@dataclass(frozen=True)
class Repair:
    """The fewest layers to keep in fp32, found by search.

    Attributes:
        kept: their names; empty where no set of layers is enough.
        recovered_share: share of the damage that goes with them.
        speedup_before, speedup_after: time of the reference / the engine's, at batch 8.
        configuration: lines for pyproject.toml that keep them; empty where none is enough.
        steps: what was tried, fewest layers first.
    """

    kept: tuple[str, ...]
    recovered_share: float
    speedup_before: float
    speedup_after: float
    configuration: str
    steps: tuple[Step, ...]


@dataclass
class RepairSearch:
    """Tries engines with layers kept, and remembers what came of it.

    Attributes:
        rebuilder: makes them.
        reference: embeddings of all texts, float32 [texts, dim].
        reference_s: seconds of the reference's call.
        accept: what is wrong with an engine's embeddings; empty if they are within the limits.
        steps: what was tried, by the names of the kept layers.
        whole: the damage with nothing kept; known after the first attempt.
    """

    rebuilder: Rebuilder
    reference: Array
    reference_s: float
    accept: Accept
    steps: dict[tuple[str, ...], Step] = field(default_factory=dict)
    whole: float = 0.0

    def attempt(self, kept: Sequence[Layer]) -> Step:
        """Try once to keep these layers. The first attempt must keep none."""
        names = tuple(layer.name for layer in kept)
        if names not in self.steps:
            with self.rebuilder.loaded(nodes_of(kept)) as engine:
                self.steps[names] = self._step(names, engine)
        return self.steps[names]

    def _step(self, names: tuple[str, ...], engine: Engine) -> Step:
        workload = self.rebuilder.workload
        embeddings = workload.used(embed_all(engine, workload.evaluation))
        left = embedding_error(embeddings, self.reference)
        self.whole = self.whole or left
        speedup = self.reference_s / median_call_s(engine, workload.batch(_BATCH), _CALLS)
        recovered = 1 - left / self.whole if self.whole else 0.0
        return Step(names, recovered, speedup, not self.accept(embeddings, engine))


def repaired(
    built: Built,
    build: Build,
    model: Exported,
    workload: Workload,
    reference: Array,
    accept: Accept,
    threads: int,
    needed: Sequence[str] = (),
) -> tuple[Built, Repair | None]:
    """The engine that keeps the fewest layers in fp32 and is within its limits: `build(names)`.

    `needed` are the layers that are to be kept whatever the embeddings are, as their numbers do not
    fit into fp16. The engine itself, with a note, where it is within them already, where no layers
    are enough, or where its backend cannot keep any. The repair is None where none was sought.
    """
    best = built.variant.precision is Precision.BEST
    if best or not (needed or _faults(built, workload, accept, threads)):
        return _noted(built, "repair: nothing to do, its embeddings are within their limits"), None
    try:
        rebuilder = _rebuilder(built, model, workload, threads)
    except EngineError as error:
        return _noted(built, f"repair: not possible: {error}{_in_vain(needed)}"), None
    reference_s = _reference_s(model, workload, threads)
    repairs = RepairSearch(rebuilder, reference, reference_s, accept)
    repair = search(repairs, read_layers(model.onnx), built, needed)
    if not repair.configuration:
        said = "repair: no set of layers kept in fp32 brings it within its limits"
        return _noted(built, said), repair
    again = build(repair.kept)
    return dataclasses.replace(again, notes=(*built.notes, *again.notes)), repair


def _rebuilder(built: Built, model: Exported, workload: Workload, threads: int) -> Rebuilder:
    """The rebuilder of an engine whose backend also builds with layers kept. Raises EngineError."""
    if not isinstance(get_backend(built.backend), Keeps):
        raise EngineError(f"backend {built.backend} cannot keep single layers in fp32")
    return rebuilder_of(built, model, workload, threads)


def _in_vain(needed: Sequence[str]) -> str:
    """The layers that would have to be kept."""
    return f"; numbers beyond fp16 are in {', '.join(needed)}" if needed else ""


def search(
    repairs: RepairSearch, layers: Sequence[Layer], built: Built, needed: Sequence[str] = ()
) -> Repair:
    """The fewest layers to keep, those first that repair most for what they cost.

    Those `needed` and those that the engine keeps already are among them; no others, where they are
    enough.
    """
    before = repairs.attempt(())
    base = tuple(layer for layer in layers if layer.name in needed or layer in built.kept)
    kept = base if base and repairs.attempt(base).enough else _searched(repairs, layers, base)
    after = repairs.attempt(kept)
    return Repair(
        kept=after.kept,
        recovered_share=after.recovered_share,
        speedup_before=before.speedup,
        speedup_after=after.speedup,
        configuration=_configuration(built, after.kept) if kept else "",
        steps=tuple(sorted(repairs.steps.values(), key=lambda step: len(step.kept))),
    )


def _searched(
    repairs: RepairSearch, layers: Sequence[Layer], base: tuple[Layer, ...]
) -> tuple[Layer, ...]:
    """The fewest layers beside `base`, with it; none where no layers are enough."""
    rebuilder, few = repairs.rebuilder, repairs.reference[:BLAME_TEXTS]
    blamed = rank(layers, rebuilder.keeping.touched, rebuilder.embed, few, every=True)
    order = [layer for layer in by_worth(layers, blamed, repairs.whole) if layer not in base]
    more = fewest(order, lambda some: repairs.attempt((*base, *some)).enough)
    return () if more is None else (*base, *more)


def _configuration(built: Built, names: Sequence[str]) -> str:
    listed = ", ".join(f'"{name}"' for name in names)
    return f"[tool.enginegate.models.{built.variant.model}.keep]\n{built.precision} = [{listed}]"


def _faults(built: Built, workload: Workload, accept: Accept, threads: int) -> tuple[str, ...]:
    with built.load(workload, threads) as engine:
        return accept(embed_all(engine, workload.evaluation), engine)


def _reference_s(model: Exported, workload: Workload, threads: int) -> float:
    batch = workload.batch(_BATCH)
    return median_call_s(open_reference(model.onnx, model.output, batch, threads), batch, _CALLS)


def _noted(built: Built, note: str) -> Built:
    return dataclasses.replace(built, notes=(*built.notes, note))
