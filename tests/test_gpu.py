"""Whether the GPU path works on this machine: `pytest tests/test_gpu.py -m gpu --require-gpu`.

Without a GPU the tests are skipped with the reason, or fail with --require-gpu. Please report what
fails, with the output of `enginegate doctor` and the folder that --gpu-artefacts names, as
docs/gpu.md says.
"""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from enginegate.accuracy.deltas import compare, violations
from enginegate.accuracy.limits import limits_for
from enginegate.cache import Store
from enginegate.engines import BuildHints
from enginegate.engines.api import embed_all
from enginegate.engines.build import build_engine, execution_flags
from enginegate.engines.onnxruntime import open_onnx
from enginegate.engines.registry import what_lacks
from enginegate.errors import EngineError
from enginegate.machine.gpus import find_gpus
from enginegate.machine.nvml import read_state
from enginegate.models import Exported, Kind, ModelSpec
from enginegate.models.workload import default_corpus, hashed_tokenizer, make_workload
from enginegate.variants import Precision, Variant

pytestmark = pytest.mark.gpu
_LENGTH = 128
ROLES = {"input_ids": "ids", "attention_mask": "mask"}
CASES = [
    *(("tensorrt", p) for p in Precision if p is not Precision.BEST),
    *(("onnxruntime-cuda", p) for p in (Precision.FP32, Precision.FP16, Precision.BF16)),
]


@pytest.fixture(autouse=True)
def usable(request):
    """The backend of the test, or TensorRT, can be used here."""
    given = getattr(request.node, "callspec", None)
    name = given.params.get("backend", "tensorrt") if given else "tensorrt"
    lacking = what_lacks(name)
    if lacking and request.config.getoption("--require-gpu"):
        pytest.fail(f"{name} cannot run here: {lacking}", pytrace=False)
    if lacking:
        pytest.skip(f"{name} cannot run here: {lacking}; with --require-gpu this fails")


