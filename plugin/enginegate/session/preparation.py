"""Preparation, once per model or variant: files in the store, loaded engines."""

import contextlib
import dataclasses
import functools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from enginegate.accuracy import (
    AgainstTruth,
    EmbeddingJudge,
    UserData,
    UserTexts,
    View,
    check_dims,
    limits_for,
    outputs_of,
    read_collection,
    read_pairs,
    refuse_labels,
    refuse_pairs,
    views_of,
)
from enginegate.cache import Store
from enginegate.config import Options
from enginegate.engines import (
    EMBEDDED_AT_ONCE,
    BuildHints,
    Built,
    Embeddings,
    Engine,
    Ranges,
    build_engine,
    choose_best,
    embed_all,
    engines_of,
    find_ranges,
    get_backend,
    open_reference,
    registration,
    run_reference,
    save_engine,
    saved_engine,
)
from enginegate.files import scratch_folder
from enginegate.machine import git, is_changed, power_limit, this_machine
from enginegate.models import (
    DOCUMENT,
    INT8,
    QUERY,
    Batch,
    Exported,
    Kept,
    ModelSpec,
    OutputKind,
    Say,
    Workload,
    export_model,
    hash_of,
    make_batch,
    make_pairs_workload,
    make_searched_workload,
    make_workload,
    nodes_of,
    probe_of,
    read_texts,
    speller,
    split,
    tokenize_with,
)
from enginegate.results import FP32_THERE, HASHED, Context, Provenance
from enginegate.session.opinions import second_opinions
from enginegate.session.truth import judged_by_truth
from enginegate.speed import (
    CANDIDATE,
    CONTROL,
    METHOD,
    SECOND_CONTROL,
    OpenArm,
    Rig,
    local_arm,
    open_arms,
    remote_arm,
)
from enginegate.variants import Precision, Variant

Progress = Callable[[str], AbstractContextManager[Say]]


@dataclass(frozen=True)
class Reference:
    """The model's ONNX file run by ONNX Runtime in fp32.

    Attributes:
        engine: loaded.
        embeddings: of the evaluation texts, float32 [texts, dim].
        truth: whether it is the model; None where that was not asked.
        doubts: what is known against it; usually nothing.
    """

    engine: Engine
    embeddings: Embeddings
    truth: AgainstTruth | None = None
    doubts: tuple[str, ...] = ()


