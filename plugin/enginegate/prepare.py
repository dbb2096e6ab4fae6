"""What a run prepares once per model or variant: files in the store, loaded engines."""

import contextlib
import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from enginegate.accuracy import check_sane, compare, limits_for, violations
from enginegate.build import Built, build_engine, choose_best
from enginegate.engines import Embeddings, Engine, embed_all, get_backend
from enginegate.engines.onnxruntime import open_onnx, run_onnx
from enginegate.errors import EmbeddingError
from enginegate.export import export_model, tokenize_with
from enginegate.machine import this_machine
from enginegate.models import Exported, ModelSpec
from enginegate.options import Options
from enginegate.saved import engines_of, save_engine, saved_engine
from enginegate.store import Store
from enginegate.timing import CANDIDATE, SENTINEL, YARDSTICK, LocalArm, Rig, placed
from enginegate.variants import Precision, Variant
from enginegate.workload import Workload, make_workload, read_texts, take

_MOST_PADDING_BYTES = 1 << 20

OpenEngine = Callable[[], AbstractContextManager[Engine]]
Progress = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Reference:
    """The model's ONNX file run by ONNX Runtime in fp32.

    Attributes:
        engine: loaded.
        embeddings: of the evaluation texts, float32 [texts, dim].
    """

    engine: Engine
    embeddings: Embeddings


class Preparation:
    """Makes, or takes from the store, all that is judged and all that it is judged by."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        self._store = Store(options.engine_cache)
        self._texts = read_texts(options.workload)
        self._closing = contextlib.ExitStack()

    def export(self, spec: ModelSpec) -> Exported:
        """The model's checked ONNX file."""
        with self._progress(f"model {spec.name}"):
            return export_model(spec, self._store, run_onnx)

    def workload(self, model: Exported) -> Workload:
        """The texts, tokenised for the model."""
        name, texts = self._texts
        return make_workload(name, texts, tokenize_with(model.spec, model.tokenizer), model.inputs)

    def open_reference(self, model: Exported, workload: Workload) -> Engine:
        """The model's ONNX file, loaded by ONNX Runtime in fp32."""
        probe = take(workload.evaluation, slice(2))
        return open_onnx(model.onnx, model.output, probe, self._options.threads)

    def reference(self, model: Exported, workload: Workload) -> Reference:
        """The loaded reference with its embeddings; EmbeddingError if they are not sane."""
        with self._progress(f"reference of {model.spec.name}"):
            engine = self.open_reference(model, workload)
            embeddings = self._reference_embeddings(engine, model, workload)
        check_sane(embeddings, f"the reference of {model.spec.name}")
        return Reference(engine, embeddings)

    def _reference_embeddings(
        self, engine: Engine, model: Exported, workload: Workload
    ) -> Embeddings:
        key = {
            "model": model.sha256,
            "workload": workload.sha256,
            "runtime": get_backend("onnxruntime").version(),
            "machine": this_machine().as_json(),
        }

        def build(folder: Path) -> dict[str, str]:
            embeddings = embed_all(engine, workload.evaluation)
            np.save(folder / "embeddings.npy", embeddings, allow_pickle=False)
            return {}

        entry = self._store.get_or_build("reference", key, build)
        loaded: Embeddings = np.load(entry.folder / "embeddings.npy", allow_pickle=False)
        return loaded

    def build(
        self, variant: Variant, model: Exported, workload: Workload, reference: Reference
    ) -> Built:
        """The variant's engine in the store; for `best`, the one chosen among all precisions."""
        with self._progress(f"engine {variant.id}"):
            if variant.precision is not Precision.BEST:
                built = build_engine(self._store, variant, model, workload)
            else:
                built = self._best(variant, model, workload, reference)
        if self._options.save_engines:
            named = dataclasses.replace(variant, model=model.spec.name)
            save_engine(built, named, self._options.save_engines)
        return built

    def _best(
        self, variant: Variant, model: Exported, workload: Workload, reference: Reference
    ) -> Built:
        limits = limits_for(Precision.BEST, model.spec.limits)
        candidates = {
            precision: build_engine(
                self._store, dataclasses.replace(variant, precision=precision), model, workload
            )
            for precision in get_backend(variant.backend).offers
        }

        def accept(embeddings: Embeddings) -> tuple[str, ...]:
            try:
                return violations(compare(embeddings, reference.embeddings), limits)
            except EmbeddingError as error:
                return (str(error),)

        threads = self._options.threads
        best, notes = choose_best(self._store, candidates, workload, threads, accept)
        return dataclasses.replace(candidates[best], variant=variant, notes=notes)

    def baseline_engine(self, variant: Variant) -> Built | None:
        """The engine to measure beside, with --against; None if that has none of the variant."""
        return saved_engine(self._baseline_engines, variant)

    @functools.cached_property
    def _baseline_engines(self) -> Path:
        options = self._options
        with self._progress(f"engines of {options.against}"):
            return self._closing.enter_context(
                engines_of(options.against, options.building, options.rootpath)
            )

    def close(self) -> None:
        """Remove what was only made for this run."""
        self._closing.close()

    def rig(
        self,
        built: Built,
        beside: Built | None,
        model: Exported,
        workload: Workload,
        rng: random.Random,
    ) -> Rig:
        """What times an engine beside another one or the reference, both loaded anew every time."""
        threads = self._options.threads

        @contextlib.contextmanager
        def yardstick() -> Iterator[Engine]:
            if beside is None:
                yield self.open_reference(model, workload)
            else:
                with beside.load(workload, threads) as engine:
                    yield engine

        openers = {
            CANDIDATE: lambda: built.load(workload, threads),
            YARDSTICK: yardstick,
            SENTINEL: yardstick,
        }
        cell_s = self._options.measure_s / self._options.replicates
        return Rig(functools.partial(_open_arms, openers, workload), cell_s, rng)


@contextlib.contextmanager
def _open_arms(
    openers: Mapping[str, OpenEngine],
    workload: Workload,
    batches: Sequence[int],
    rng: random.Random,
) -> Iterator[Mapping[str, LocalArm]]:
    """Every arm loaded, in random order, among arrays of random size."""
    names = list(openers)
    rng.shuffle(names)
    arms, padding = {}, []
    with contextlib.ExitStack() as stack:
        for name in names:
            padding.append(bytearray(rng.randrange(_MOST_PADDING_BYTES)))
            engine = stack.enter_context(openers[name]())
            arms[name] = LocalArm(engine, {b: placed(workload.batch(b), rng) for b in batches})
        yield arms
