"""What tests ask for. Each fixture may be overridden in a conftest.py like any other."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from enginegate.files import for_terminal
from enginegate.gate import LABEL, SESSION, Gate, ModelGate

if TYPE_CHECKING:
    from enginegate.accuracy import EmbeddingJudge, Limits, UserTexts
    from enginegate.engines import Built, Embeddings, Engine
    from enginegate.models import Exported, ModelSpec, Workload
    from enginegate.results import Result
    from enginegate.serving import ServedEngine
    from enginegate.session import Reference, Session
    from enginegate.speed import Measured, Rig, Unchanged
    from enginegate.variants import Variant

Measure = Callable[[int], "Measured | Unchanged"]
MeasureLoad = Callable[[], "Result"]


@pytest.fixture(scope="session")
def enginegate(pytestconfig: pytest.Config) -> "Session":
    """State of this run."""
    return pytestconfig.stash[SESSION]


@pytest.fixture(scope="session")
def enginegate_model(request: pytest.FixtureRequest) -> str:
    """Name of the model whose turn it is."""
    return str(request.param)


@pytest.fixture(scope="session")
def enginegate_variant(request: pytest.FixtureRequest, enginegate_model: str) -> "Variant":  # noqa: ARG001
    """The variant whose turn it is; ties every test of an engine to its model."""
    variant: Variant = request.param
    return variant


@pytest.fixture(scope="session")
def model(enginegate: "Session", enginegate_model: str) -> "ModelSpec":
    """The model's definition; override it to give one in Python."""
    from enginegate.errors import ModelError

    if enginegate_model not in enginegate.options.specs:
        raise ModelError(
            "no model is named: use --gate-model, define one in [tool.enginegate.models.<name>], "
            "or override the `model` fixture with an enginegate.models.ModelSpec"
        )
    return enginegate.options.specs[enginegate_model]


@pytest.fixture(scope="session")
def exported(enginegate: "Session", model: "ModelSpec") -> "Exported":
    """The model as a checked ONNX file."""
    return enginegate.prepare.export(model)


@pytest.fixture(scope="session")
def workload(enginegate: "Session", exported: "Exported") -> "Workload":
    """The texts, tokenised for the model."""
    return enginegate.prepare.workload(exported)


@pytest.fixture(scope="session")
def reference(enginegate: "Session", exported: "Exported", workload: "Workload") -> "Reference":
    """The ONNX file on ONNX Runtime in fp32, with its embeddings."""
    from enginegate.session import judged_reference

    return judged_reference(enginegate, exported, workload)


@pytest.fixture(scope="session")
def limits(enginegate_variant: "Variant", exported: "Exported") -> "Limits":
    """How far the variant's embeddings may be off."""
    from enginegate.accuracy import limits_for

    spec = exported.spec
    return limits_for(enginegate_variant.precision, spec.limits, spec.output_kind)


@pytest.fixture(scope="session")
def own_texts(
    enginegate: "Session", exported: "Exported", workload: "Workload", reference: "Reference"
) -> "UserTexts | None":
    """The user's own queries, documents and labelled pairs; None if there are none."""
    return enginegate.prepare.own_texts(exported, workload, reference)


@pytest.fixture(scope="session")
def embedding_judge(
    enginegate: "Session",
    enginegate_variant: "Variant",
    exported: "Exported",
    workload: "Workload",
    reference: "Reference",
    limits: "Limits",
    own_texts: "UserTexts | None",
) -> "EmbeddingJudge":
    """What judges the variant's embeddings."""
    from enginegate.accuracy import EmbeddingJudge

    precision, views = enginegate_variant.precision, enginegate.prepare.views
    seen = views(exported, workload, reference)
    given = (workload, reference.embeddings, limits, precision, own_texts, seen)
    return EmbeddingJudge(*given, reference.engine.embed)


@pytest.fixture(scope="session")
def built(
    enginegate: "Session",
    enginegate_variant: "Variant",
    exported: "Exported",
    workload: "Workload",
    reference: "Reference",
    embedding_judge: "EmbeddingJudge",
) -> "Built":
    """The variant's engine in the store."""
    from enginegate.session import repaired_engine

    found = enginegate.prepare.build(enginegate_variant, exported, workload, reference)
    return repaired_engine(enginegate, found, exported, workload, reference, embedding_judge)


@pytest.fixture(scope="session")
def engine(enginegate: "Session", built: "Built", workload: "Workload") -> Iterator["Engine"]:
    """The variant's engine, loaded; closed before the next one is built."""
    with built.load(workload, enginegate.options.threads) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def embeddings(engine: "Engine", workload: "Workload") -> "Embeddings":
    """The engine's embeddings of the evaluation texts, float32 [texts, dim]."""
    from enginegate.engines import embed_all

    return embed_all(engine, workload.evaluation)


@pytest.fixture(scope="session")
def result(
    enginegate: "Session",
    built: "Built",
    engine: "Engine",
    exported: "Exported",
    workload: "Workload",
    embeddings: "Embeddings",
    reference: "Reference",
    embedding_judge: "EmbeddingJudge",
) -> "Result":
    """The variant's record, its embeddings judged."""
    from enginegate.engines import gpu_times
    from enginegate.session import diagnosed

    started = enginegate.start(built, engine.executed, exported, workload)
    sizes = {size: workload.batch(size) for size in enginegate.options.batches}
    opened = dataclasses.replace(started, gpu=gpu_times(engine, sizes))
    builds = enginegate.prepare.rebuilds(built, exported, workload)
    judged = enginegate.judge_embeddings(opened, embeddings, embedding_judge, engine, builds)
    return diagnosed(enginegate, judged, built, exported, workload, embeddings, reference)