class Preparation:
    """Makes, or takes from the store, all that is judged and all that it is judged by."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self._options = options
        self._given_progress = progress
        self._saying: list[tuple[Say, set[str]]] = []
        self.store = Store(options.engine_cache, self._tell)
        self._texts = read_texts(options.workload)
        self._own = UserData(
            read_collection(options.workload) if options.workload else None,
            read_pairs(options.sts) if options.sts else None,
        )
        self._closing = contextlib.ExitStack()
        self._at: dict[str, Path] = {}

    @contextlib.contextmanager
    def _progress(self, what: str) -> Iterator[Say]:
        """A step; what the store has to make inside is told of."""
        with self._given_progress(what) as say:
            self._saying.append((say, set()))
            try:
                yield say
            finally:
                self._saying.pop()

    def _tell(self, kind: str) -> None:
        say, told = self._saying[-1] if self._saying else (None, set[str]())
        if say and not told:
            say("not in the cache, so it is made now")
        told.add(kind)

    def export(self, spec: ModelSpec) -> Exported:
        """The model's checked ONNX file."""
        with self._progress(f"model {spec.name}") as say:
            return export_model(spec, self.store, run_reference, say)

    def workload(self, model: Exported) -> Workload:
        """The texts, tokenised for the model."""
        name, texts = self._texts
        if model.late is not None and model.tokenizer is not None:
            return searched_workload(name, texts, model, model.tokenizer)
        if model.spec.lengths and self._options.workload is None:
            name, texts = read_texts(None, documents=True)
        if model.spec.scores:
            own = self._own.collection
            searched = (own.queries, own.documents) if own else split(texts)
            tokenize, inputs = tokenize_with(model), model.inputs
            found = make_pairs_workload(name, *searched, tokenize, inputs, model.int32)
        else:
            found = make_workload(name, texts, tokenize_with(model), model.inputs, model.int32)
        kind, largest = model.spec.output_kind or OutputKind.DENSE, max(self._options.batches)
        return dataclasses.replace(found, kind=kind, largest_batch=largest)

    def open_reference(self, model: Exported, workload: Workload) -> Engine:
        """The model's ONNX file, loaded by ONNX Runtime in fp32."""
        probe = probe_of(workload)
        return open_reference(model.onnx, model.output, probe, self._options.threads)

    def reference(self, model: Exported, workload: Workload) -> Reference:
        """The loaded reference with its embeddings; EmbeddingError if they are not sane."""
        with self._progress(f"reference of {model.spec.name}"):
            engine = self.open_reference(model, workload)
            found = self._reference_embeddings(engine, model, workload.evaluation)
            embeddings = workload.used(found)
            outputs_of(workload).sane(embeddings, f"the reference of {model.spec.name}")
            check_dims(model.spec, embeddings)
            doubts = second_opinions(self.store, engine, model, workload, found)
        if self._options.save_engines:
            return Reference(engine, embeddings, None, doubts)
        given = (model.spec, self.store, workload, embeddings, self._progress)
        return Reference(
            engine, embeddings, judged_by_truth(*given, model.nature.precision), doubts
        )

    def own_texts(
        self, model: Exported, workload: Workload, reference: Reference
    ) -> UserTexts | None:
        """The user's own data, embedded by the reference; None if there is none."""
        if model.spec.scores:
            refuse_labels(self._own, model.spec.name)
        if model.spec.multi:
            refuse_pairs(self._own, model.spec.name)
        if model.spec.scores or not self._own.rows:
            return None

        def make(role: str, texts: Sequence[str]) -> Batch:
            return make_batch(texts, tokenize_with(model, role), model.inputs, model.int32)

        batch, kept = self._own.batch(make), self._kept(model)
        with self._progress(f"reference of {model.spec.name} on {len(self._own.rows)} own texts"):
            expected = self._reference_embeddings(reference.engine, model, batch)
        own = UserTexts(self._own, batch, expected, kept)
        own = dataclasses.replace(own, expected=own.used(expected))
        outputs_of(workload).sane(own.expected, f"the reference of {model.spec.name}")
        return own

    def _kept(self, model: Exported) -> Kept | None:
        """Which tokens of the user's own texts a search uses; None where a text has one vector."""
        if model.late is None:
            return None

        def make(role: str, texts: Sequence[str]) -> Batch:
            return {"kept": np.asarray(tokenize_with(model, role)(texts).kept, np.int64)}

        return self._own.batch(make)["kept"] > 0

    def views(self, model: Exported, workload: Workload, reference: Reference) -> tuple[View, ...]:
        """The other ways in which the model's table says that its embeddings are used."""
        calibration = None
        if INT8 in model.spec.stored:
            calibration = self._reference_embeddings(reference.engine, model, workload.calibration)
        return views_of(model.spec, reference.embeddings, calibration)

    def _reference_embeddings(self, engine: Engine, model: Exported, batch: Batch) -> Embeddings:
        key = {
            "model": model.sha256,
            "tokens": hash_of(batch),
            "runtime": get_backend("onnxruntime").version(),
            "machine": this_machine().as_json(),
        }

        def build(folder: Path) -> dict[str, str]:
            np.save(folder / "embeddings.npy", embed_all(engine, batch), allow_pickle=False)
            return {}

        entry = self.store.get_or_build("reference", key, build)
        loaded: Embeddings = np.load(entry.folder / "embeddings.npy", allow_pickle=False)
        return loaded

    def build(
        self,
        variant: Variant,
        model: Exported,
        workload: Workload,
        reference: Reference,
        keep: Sequence[str] | None = None,
    ) -> Built:
        """The variant's engine in the store; for `best`, the one chosen among all precisions.

        `keep` names layers to keep in fp32; by default those of the model's definition.
        """
        with self._progress(f"engine {variant.id}"):
            if variant.precision is not Precision.BEST:
                built = self._engine(self.store, variant, model, workload, keep)
            else:
                built = self._best(variant, model, workload, reference)
        if self._options.save_engines:
            named = dataclasses.replace(variant, model=model.spec.name)
            save_engine(built, named, self._options.save_engines)
        return built

    def _engine(
        self,
        store: Store,
        variant: Variant,
        model: Exported,
        workload: Workload,
        keep: Sequence[str] | None = None,
    ) -> Built:
        return build_engine(store, variant, model, workload, demand_of(self._options), keep)

    def rebuilds(self, built: Built, model: Exported, workload: Workload) -> Iterator[Embeddings]:
        """Evaluation embeddings of the same engine built anew, as often as --gate-rebuilds says."""
        variant = dataclasses.replace(built.variant, precision=built.precision)
        kept = [layer.name for layer in built.kept]
        for number in range(self._options.rebuilds):
            with (
                self._progress(f"build {number + 2} of {variant.id}"),
                scratch_folder() as folder,
            ):
                again = self._engine(Store(folder), variant, model, workload, kept)
                with again.load(workload, self._options.threads) as engine:
                    found = embed_all(engine, workload.evaluation)
            yield found

    def _best(
        self, variant: Variant, model: Exported, workload: Workload, reference: Reference
    ) -> Built:
        limits = limits_for(Precision.BEST, model.spec.limits, model.spec.output_kind)
        offers = get_backend(variant.backend).offers
        named = {p: dataclasses.replace(variant, precision=p) for p in offers}
        candidates = {p: self._engine(self.store, v, model, workload) for p, v in named.items()}
        found = {p: self.ranges(built, model, workload) for p, built in candidates.items()}
        beyond = {p: ranges.fault for p, ranges in found.items() if ranges and ranges.fault}
        able = {p: built for p, built in candidates.items() if p not in beyond}
        views = self.views(model, workload, reference)
        judge = EmbeddingJudge(workload, reference.embeddings, limits, Precision.BEST, None, views)
        rules = {**dataclasses.asdict(limits), "views": [view.name for view in views]}
        threads = self._options.threads
        best, notes = choose_best(self.store, able, workload, threads, judge.refusals, rules)
        refused = (f"{p} refused: {fault}" for p, fault in beyond.items())
        return dataclasses.replace(able[best], variant=variant, notes=(*notes, *refused))

    def ranges(self, built: Built, model: Exported, workload: Workload) -> Ranges | None:
        """The model's numbers in fp16, for an engine that has values in it; None for another.

        A file that is quantised already says itself in which type each value is.
        """
        precision = built.precision
        if precision not in registration(built.backend).halves or model.nature.is_quantised:
            return None
        kept = nodes_of(built.kept)
        with self._progress(f"numbers inside {model.spec.name}"):
            return find_ranges(self.store, model, workload.evaluation, kept, precision)

    def provenance(self, built: Built) -> Provenance:
        """Tell where an engine comes from."""
        name, sha256 = built.entry.folder.name, built.content_sha256
        return Provenance(built.recipe, name, sha256, self._revision)

    @functools.cached_property
    def _revision(self) -> str:
        """The project's commit, and if its files differ from it; the baselines do not count."""
        options = self._options
        commit = git(options.rootpath, "rev-parse", "HEAD").stdout.strip()
        changed = is_changed(options.rootpath, options.baselines, untracked=True)
        return commit and (f"{commit}-dirty" if changed else commit)

    def cached_engine(self, variant: Variant, made: Provenance) -> Built | None:
        """An earlier engine of the variant, from this machine's cache; None if it is not there."""
        entry = self.store.find("engine", made.entry)
        if entry is None:
            return None
        precision, backend = Precision(made.recipe["precision"]), str(made.recipe["backend"])
        found = Built(variant, precision, backend, entry)
        return found if found.content_sha256 == made.sha256 else None

    def engine_at(self, revision: str, variant: Variant) -> Built | None:
        """The variant's engine, built from a git revision of the project; None if it has none.

        Raises OptionError if git does not know it, and EngineError if nothing can be built of it.
        """
        if revision not in self._at:
            options = self._options
            with self._progress(f"engines of {revision[:12]}"):
                made = engines_of(revision, options.building, options.rootpath, "")
                self._at[revision] = self._closing.enter_context(made)
        return saved_engine(self._at[revision], variant)

    def baseline_engine(self, variant: Variant) -> Built | None:
        """The engine to measure beside, with --gate-against; None if it has none of the variant."""
        return saved_engine(self._baseline_engines, variant)

    @functools.cached_property
    def _baseline_engines(self) -> Path:
        options = self._options
        with self._progress(f"engines of {options.beside}"):
            return self._closing.enter_context(
                engines_of(
                    options.against, options.building, options.rootpath, options.against_python
                )
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
        """A rig of an engine beside another one or its control, both loaded anew every time."""
        options, beside = self._options, beside or self.own_control(built, model, workload)
        threads = options.threads

        def reference() -> AbstractContextManager[Engine]:
            return contextlib.nullcontext(self.open_reference(model, workload))

        def arm(found: Built | None, python: str) -> OpenArm:
            if found is not None and options.against_python:
                return remote_arm(python, found, workload, threads)
            return local_arm(
                functools.partial(found.load, workload, threads) if found else reference
            )

        yardstick = arm(beside, options.against_python)
        candidate, on_gpu = arm(built, sys.executable), arms_on_gpu(built, beside)
        here = not options.against_python and not on_gpu  # a call on a GPU waits off the processor
        time_s, at_once = replicate_s(options), load_at_once(built, beside)
        return rig_of(
            candidate, yardstick, workload, rng, time_s, on_gpu=on_gpu, here=here, at_once=at_once
        )

    def own_control(self, built: Built, model: Exported, workload: Workload) -> Built | None:
        """The engine in fp32 of a backend on a GPU: what slows the GPU then slows both.

        None for the reference, beside which engines on the processor are timed.
        """
        if not has_own_control(built.backend, model):
            return None
        variant = dataclasses.replace(built.variant, precision=Precision.FP32)
        demand = dataclasses.replace(demand_of(self._options), tf32=False)
        with self._progress(f"control of {built.variant.id}"):
            return build_engine(self.store, variant, model, workload, demand, ())


def searched_workload(
    name: str, texts: Sequence[str], model: Exported, tokenizer: Path
) -> Workload:
    """The texts as queries and as documents, for a model that gives a vector for every token."""
    tokenize = {role: tokenize_with(model, role) for role in (QUERY, DOCUMENT)}
    spell = speller(tokenizer)
    return make_searched_workload(name, texts, tokenize, model.inputs, spell, model.int32)


def has_own_control(backend: str, model: Exported) -> bool:
    """Tell if engines of a model are timed beside one of their own backend in fp32."""
    return registration(backend).gpu and not model.nature.is_quantised


def arms_on_gpu(built: Built, beside: Built | None) -> frozenset[str]:
    """The arms of a rig whose engines run on a GPU."""
    backends = {CANDIDATE: built, CONTROL: beside, SECOND_CONTROL: beside}
    return frozenset(n for n, found in backends.items() if found and _is_on_gpu(found))


def load_at_once(built: Built, beside: Built | None) -> bool:
    """Whether threads may load the arms of a rig; the reference's runtime lets them."""
    return all(registration(found.backend).at_once for found in (built, beside) if found)


def _is_on_gpu(built: Built) -> bool:
    return registration(built.backend).gpu


def replicate_s(options: Options) -> float:
    """Seconds of measuring in a replicate."""
    return options.measure_s * len(options.batches) / options.replicates


def rig_of(
    candidate: OpenArm,
    control: OpenArm,
    workload: Workload,
    rng: random.Random,
    time_s: float,
    *,
    on_gpu: frozenset[str],
    here: bool,
    at_once: bool,
) -> Rig:
    """A rig of an engine beside its control, `time_s` a replicate; `here` if in this process.

    `at_once`: threads load the arms.
    """
    openers = {CANDIDATE: candidate, CONTROL: control, SECOND_CONTROL: control}
    open_all = functools.partial(open_arms, openers, workload, at_once=at_once)
    return Rig(open_all, time_s, rng, watch_self=here, on_gpu=on_gpu)


def demand_of(options: Options) -> BuildHints:
    """Batch sizes that a run gives to its engines."""
    served = options.serve.deployment.max_batch_size if options.serve else 1
    return BuildHints(
        usual_batch=max(options.batches),
        largest_batch=max(*options.batches, served, EMBEDDED_AT_ONCE),
        tf32=options.tf32,
        timings=options.engine_cache / "timings",
        batches=tuple(options.batches),
    )


def context_of(
    options: Options, backend: str, model: Exported, workload: Workload, deployment: str = ""
) -> Context:
    """Everything that figures of a model go with."""
    beside_own = has_own_control(backend, model) and not deployment
    return Context(
        weights=model.weights,
        tokenizer="tokenizer.json" if model.tokenizer else HASHED,
        workload=workload.name,
        workload_sha256=workload.sha256,
        texts=workload.shape[0],
        seq_len=workload.shape[1],
        limit=model.tokens.limit,
        cut=workload.cut,
        padding=workload.padding,
        prompts=model.prompts,
        overruled=model.overruled,
        output_kind=workload.kind,
        model_sha256=model.sha256,
        reference=f"{get_backend('onnxruntime').version()} {model.nature.words}",
        threads=options.threads,
        method=METHOD,
        against="itself" if options.calibrate else options.beside,
        control=FP32_THERE if beside_own else "",
        deployment=deployment,
        power_limit=power_limit() if registration(backend).gpu and not deployment else "",
        buckets=workload.buckets,
        timed={n: workload.timed_at(n) for n in options.batches} if workload.buckets else {},
    )