@pytest.fixture(scope="module")
def models():
    """What writes small models."""
    path = Path(__file__).parent / "selftest" / "tiny.py"
    spec = importlib.util.spec_from_file_location("enginegate_tiny_for_gpu", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(tmp_path, models):
    onnx = models.write_tiny_onnx(tmp_path / "tiny.onnx")
    model = ModelSpec("tiny", Kind.ONNX, str(onnx), vocab_size=200, seq_len=8)
    return Exported(model, onnx, "hash", "seeded", None, ROLES, "sentence_embedding")


@pytest.fixture
def workload():
    return make_workload("corpus", default_corpus(), hashed_tokenizer(200, 8), ROLES)


@pytest.fixture
def build(tmp_path, tiny, workload):
    def make(backend, precision, store="store"):
        demand = BuildHints(timings=tmp_path / "timings")
        variant = Variant("tiny", backend, precision)
        return build_engine(Store(tmp_path / store), variant, tiny, workload, demand)

    return make


def test_the_driver_names_the_gpu():
    gpu = find_gpus().gpus[0]
    assert gpu.name


def test_what_is_copied_to_the_gpu_comes_back():
    from enginegate.engines.tensorrt.device import open_device

    with open_device() as cuda:
        source, target = (cuda.pinned(1 << 22) for _ in range(2))
        source.array.view(np.float32)[:] = np.arange(1 << 20, dtype=np.float32)
        memory, stream = cuda.memory(1 << 22), cuda.stream()
        first, last = cuda.event(), cuda.event()
        first.record(stream)
        cuda.copy_in(memory, source.array, stream)
        cuda.copy_out(target.array, memory, stream)
        last.record(stream)
        stream.synchronize()
        assert np.array_equal(source.array, target.array)
        assert 0 < first.seconds_until(last) < 1
        for step in (memory.free, source.free, target.free, first.close, last.close, stream.close):
            step()


@pytest.mark.parametrize(("backend", "precision"), CASES)
def test_every_precision_runs_is_proven_and_is_within_its_limits(
    build, tiny, workload, backend, precision
):
    reference = open_onnx(tiny.onnx, tiny.output, workload.batch(2), threads=1)
    built = build(backend, precision)
    with built.load(workload, threads=1) as engine:
        found = embed_all(engine, workload.evaluation)
        assert execution_flags(built, engine.executed) == ()
    deltas = compare(found, embed_all(reference, workload.evaluation))
    assert violations(deltas, limits_for(precision, {})) == ()


def test_a_plan_is_loaded_again_and_again_and_gives_its_memory_back(build, workload):
    built = build("tensorrt", Precision.FP16)
    from enginegate.engines.tensorrt.device import open_device

    free_bytes = []
    for _ in range(6):  # each time without a context around it
        with built.load(workload, threads=1) as engine:
            engine.embed(workload.batch(4))
        with open_device() as cuda:
            free_bytes.append(cuda.free_bytes())
    assert free_bytes[-1] >= free_bytes[1] - (1 << 20)


def test_phases_add_up_to_a_plausible_time(build, workload):
    with build("tensorrt", Precision.FP32).load(workload, threads=1) as engine:
        engine.embed(workload.batch(32))
        phases = engine.phases
    assert 0 < phases.h2d_s + phases.compute_s + phases.d2h_s < 1
    assert 0 < phases.enqueue_s < 1


def test_timings_of_a_build_are_kept(build, tmp_path):
    build("tensorrt", Precision.FP32)
    (path,) = (tmp_path / "timings").iterdir()
    assert path.stat().st_size > 32
    build("tensorrt", Precision.FP32, store="other")


def test_a_batch_beyond_the_profile_is_a_clear_error(build, workload):
    with build("tensorrt", Precision.FP32).load(workload, threads=1) as engine:
        with pytest.raises(EngineError, match="outside the engine's profile"):
            engine.embed(workload.batch(33))
        assert len(engine.embed(workload.batch(1))) == 1


@pytest.fixture(scope="module")
def long_texts():
    return make_workload("corpus", default_corpus(), hashed_tokenizer(200, _LENGTH), ROLES)


@pytest.fixture
def transformer(tmp_path, models, long_texts):
    """A BERT of two layers, of any seed, and its engines."""

    def make(backend, precision, seed=7, **demanded):
        onnx = models.write_bert(
            tmp_path / f"{seed}.onnx", hidden=384, layers=2, heads=12, seed=seed
        )
        spec = ModelSpec("bert", Kind.ONNX, str(onnx), vocab_size=200, seq_len=_LENGTH)
        model = Exported(spec, onnx, f"seed {seed}", "seeded", None, ROLES, "sentence_embedding")
        demand = BuildHints(timings=tmp_path / "timings", **demanded)
        variant = Variant("bert", backend, precision)
        built = build_engine(Store(tmp_path / "store"), variant, model, long_texts, demand)
        batch = long_texts.batch(8)
        reference = open_onnx(onnx, model.output, batch, threads=0)
        return built, batch, reference.embed(batch)

    return make


@pytest.fixture
def keep(request):
    """Write what tells how an engine ran, where --gpu-artefacts wants it."""

    def write(name, engine, built):
        if folder := request.config.getoption("--gpu-artefacts"):
            root = Path(folder)
            root.mkdir(parents=True, exist_ok=True)
            (root / f"{name}.layers.json").write_text(engine.runner.inspect())
            said = [engine.mode, str(dict(engine.executed.matmuls)), *built.notes]
            (root / f"{name}.txt").write_text("\n".join(said))
            command = [shutil.which("nvidia-smi") or "true", "-q"]
            told = subprocess.run(command, capture_output=True, text=True, check=False)
            (root / "nvidia-smi.txt").write_text(told.stdout)

    return write


@pytest.mark.parametrize("precision", [p for p in Precision if p is not Precision.BEST])
def test_every_layer_of_a_transformer_is_proven(transformer, long_texts, keep, precision):
    """Sixteen products: twelve with weights, and two in each attention, which int8 leaves."""
    built, batch, wanted = transformer("tensorrt", precision)
    with built.load(long_texts, threads=1) as engine:
        found = [engine.embed(batch) for _ in range(2)]
        keep(precision, engine, built)
        assert sum(engine.executed.matmuls.values()) == 16
        assert execution_flags(built, engine.executed) == ()
    assert np.array_equal(*found)  # without a graph, and from one
    assert violations(compare(found[0], wanted), limits_for(precision, {})) == ()


def test_a_transformer_in_fp16_is_faster_than_in_fp32(transformer, long_texts):
    compute_s = {}
    for precision in (Precision.FP32, Precision.FP16):
        built, _, _ = transformer("tensorrt", precision)
        with built.load(long_texts, threads=1) as engine:
            for _ in range(20):
                engine.embed(long_texts.batch(32))
            compute_s[precision] = engine.phases.compute_s
    assert compute_s[Precision.FP16] < compute_s[Precision.FP32]


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-tensorrt"])
def test_a_transformer_that_was_trained_again_is_another_engine(transformer, long_texts, backend):
    for seed in (7, 8, 7):
        built, batch, wanted = transformer(backend, Precision.FP16, seed)
        with built.load(long_texts, threads=1) as engine:
            assert compare(engine.embed(batch), wanted).cosine_worst > 0.999


def test_tf32_is_named_where_it_is_allowed(transformer, long_texts, keep):
    built, _, _ = transformer("tensorrt", Precision.FP32, tf32=True)
    with built.load(long_texts, threads=1) as engine:
        keep("tf32", engine, built)
        kinds = set(engine.executed.matmuls)
    if find_gpus().gpus[0].has_bf16:  # and so TF32
        assert kinds & {"tf32", "f32 or tf32"}


def test_the_state_of_the_gpu_is_read():
    state = read_state()
    assert state, "nvidia-ml-py tells nothing: pip install nvidia-ml-py"
    assert state.sm_mhz > 0
    assert 0 < state.power_w < 2000
