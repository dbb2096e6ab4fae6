"""ONNX Runtime on the CPU: the reference, and engines in fp32, fp16 values and int8 Q/DQ."""

import collections
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort

from enginegate.engines.api import ONNX_FILE, Embeddings, Executed, Keeping, check_shape
from enginegate.engines.graphs import keeping_in_file
from enginegate.engines.profile import Kernel, Profile, profile_of
from enginegate.engines.quantize import copy_onnx, quantize_qdq, to_fp16
from enginegate.errors import EngineError
from enginegate.files import scratch_folder
from enginegate.models import Batch, Exported
from enginegate.variants import Precision

_PROVIDERS = ("CPUExecutionProvider",)
_FATAL_ONLY = 4
_ELEMENT_TYPES = MappingProxyType(
    {
        "float": "f32",
        "float16": "f16",
        "bfloat16": "bf16",
        "int8": "i8",
        "uint8": "u8",
        "double": "f64",
    }
)
_KERNEL = "_kernel_time"  # at the end of an event's name
_PROFILED_RUNS = 10
_US_PER_S = 1e6
_STATES = MappingProxyType(
    {"denormals": "kept", "TF32": "none on a CPU", "AMX": "not told by ONNX Runtime"}
)
Event = Mapping[str, Any]
_MATMULS = ("MatMul", "Gemm", "Attention", "Conv")


class OnnxRuntimeEngine:
    """An inference session on the CPU provider, proven by its own profile."""

    def __init__(self, session: Any, output: str, executed: Executed) -> None:
        self._session = session
        self._output = output
        self.executed = executed

    def embed(self, batch: Batch) -> Embeddings:
        """Embeddings float32 [batch, dim]."""
        (values,) = self._session.run([self._output], dict(batch))
        return check_shape(values, len(next(iter(batch.values()))))


class OnnxRuntime:
    """Builds by converting the ONNX file; the runtime compiles it at every load."""

    offers: tuple[Precision, ...] = (Precision.FP32, Precision.FP16, Precision.INT8)

    def version(self) -> str:
        """Version of ONNX Runtime."""
        return f"onnxruntime {ort.__version__}"

    def stand_in(self, precision: Precision) -> str | None:  # noqa: ARG002
        """None: what the provider lacks shows in the proof."""
        return None

    def limitation(self, precision: Precision) -> str:
        """Say what the CPU provider does with `precision`."""
        if precision is Precision.FP16:
            return (
                "ONNX Runtime's CPU provider keeps fp16 values and computes in f32; "
                "the deltas are those of fp16 values, the speed is not that of fp16 hardware"
            )
        return "ONNX Runtime's CPU provider has no such kernel for every operator"

    def build(
        self, model: Exported, precision: Precision, calibration: Batch, folder: Path
    ) -> Mapping[str, Any]:
        """Write `engine.onnx` in the given precision."""
        target = folder / ONNX_FILE
        if model.nature.is_quantised:
            copy_onnx(model.onnx, target)
        elif precision is Precision.FP16:
            to_fp16(model.onnx, target)
        elif precision is Precision.INT8:
            quantize_qdq(model.onnx, target, calibration)
        else:
            copy_onnx(model.onnx, target)
        return {"output": model.output}

    def keeping(self, model: Exported, precision: Precision, calibration: Batch) -> Keeping:
        """The converted graph, in which nodes of the model's own can be put back."""
        with scratch_folder() as folder:
            properties = self.build(model, precision, calibration, folder)
            return keeping_in_file(folder, model.onnx, properties)

    @contextlib.contextmanager
    def load(
        self, folder: Path, properties: Mapping[str, Any], probe: Batch, threads: int
    ) -> Iterator[OnnxRuntimeEngine]:
        """Load `engine.onnx` of a built engine."""
        yield open_onnx(folder / ONNX_FILE, properties["output"], probe, threads)

    def profile(
        self, folder: Path, properties: Mapping[str, Any], batch: Batch, threads: int
    ) -> Profile:
        """Profile its time by the runtime's own profile."""
        with profiled(folder / ONNX_FILE, threads) as (session, events):
            for _ in range(_PROFILED_RUNS):
                session.run([properties["output"]], dict(batch))
        states = {"provider": ", ".join(session.get_providers()), **_STATES}
        return profile_of(map(_kernel, events), states)


def open_onnx(path: Path, output: str, probe: Batch, threads: int) -> OnnxRuntimeEngine:
    """Any ONNX file as an engine; `probe` runs once, profiled, to prove what executes.

    Raises EngineError if the file does not load or the probe does not run.
    """
    with profiled(path, threads) as (session, events):
        session.run([output], dict(probe))
    return OnnxRuntimeEngine(session, output, executed_in(events))


@contextlib.contextmanager
def profiled(
    path: Path, threads: int, providers: Sequence[Any] = _PROVIDERS
) -> Iterator[tuple[Any, list[Event]]]:
    """A session, profiled inside; the list then holds an event per kernel that ran.

    Raises EngineError if the file does not load, or what happens inside fails.
    """
    events: list[Event] = []
    with scratch_folder() as folder:
        options = _session_options(threads, folder / "profile")
        try:
            session = ort.InferenceSession(str(path), options, providers=list(providers))
            yield session, events
        except EngineError:
            raise
        except Exception as error:  # the runtime raises its own, unrelated kinds
            raise EngineError(f"ONNX Runtime cannot run {path}: {error}") from error
        written = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    events += [event for event in written if event["name"].endswith(_KERNEL)]


def run_onnx(path: Path, batch: Batch, *, optimised: bool = True) -> Embeddings:
    """Run an exported model once in fp32 and return its first output, float32 [batch, dim]."""
    options = _session_options(threads=0, profile=None)
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=list(_PROVIDERS))
    return np.asarray(session.run(None, dict(batch))[0], dtype=np.float32)


def _session_options(threads: int, profile: Path | None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    options.enable_profiling = profile is not None
    if profile is not None:
        options.profile_file_prefix = str(profile)
    return options


def executed_in(events: Sequence[Event]) -> Executed:
    """Matrix multiplications of a profile by the type they computed in."""
    kernels = (event["args"] for event in events)
    types = (_compute_type(k) for k in kernels if any(m in k["op_name"] for m in _MATMULS))
    return Executed(dict(collections.Counter(types)))


def _kernel(event: Event) -> tuple[Kernel, float]:
    """The kernel that ran, and its seconds."""
    arguments, name = event["args"], event["name"].removesuffix(_KERNEL)
    kind, provider = arguments["op_name"], arguments["provider"]
    return Kernel(name, kind, _compute_type(arguments), provider, 0.0), event["dur"] / _US_PER_S


def _compute_type(kernel: Event) -> str:
    """Type of the first value that is neither an index nor a truth, else of the first one."""
    values = [*kernel["input_type_shape"], *kernel["output_type_shape"]]
    names = [name for value in values for name in value]
    found = next((name for name in names if name in _ELEMENT_TYPES), names[0])
    return _ELEMENT_TYPES.get(found, found)
