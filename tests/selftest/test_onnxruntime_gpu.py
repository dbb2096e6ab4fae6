"""ONNX Runtime's GPU providers: nothing runs on the processor without a word. A fake runtime."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import onnxruntime as real
import pytest

from enginegate.cache import Store
from enginegate.engines import BuildHints
from enginegate.engines.api import embed_all
from enginegate.engines.build import build_engine, execution_flags
from enginegate.engines.registry import get_backend
from enginegate.errors import EngineError
from enginegate.models import Exported, Kind, ModelSpec
from enginegate.models.workload import default_corpus, hashed_tokenizer, make_workload
from enginegate.variants import Precision, Variant

ROLES = {"input_ids": "ids", "attention_mask": "mask"}
CUDA, TENSORRT, CPU = (f"{name}ExecutionProvider" for name in ("CUDA", "Tensorrt", "CPU"))


@dataclasses.dataclass
class Gpu:
    """What the fake runtime does; `session` is the latest one."""

    loads: tuple[str, ...] = (CUDA, TENSORRT)
    on_cpu: tuple[str, ...] = ()
    session: "Session | None" = None


class Session:
    """ONNX Runtime on the processor that says it runs where it was asked to."""

    def __init__(self, gpu, path, options, providers):
        self.gpu, self.asked = gpu, dict(providers)
        self._real = real.InferenceSession(path, options, providers=[CPU])
        self._providers = [name for name in self.asked if name in gpu.loads]
        self.retries = True
        gpu.session = self

    def get_providers(self):
        return [*self._providers, CPU]

    def disable_fallback(self):
        self.retries = False

    def run(self, names, feeds):
        return self._real.run(names, feeds)

    def end_profiling(self):
        path = self._real.end_profiling()
        events = json.loads(open(path).read())  # noqa: PTH123, SIM115
        for event in events:
            if event["name"].endswith("_kernel_time"):
                kind = event["args"]["op_name"]
                event["args"]["provider"] = CPU if kind in self.gpu.on_cpu else self._providers[0]
        with open(path, "w") as stream:  # noqa: PTH123
            json.dump(events, stream)
        return path


@pytest.fixture
def gpu(fake_gpu, monkeypatch):
    """A fake onnxruntime-gpu."""
    found = Gpu()
    fake = SimpleNamespace(
        **{name: getattr(real, name) for name in ("SessionOptions", "__version__", "__file__")},
        InferenceSession=lambda path, options, providers, **_: Session(
            found, path, options, providers
        ),
        preload_dlls=lambda: None,
    )
    import enginegate.engines.onnxruntime
    import enginegate.engines.onnxruntime_gpu

    monkeypatch.setattr(
        enginegate.engines.registry, "installed_version", lambda name: real.__version__
    )
    monkeypatch.setattr(enginegate.engines.onnxruntime, "ort", fake)
    monkeypatch.setattr(enginegate.engines.onnxruntime_gpu, "ort", fake)
    return found


@pytest.fixture
def workload():
    return make_workload("corpus", default_corpus(), hashed_tokenizer(200, 8), ROLES)


@pytest.fixture
def build(tmp_path, gpu, tiny_onnx, workload):
    spec = ModelSpec("tiny", Kind.ONNX, str(tiny_onnx), vocab_size=200, seq_len=8)
    model = Exported(spec, tiny_onnx, "hash", "here", None, ROLES, "sentence_embedding")

    def make(backend, precision=Precision.FP32, **demanded):
        variant = Variant("tiny", backend, precision)
        return build_engine(Store(tmp_path), variant, model, workload, BuildHints(**demanded))

    return make


def test_the_cuda_provider_runs_without_tf32_and_without_retries(build, gpu, workload):
    built = build("onnxruntime-cuda")
    with built.load(workload, threads=1) as engine:
        assert embed_all(engine, workload.evaluation).dtype == np.float32
        assert execution_flags(built, engine.executed) == ()
    assert gpu.session.asked == {CUDA: {"device_id": "0", "use_tf32": "0"}}
    assert not gpu.session.retries


def test_tf32_is_flagged_where_it_is_allowed(build, workload):
    built = build("onnxruntime-cuda", tf32=True)
    with built.load(workload, threads=1) as engine:
        (flag,) = execution_flags(built, engine.executed)
    assert flag.startswith("fp32 requested, tf32 ran: ")


def load_error(built, workload):
    with pytest.raises(EngineError) as caught, built.load(workload, threads=1):
        pass
    return str(caught.value)


def test_a_provider_that_does_not_load_is_never_replaced(build, gpu, workload):
    gpu.loads = ()
    said = load_error(build("onnxruntime-cuda"), workload)
    assert said.startswith(f"ONNX Runtime took {CPU} in place of {CUDA}: ")


def test_nodes_with_floats_on_the_processor_are_an_error(build, gpu, workload):
    gpu.on_cpu = ("MatMul",)
    said = load_error(build("onnxruntime-cuda"), workload)
    assert "put 1 nodes on the processor" in said
    assert "use --gate-backend tensorrt" in said


def test_index_arithmetic_may_run_on_the_processor(build, gpu, workload):
    gpu.on_cpu = ("Shape", "Unsqueeze_of_ids")
    with build("onnxruntime-cuda").load(workload, threads=1) as engine:
        assert engine.executed.matmuls == {"f32": 1}


def test_without_a_gpu_it_is_never_loaded(build, fake_gpu, workload):
    from enginegate.machine.gpus import find_gpus

    built = build("onnxruntime-cuda")
    fake_gpu.gpus = 0
    find_gpus.cache_clear()
    with pytest.raises(Exception, match="no GPU is visible"), built.load(workload, threads=1):
        pass


def test_the_tensorrt_provider_proves_nothing_and_says_so(build, gpu, workload, monkeypatch):
    import enginegate.engines.onnxruntime_gpu as module

    monkeypatch.setattr(module, "check_tensorrt", lambda folder: None)
    built = build("onnxruntime-tensorrt", Precision.FP16, usual_batch=4, largest_batch=16)
    with built.load(workload, threads=1) as engine:
        (flag,) = execution_flags(built, engine.executed)
    assert flag.startswith("fp16 requested, unseen ran: ONNX Runtime does not tell")
    asked = gpu.session.asked
    assert list(asked) == [TENSORRT, CUDA]
    assert asked[TENSORRT]["trt_profile_max_shapes"] == "input_ids:16x8,attention_mask:16x8"
    assert asked[TENSORRT]["trt_fp16_enable"] == "1"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no TensorRT provider: pip install onnxruntime-gpu"),
        (b"..libnvinfer.so.10..", r"needs TensorRT 10, .*pip install 'tensorrt>=10,<11'"),
    ],
)
def test_the_version_of_tensorrt_is_checked_before_it_is_loaded(tmp_path, gpu, content, said):
    from enginegate.engines.onnxruntime_gpu import check_tensorrt

    if content:
        (tmp_path / "libonnxruntime_providers_tensorrt.so").write_bytes(content)
    with pytest.raises(EngineError, match=said):
        check_tensorrt(tmp_path)


def test_versions_name_the_provider_and_the_gpu(gpu):
    said = get_backend("onnxruntime-cuda").version()
    assert said.endswith("CUDAExecutionProvider on NVIDIA Fake 9000, CUDA 13.0")
