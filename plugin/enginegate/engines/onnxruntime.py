"""ONNX Runtime on the CPU: the reference, and engines in fp32, rounded to fp16 or bf16, int8 Q/DQ.

It multiplies in fp32 whatever a graph says, and drops casts that a graph needs for its types. So
half precision is fp32 with every value rounded, and each rounding must be seen at work.
"""

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
from enginegate.engines.quantize import copy_onnx, quantize_qdq, round_to, roundings_of
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
_ROUNDED = (Precision.FP16, Precision.BF16)
_MERGES = "CommonSubexpressionElimination"  # two casts of the same value would be one
_IS_ROUNDED = "rounded"  # of a built engine
_US_PER_S = 1e6
_STATES = MappingProxyType(
    {"denormals": "kept", "TF32": "none on a CPU", "AMX": "not told by ONNX Runtime"}
)
Event = Mapping[str, Any]
_MATMULS = ("MatMul", "Gemm", "Attention", "Conv", "LSTM", "GRU", "RNN")
_IN_INT8 = ("DynamicQuantize", "MatMulInteger", "ConvInteger", "QLinear", "QGemm", "QAttention")


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
        if precision in _ROUNDED:
            return (
                f"values rounded to {precision} wherever an engine has it, computed in f32: the "
                f"deltas are those of {precision} arithmetic with f32 accumulation, the speed is "
                f"not that of {precision} hardware"
            )
        return "ONNX Runtime's CPU provider has no such kernel for every operator"

    def build(
        self, model: Exported, precision: Precision, calibration: Batch, folder: Path
    ) -> Mapping[str, Any]:
        """Write `engine.onnx` in the given precision."""
        target = folder / ONNX_FILE
        if model.nature.is_quantised:
            copy_onnx(model.onnx, target)
        elif precision in _ROUNDED:
            round_to(precision, model.onnx, target)
        elif precision is Precision.INT8:
            quantize_qdq(model.onnx, target, calibration)
        else:
            copy_onnx(model.onnx, target)
        return {"output": model.output, _IS_ROUNDED: precision in _ROUNDED}

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
        path, output = folder / ONNX_FILE, properties["output"]
        roundings = roundings_of(path, output) if properties.get(_IS_ROUNDED) else frozenset()
        yield open_onnx(path, output, probe, threads, roundings)

    def profile(
        self, folder: Path, properties: Mapping[str, Any], batch: Batch, threads: int
    ) -> Profile:
        """Profile its time by the runtime's own profile."""
        with profiled(folder / ONNX_FILE, threads) as (session, events):
            for _ in range(_PROFILED_RUNS):
                session.run([properties["output"]], dict(batch))
        states = {"provider": ", ".join(session.get_providers()), **_STATES}
        return profile_of(map(_kernel, events), states)


def open_onnx(
    path: Path,
    output: str,
    probe: Batch,
    threads: int,
    roundings: frozenset[str] = frozenset(),
) -> OnnxRuntimeEngine:
    """Any ONNX file as an engine; `probe` runs once, profiled, to prove what executes.

    Raises EngineError if the file does not load, the probe does not run, or one of the nodes in
    `roundings` does not.
    """
    merging = [_MERGES] if roundings else []
    with profiled(path, threads, without=merging) as (session, events):
        session.run([output], dict(probe))
    _refuse_unrounded(events, roundings)
    return OnnxRuntimeEngine(session, output, executed_in(events))


@contextlib.contextmanager
def profiled(
    path: Path,
    threads: int,
    providers: Sequence[Any] = _PROVIDERS,
    without: Sequence[str] = (),
) -> Iterator[tuple[Any, list[Event]]]:
    """A session, profiled inside; the list then holds an event per kernel that ran.

    `without` names optimisations of the graph that are left out.

    Raises EngineError if the file does not load, or what happens inside fails.
    """
    events: list[Event] = []
    with scratch_folder() as folder:
        options = _session_options(threads, folder / "profile")
        try:
            session = ort.InferenceSession(
                str(path), options, list(providers), disabled_optimizers=list(without)
            )
            yield session, events
        except EngineError:
            raise
        except Exception as error:  # the runtime raises its own, unrelated kinds
            raise EngineError(f"ONNX Runtime cannot run {path}: {error}") from error
        written = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    events += [event for event in written if event["name"].endswith(_KERNEL)]


def run_onnx(path: Path, batch: Batch, *, optimised: bool = True) -> Embeddings:
    """Run an exported model once in fp32 and return its first output, float32 [batch, dim]."""
    return np.asarray(
        session_of(path, optimised=optimised).run(None, dict(batch))[0], dtype=np.float32
    )


def session_of(path: Path, threads: int = 0, *, optimised: bool = True) -> Any:
    """A session of an ONNX file, not profiled; 0 threads for as many as there are processors."""
    options = _session_options(threads, profile=None)
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=list(_PROVIDERS))


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


def _refuse_unrounded(events: Sequence[Event], roundings: frozenset[str]) -> None:
    ran = {event["name"].removesuffix(_KERNEL) for event in events}
    if left_out := sorted(roundings - ran):
        raise EngineError(
            f"ONNX Runtime {ort.__version__} left out {len(left_out)} of {len(roundings)} casts "
            f"that round to half precision, {left_out[0]} among them, so this would not be half "
            "precision: report it, and judge this precision on hardware that computes in it"
        )


def _kernel(event: Event) -> tuple[Kernel, float]:
    """The kernel that ran, and its seconds."""
    arguments, name = event["args"], event["name"].removesuffix(_KERNEL)
    kind, provider = arguments["op_name"], arguments["provider"]
    return Kernel(name, kind, _compute_type(arguments), provider, 0.0), event["dur"] / _US_PER_S


def _compute_type(kernel: Event) -> str:
    """Type of the first value that is neither an index nor a truth, else of the first one.

    An operator of whole numbers multiplies in those of its weights, whatever its first operand is.
    """
    values = [*kernel["input_type_shape"], *kernel["output_type_shape"]]
    names = [name for value in values for name in value]
    eight = any(name in kernel["op_name"] for name in _IN_INT8)
    wanted = ("int8", "uint8") if eight else tuple(_ELEMENT_TYPES)
    found = next((name for name in names if name in wanted), names[0])
    return _ELEMENT_TYPES.get(found, found)
