"""What tests ask for. Each fixture may be overridden in a conftest.py like any other."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from enginegate.accuracy import Limits
    from enginegate.build import Built
    from enginegate.engines import Embeddings, Engine
    from enginegate.models import Exported, ModelSpec
    from enginegate.prepare import Reference
    from enginegate.results import Result, Speed
    from enginegate.session import Session
    from enginegate.timing import Rig, Samples
    from enginegate.variants import Variant
    from enginegate.words import Verdict
    from enginegate.workload import Workload

Measure = Callable[[int], "Samples"]
SESSION = pytest.StashKey["Session"]()
PROPERTY = "enginegate_verdict"
ERROR = "error"


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
            "no model is named: use --model, define one in [tool.enginegate.models.<name>], or "
            "override the `model` fixture with an enginegate.models.ModelSpec"
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
    return enginegate.prepare.reference(exported, workload)


@pytest.fixture(scope="session")
def limits(enginegate_variant: "Variant", model: "ModelSpec") -> "Limits":
    """How far the variant's embeddings may be off."""
    from enginegate.accuracy import limits_for

    return limits_for(enginegate_variant.precision, model.limits)


@pytest.fixture(scope="session")
def built(
    enginegate: "Session",
    enginegate_variant: "Variant",
    exported: "Exported",
    workload: "Workload",
    reference: "Reference",
) -> "Built":
    """The variant's engine in the store."""
    return enginegate.prepare.build(enginegate_variant, exported, workload, reference)


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
    limits: "Limits",
) -> "Result":
    """The variant's record, its embeddings judged."""
    opened = enginegate.start(built, engine.executed, exported, workload)
    return enginegate.judge_embeddings(opened, embeddings, reference, limits)


@pytest.fixture(scope="session")
def rig(enginegate: "Session", built: "Built", exported: "Exported", workload: "Workload") -> "Rig":
    """What times the engine beside its yardstick, both loaded anew for every replicate."""
    return enginegate.rig(built, exported, workload)


@pytest.fixture
def gate(request: pytest.FixtureRequest, enginegate: "Session", result: "Result") -> "Gate":
    """Passes, flags or fails the test by what was found."""
    return Gate(request.node, enginegate, result)


@pytest.fixture
def measure(request: pytest.FixtureRequest, enginegate: "Session", result: "Result") -> Measure:
    """Times one batch size; skips if the embeddings are wrong."""
    from enginegate.words import Verdict

    if result.accuracy and result.accuracy.judgement.verdict is Verdict.FAIL:
        reasons = "; ".join(result.accuracy.judgement.reasons)
        pytest.skip(f"not timed, its embeddings are wrong: {reasons}")
    if enginegate.options.save_engines:
        pytest.skip("not timed: --save-engines only builds")
    replay = _Replay()
    benchmark = _benchmark(request, replay)
    if benchmark.disabled:
        pytest.skip("not timed: pytest-benchmark is disabled")
    rig = request.getfixturevalue("rig")

    def time(size: int) -> "Samples":
        samples = enginegate.measured(result, rig, size)
        benchmark.group = result.variant.model
        benchmark.extra_info.update(_labels(result), batch=size)
        replay.show(benchmark, samples.candidate_s)
        return samples

    return time


def _benchmark(request: pytest.FixtureRequest, replay: "_Replay") -> Any:
    """pytest-benchmark's fixture with the replay's clock, other marks of the test kept."""
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
        "workload_sha256": result.context.workload_sha256,
    }


class Gate:
    """Turns what was found into the outcome of a test."""

    def __init__(self, node: pytest.Item, session: "Session", result: "Result") -> None:
        self._node, self._session, self._result = node, session, result

    def check_embeddings(self) -> None:
        """Fail beyond the limits; flag looser limits, and another type than asked for."""
        from enginegate.words import Verdict

        accuracy, verdict = self._result.accuracy, self._result.embedding_verdict
        reasons = (*self._result.flags, *(accuracy.judgement.reasons if accuracy else ()))
        text = f"{self._result.variant.id}: {verdict}: {'; '.join(reasons)}"
        self._conclude(verdict, text, fails=verdict is Verdict.FAIL)

    def check_speed(self, samples: "Samples") -> None:
        """Fail on a regression, and on whatever else the gate is told not to let pass."""
        speed = self._session.speed_of(self._result, samples.batch)
        verdict = speed.verdict
        judgements = [j for j in (speed.judgement, speed.tail_judgement) if j]
        reasons = "; ".join(r for j in judgements if j.verdict is verdict for r in j.reasons)
        text = f"{self._result.variant.id}, batch {speed.batch}: {verdict}: {reasons}"
        self._node.user_properties += _properties(speed)
        self._conclude(verdict, text, fails=self._session.options.fails(verdict))

    def _conclude(self, verdict: "Verdict", text: str, *, fails: bool) -> None:
        from enginegate.words import Verdict

        self._node.user_properties.append((PROPERTY, str(verdict)))
        strict = verdict is Verdict.FLAGGED and self._session.options.strict
        self._session.notices.append((verdict, text, fails or strict))
        if fails or strict:
            pytest.fail(text, pytrace=False)


def _properties(speed: "Speed") -> list[tuple[str, object]]:
    """The numbers of a batch size, for JUnit's XML and other readers of reports."""
    change = speed.change
    numbers = {"p50_s": speed.p50_s, "texts_per_s": speed.texts_per_s}
    if change is not None:
        numbers |= {"change": change.ratio, "change_low": change.low, "change_high": change.high}
        numbers |= {"visible_slowdown": change.visible, "e_value": change.evidence}
    return [(f"enginegate_{name}", f"{value:.6g}") for name, value in numbers.items()]
