"""Whether the GPU path works on this machine: `pytest tests/test_gpu.py -m gpu --require-gpu`.

Without a GPU the tests are skipped with the reason, or fail with --require-gpu. Please report what
fails, with the output of `enginegate doctor`, as docs/gpu.md says.
"""

import importlib.util
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


@pytest.fixture
def tiny(tmp_path):
    path = Path(__file__).parent / "selftest" / "tiny.py"
    spec = importlib.util.spec_from_file_location("enginegate_tiny_for_gpu", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    onnx = module.write_tiny_onnx(tmp_path / "tiny.onnx")
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
    import pycuda.driver as cuda

    from enginegate.engines.tensorrt.device import open_device

    with open_device():
        source, target = (cuda.pagelocked_empty((1 << 20,), np.float32) for _ in range(2))
        source[:] = np.arange(1 << 20, dtype=np.float32)
        memory, stream = cuda.mem_alloc(source.nbytes), cuda.Stream(1)
        first, last = cuda.Event(), cuda.Event()
        first.record(stream)
        cuda.memcpy_htod_async(memory, source, stream)
        cuda.memcpy_dtoh_async(target, memory, stream)
        last.record(stream)
        stream.synchronize()
        assert np.array_equal(source, target)
        assert 0 < first.time_till(last) < 1000
        memory.free()


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
    import pycuda.driver as cuda

    from enginegate.engines.tensorrt.device import open_device

    free_bytes = []
    for _ in range(6):  # each time without a context around it
        with built.load(workload, threads=1) as engine:
            engine.embed(workload.batch(4))
        with open_device():
            free_bytes.append(cuda.mem_get_info()[0])
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


def test_the_state_of_the_gpu_is_read():
    state = read_state()
    assert state, "nvidia-ml-py tells nothing: pip install nvidia-ml-py"
    assert state.sm_mhz > 0
    assert 0 < state.power_w < 2000
