"""What tests ask for. Each fixture may be overridden in a conftest.py like any other."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from enginegate.accuracy import Limits
    from enginegate.build import Built
    from enginegate.engines import Embeddings, Engine
    from enginegate.models import Exported, ModelSpec
    from enginegate.prepare import Reference
    from enginegate.results import Result
    from enginegate.session import Session
    from enginegate.timing import Pair, Samples
    from enginegate.variants import Variant
    from enginegate.workload import Workload

Measure = Callable[[int], "Samples"]
SESSION = pytest.StashKey["Session"]()
PROPERTY = "enginegate_verdict"


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
def pairs(
    enginegate: "Session", built: "Built", exported: "Exported", workload: "Workload"
) -> Iterator[tuple["Pair", ...]]:
    """Freshly loaded engines and references, a pair per replicate."""
    with contextlib.ExitStack() as stack:
        with enginegate.measuring():
            loaded = stack.enter_context(enginegate.prepare.pairs(built, exported, workload))
        yield loaded


@pytest.fixture
def gate(request: pytest.FixtureRequest, enginegate: "Session", result: "Result") -> "Gate":
    """Passes, flags or fails the test by what was found."""
    return Gate(request.node, enginegate, result)


@pytest.fixture
def measure(
    request: pytest.FixtureRequest,
    enginegate: "Session",
    result: "Result",
    workload: "Workload",
) -> Measure:
    """Times one batch size through pytest-benchmark; skips if the embeddings are wrong."""
    from enginegate.verdict import Verdict

    if result.accuracy and result.accuracy.judgement.verdict is Verdict.FAIL:
        reasons = "; ".join(result.accuracy.judgement.reasons)
        pytest.skip(f"not timed, its embeddings are wrong: {reasons}")
    benchmark = request.getfixturevalue("benchmark")
    if benchmark.disabled:
        pytest.skip("not timed: pytest-benchmark is disabled")
    pairs = request.getfixturevalue("pairs")
    return lambda size: _time(benchmark, pairs, workload, enginegate, result, size)


def _time(
    benchmark: Any,
    pairs: tuple["Pair", ...],
    workload: "Workload",
    enginegate: "Session",
    result: "Result",
    size: int,
) -> "Samples":
    from enginegate.timing import Budget, Interleaver

    options = enginegate.options
    budget = Budget(options.measure_s, options.warmup_rounds, options.min_rounds)
    benchmark.group = result.variant.model
    benchmark.extra_info.update(_labels(result), batch=size)
    with enginegate.measuring():
        rounds = Interleaver(pairs, workload.batch(size), budget)
        benchmark.pedantic(rounds.candidate, setup=rounds.before, rounds=rounds.rounds)
    return rounds.samples(benchmark.stats.stats.data)


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
        from enginegate.verdict import Verdict

        accuracy, verdict = self._result.accuracy, self._result.embedding_verdict
        reasons = (*self._result.flags, *(accuracy.judgement.reasons if accuracy else ()))
        text = f"{self._result.variant.id}: {verdict}: {'; '.join(reasons)}"
        self._conclude(verdict, text, fails=verdict is Verdict.FAIL)

    def check_speed(self, samples: "Samples") -> None:
        """Fail on a regression, and without a comparable baseline where one is required."""
        from enginegate.verdict import Verdict

        speed = self._session.judge_speed(self._result, samples)
        verdict = speed.judgement.verdict
        missing = verdict in (Verdict.NO_BASELINE, Verdict.INCOMPARABLE)
        options = self._session.options
        fails = verdict is Verdict.REGRESSED or (missing and options.require_baseline)
        reasons = "; ".join(speed.judgement.reasons)
        text = f"{self._result.variant.id}, batch {speed.batch}: {verdict}: {reasons}"
        self._conclude(verdict, text, fails=fails and not options.refresh_baselines)

    def _conclude(self, verdict: str, text: str, *, fails: bool) -> None:
        from enginegate.verdict import Verdict

        self._node.user_properties.append((PROPERTY, str(verdict)))
        if fails or (verdict == Verdict.FLAGGED and self._session.options.strict):
            pytest.fail(text, pytrace=False)