@pytest.fixture(scope="session")
def rig(enginegate: "Session", built: "Built", exported: "Exported", workload: "Workload") -> "Rig":
    """What times the engine beside its yardstick, both loaded anew for every replicate."""
    return enginegate.rig(built, exported, workload)


@pytest.fixture(scope="session")
def enginegate_server(
    enginegate: "Session",
    result: "Result",
    built: "Built",
    engine: "Engine",
    exported: "Exported",
    workload: "Workload",
    embedding_judge: "EmbeddingJudge",
) -> Iterator["ServedEngine"]:
    """The variant's engine on a server, with --gate-serve; skips if its embeddings are wrong."""
    _skip_if_wrong(result, "not served")
    if enginegate.options.save_engines:
        pytest.skip("not served: --gate-save-engines only builds")
    from enginegate.session import serve_engine

    parts = (built, engine, exported, workload, embedding_judge)
    with serve_engine(enginegate, *parts) as served:
        yield served


@pytest.fixture
def served(
    request: pytest.FixtureRequest, enginegate: "Session", enginegate_server: "ServedEngine"
) -> "Gate":
    """Passes, flags or fails the test by what was found of the served engine."""
    from enginegate.session import served_result

    return Gate(request.node, enginegate, served_result(enginegate, enginegate_server))


@pytest.fixture
def measure_load(enginegate: "Session", enginegate_server: "ServedEngine") -> MeasureLoad:
    """Loads the served engine level by level; skips if its served embeddings are wrong."""
    from enginegate.session import load_engine, served_result

    _skip_if_wrong(served_result(enginegate, enginegate_server), "not loaded")
    return lambda: load_engine(enginegate, enginegate_server)


def _skip_if_wrong(result: "Result", what: str) -> None:
    if result.faults:
        wrong = f"its {result.context.words.outputs} are wrong"
        pytest.skip(for_terminal(f"{what}, {wrong}: {'; '.join(result.faults)}"))


@pytest.fixture
def model_gate(
    request: pytest.FixtureRequest,
    enginegate: "Session",
    model: "ModelSpec",
    reference: "Reference",
) -> "ModelGate":
    """Passes or fails the test of a model by what was found of its reference."""
    return ModelGate(request.node, enginegate, model.name, reference.truth)


@pytest.fixture
def gate(request: pytest.FixtureRequest, enginegate: "Session", result: "Result") -> "Gate":
    """Passes, flags or fails the test by what was found."""
    return Gate(request.node, enginegate, result)


@pytest.fixture
def measure(request: pytest.FixtureRequest, enginegate: "Session", result: "Result") -> Measure:
    """Times one batch size; skips if the embeddings are wrong."""
    _skip_if_wrong(result, "not timed")
    if enginegate.options.save_engines:
        pytest.skip("not timed: --gate-save-engines only builds")
    if unchanged := enginegate.unchanged(result):
        return lambda _size: unchanged
    replay = _Replay()
    benchmark = _benchmark(request, replay)
    if benchmark is None or benchmark.disabled:
        pytest.skip("not timed: pytest-benchmark is disabled")
    rig = request.getfixturevalue("rig")

    def time(size: int) -> "Measured":
        found = enginegate.measured(result, rig, size)
        benchmark.group = result.variant.model
        benchmark.extra_info.update(_labels(result), batch=size)
        replay.show(benchmark, found.samples.candidate_s)
        return found

    return time


def _benchmark(request: pytest.FixtureRequest, replay: "_Replay") -> Any:
    """pytest-benchmark's fixture with the replay's clock, other marks of the test kept.

    None where that plugin is left out.
    """
    if not request.config.pluginmanager.has_plugin("benchmark"):
        return None
    own = request.node.get_closest_marker("benchmark")
    options = {**(own.kwargs if own else {}), "timer": replay.clock}
    request.node.add_marker(pytest.mark.benchmark(**options), append=False)
    return request.getfixturevalue("benchmark")


class _Replay:
    """Shows measured times to pytest-benchmark through a clock that advances by them.

    The engines run interleaved with their yardstick, all batch sizes of a replicate in one go;
    pytest-benchmark can only time one function of one test from beginning to end.
    """

    def __init__(self) -> None:
        self._now_s = 0.0

    def clock(self) -> float:
        """The time, as far as it was shown."""
        return self._now_s

    def show(self, benchmark: Any, seconds: Sequence[float]) -> None:
        """One round per measured call."""
        rest = iter(seconds)
        benchmark.pedantic(lambda: self._advance(next(rest)), rounds=len(seconds))

    def _advance(self, seconds: float) -> None:
        self._now_s += seconds


def _labels(result: "Result") -> dict[str, str]:
    """What goes with every figure, also in pytest-benchmark's own files."""
    return {
        "variant": result.variant.id,
        "ran": result.ran,
        "weights": result.context.weights,
        LABEL: result.context.workload_sha256,
    }
