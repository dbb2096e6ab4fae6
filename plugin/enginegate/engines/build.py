"""From a variant to an engine in the store, and what it took to get there."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from enginegate.cache import MANIFEST, Entry, Store
from enginegate.engines.api import (
    APART,
    EXPECTED_TYPES,
    ONNX_FILE,
    Backend,
    BuildHints,
    Embeddings,
    Engine,
    Executed,
    Keeping,
    Keeps,
    SupportsBuildHints,
    embed_all,
)
from enginegate.engines.measure import median_call_s
from enginegate.engines.registry import get_backend, is_shipped
from enginegate.errors import EngineError
from enginegate.files import sha256_of, sha256_of_folder, sha256_of_json
from enginegate.machine import library_versions, this_machine
from enginegate.models import (
    AUTO,
    Batch,
    Exported,
    Layer,
    Workload,
    matching,
    nodes_of,
    probe_of,
    read_layers,
)
from enginegate.variants import Precision, Variant

_RECIPE = 3  # raise when the same key would build another engine
_CHOICE_RULES = 2  # raise when the same embeddings would be accepted otherwise
NO_MATMULS = "and it multiplies no matrices: nothing tells which precision ran"
_CHOICE_BATCH = 8
_CHOICE_CALLS = 9
_NO_DEMAND = BuildHints()

Accept = Callable[[Embeddings], tuple[str, ...]]


@dataclass(frozen=True)
class Built:
    """An engine in the store.

    Attributes:
        variant: what was asked for.
        precision: what was built; differs from the variant's only for `best`.
        backend: name of the backend that built it; differs where the asked one would have run
            another precision.
        entry: its files.
        notes: what to say about the way here.
        kept: layers that were kept in fp32.
    """

    variant: Variant
    precision: Precision
    backend: str
    entry: Entry
    notes: tuple[str, ...] = ()
    kept: tuple[Layer, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size of the engine's files."""
        return sum(f.stat().st_size for f in self.entry.folder.iterdir())

    @property
    def content_sha256(self) -> str:
        """Hash of the engine's files, the manifest among them."""
        if not self.entry.files:
            return sha256_of_json(sha256_of_folder(self.entry.folder))
        manifest = sha256_of(self.entry.folder / MANIFEST)
        return sha256_of_json({**self.entry.files, MANIFEST: manifest})

    @property
    def files_sha256(self) -> str:
        """Hash of what was built, without how; empty where that was not verified."""
        return sha256_of_json(dict(self.entry.files)) if self.entry.files else ""

    @property
    def recipe(self) -> Mapping[str, Any]:
        """All that decides what it is, but the machine; empty if not all of that is known.

        Of a backend that a project registers, the code is not known.
        """
        known = is_shipped(self.backend) and self.entry.key
        return {k: v for k, v in self.entry.key.items() if k != "machine"} if known else {}

    @contextlib.contextmanager
    def load(self, workload: Workload, threads: int) -> Iterator[Engine]:
        """The loaded engine; EngineError if it does not load or run."""
        probe = probe_of(workload)
        backend = get_backend(self.backend)
        with backend.load(self.entry.folder, self.entry.properties, probe, threads) as engine:
            yield engine


def build_engine(
    store: Store,
    variant: Variant,
    model: Exported,
    workload: Workload,
    demand: BuildHints = _NO_DEMAND,
    keep: Sequence[str] | None = None,
) -> Built:
    """Build a variant of one precision, or take it from the store. Raises EngineError.

    `keep` names layers to keep in fp32; by default those of the model's definition.
    """
    if variant.precision is Precision.BEST:
        raise ValueError("best is chosen among built engines: use choose_best")
    _refuse_unmakeable(model, variant.precision, keep)
    stand_in = get_backend(variant.backend).stand_in(variant.precision)
    name = stand_in or variant.backend
    backend = get_backend(name)
    patterns = model.spec.keep.get(variant.precision, ()) if keep is None else keep
    kept = matching(read_layers(model.onnx), patterns) if patterns else ()

    def build(folder: Path) -> Mapping[str, Any]:
        try:
            return _write(backend, variant.precision, model, workload.calibration, kept, folder)
        except (RuntimeError, ValueError, TypeError) as error:
            raise EngineError(f"{name} cannot build {variant.id}: {error}") from error

    key = _key(name, variant, model, workload, kept)
    if isinstance(backend, SupportsBuildHints):
        demand = replace(demand, lengths=_lengths(model, workload))
        backend = backend.for_demand(demand)
        key["demand"] = {**demand.key, "seq_len": model.seq_len}  # a plan's shapes
    entry = store.get_or_build("engine", key, build)
    notes = (*filter(None, [entry.note]), *entry.properties.get("notes", ()))
    return Built(variant, variant.precision, name, entry, notes, kept)


def _lengths(model: Exported, workload: Workload) -> tuple[int, ...]:
    """Buckets of tokens that an engine is given, ascending; empty where texts have one length."""
    listed = () if model.spec.lengths == AUTO else model.spec.lengths or ()
    return tuple(sorted({*workload.buckets, *map(int, listed)}))


def _refuse_unmakeable(model: Exported, precision: Precision, keep: Sequence[str] | None) -> None:
    """Raise EngineError for what cannot be made of a file that is quantised already."""
    if not model.nature.is_quantised:
        return
    if precision is not Precision.INT8:
        raise EngineError(
            f"{precision} cannot be made of {model.spec.name}: the reference is an "
            f"{model.nature.words}, and what was rounded is not in it; judge --precision int8, "
            "which takes the file as it is, or name the file from before it was quantised"
        )
    if keep or (keep is None and model.spec.keep.get(precision)):
        raise _nothing_to_keep(model)


def _nothing_to_keep(model: Exported) -> EngineError:
    return EngineError(
        f"no layer of {model.spec.name} can be kept in fp32: the reference is an "
        f"{model.nature.words}, which has them rounded already; name the file from before it was "
        "quantised"
    )


def _write(
    backend: Backend,
    precision: Precision,
    model: Exported,
    calibration: Batch,
    kept: Sequence[Layer],
    folder: Path,
) -> Mapping[str, Any]:
    if not kept:
        return backend.build(model, precision, calibration, folder)
    if not isinstance(backend, Keeps):
        raise EngineError(
            f"{backend.version()} cannot keep single layers in fp32: remove `keep` of {precision} "
            f"from [tool.enginegate.models.{model.spec.name}]"
        )
    return backend.keeping(model, precision, calibration).build(nodes_of(kept), folder)


def _key(
    backend: str, variant: Variant, model: Exported, workload: Workload, kept: Sequence[Layer]
) -> dict[str, Any]:
    calibrated = variant.precision is Precision.INT8
    key = {
        "recipe": _RECIPE,
        "backend": backend,
        "precision": variant.precision,
        "model": model.sha256,
        "output": model.output,
        "calibration": workload.sha256 if calibrated else None,
        "runtime": get_backend(backend).version(),
        "versions": library_versions(),
        "machine": this_machine().as_json(),
    }
    return {**key, "kept": [layer.name for layer in kept]} if kept else key


def keeping_of(built: Built, model: Exported, calibration: Batch) -> Keeping:
    """The engine with layers kept in fp32: its own ONNX graph if it is one, else by its backend.

    Raises EngineError where neither can be done.
    """
    if model.nature.is_quantised:
        raise _nothing_to_keep(model)
    if (built.entry.folder / ONNX_FILE).exists():
        from enginegate.engines.graphs import keeping_in_file

        return keeping_in_file(built.entry.folder, model.onnx, built.entry.properties)
    backend = get_backend(built.backend)
    if isinstance(backend, Keeps):
        return backend.keeping(model, built.precision, calibration)
    raise _keeps_nothing(built.backend)


def _keeps_nothing(backend: str) -> EngineError:
    return EngineError(
        f"backend {backend} cannot keep single layers in fp32, so layers cannot be blamed: "
        f"give it a method `keeping` (enginegate.engines.Keeps), or let it write {ONNX_FILE}"
    )


def choose_best(
    store: Store,
    candidates: Mapping[Precision, Built],
    workload: Workload,
    threads: int,
    accept: Accept,
    limits: Mapping[str, Any],
) -> tuple[Precision, tuple[str, ...]]:
    """The fastest candidate that `accept` finds nothing against, and why, in words.

    `accept(embeddings)` returns what is wrong with the evaluation embeddings by `limits`, which
    hold all that it judges by. The
    choice is kept in the store, so that the same engines and limits give the same `best` on every
    run. Raises EngineError if no candidate is accepted.
    """
    key = {
        "rules": _CHOICE_RULES,
        "limits": dict(limits),
        "candidates": {p: built.entry.folder.name for p, built in candidates.items()},
        "workload": workload.sha256,
        "threads": threads,
    }

    def measure(_folder: Any) -> Mapping[str, Any]:
        return {p: _try(built, workload, threads, accept) for p, built in candidates.items()}

    trials = store.get_or_build("choice", key, measure).properties
    accepted = {p: t["call_s"] for p, t in trials.items() if not t["refused"]}
    refused = tuple(f"{p} refused: {t['refused']}" for p, t in trials.items() if t["refused"])
    if not accepted:
        raise EngineError(f"no engine is within the limits of best, so there is none: {refused}")
    best = Precision(min(accepted, key=lambda p: accepted[p]))
    timings = ", ".join(f"{p} {1000 * s:.3g} ms" for p, s in accepted.items())
    return best, (f"best took {best}, of {timings} at batch {_CHOICE_BATCH}", *refused)


def _try(built: Built, workload: Workload, threads: int, accept: Accept) -> dict[str, Any]:
    with built.load(workload, threads) as engine:
        refused = "; ".join(accept(embed_all(engine, workload.evaluation)))
        call_s = median_call_s(engine, workload.batch(_CHOICE_BATCH), _CHOICE_CALLS)
    return {"call_s": call_s, "refused": refused}


def execution_flags(built: Built, executed: Executed) -> tuple[str, ...]:
    """Reasons why what ran is not what was requested; empty if it is.

    Layers that `keep` names are part of the request. A runtime may count two multiplications of a
    layer as one, so they may be fewer than the layers have.
    """
    expected = EXPECTED_TYPES[built.precision]
    total = sum(executed.matmuls.values())
    proven = executed.count_of(expected)
    kept = sum(layer.matmuls for layer in built.kept)
    elsewhere = total - proven - kept - int(built.entry.properties.get(APART, 0))
    if total and proven <= total and elsewhere <= 0 and (proven < total or not kept):
        return ()
    if kept and proven == total:
        return (f"nothing was kept: {executed.summary} ran everywhere",)
    return (_other_flag(built, executed, elsewhere),)


def kept_notes(built: Built, executed: Executed) -> tuple[str, ...]:
    """The layers that were kept, and what ran; nothing where none were."""
    names = ", ".join(layer.name for layer in built.kept)
    return (f"kept in fp32: {names}; ran as {executed.summary}",) if names else ()


def _other_flag(built: Built, executed: Executed, elsewhere: int) -> str:
    total = sum(executed.matmuls.values())
    if not total:
        return f"{built.precision} requested, {NO_MATMULS}"
    reason = get_backend(built.backend).limitation(built.precision)
    if executed.count_of(EXPECTED_TYPES[built.precision]) == 0:
        ran = f"{executed.summary} ran: {_limitation_asked(built)}{reason}"
        return f"{built.precision} requested, {ran}"
    return (
        f"{built.precision} requested, ran as {executed.summary} "
        f"({elsewhere} of {total} matrix multiplications elsewhere): {reason}"
    )


def _limitation_asked(built: Built) -> str:
    """The reason why the backend that was asked for did not build it; empty if it did."""
    if built.backend == built.variant.backend:
        return ""
    reason = get_backend(built.variant.backend).limitation(built.precision)
    return f"{reason}, so {built.variant.backend} would have run another precision; "
