"""TensorRT on an NVIDIA GPU: fp32 without TF32, fp16, bf16 and int8, as the ONNX file says them.

The network is strongly typed, so a precision is a conversion of the ONNX file. A plan holds for
one TensorRT version and one GPU; both are stored with it, and another one refuses it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from enginegate.engines.api import (
    PLAN_FILE,
    PROFILES,
    BuildHints,
    Embeddings,
    Executed,
    Phases,
    check_shape,
)
from enginegate.engines.int8 import to_int8
from enginegate.engines.quantize import copy_onnx, name_nodes, to_bf16, to_fp16
from enginegate.engines.tensorrt.builder import Profile, build_plan, runtime_version
from enginegate.engines.tensorrt.device import open_device
from enginegate.engines.tensorrt.inspector import types_of
from enginegate.engines.tensorrt.runner import PlanRunner, open_plan
from enginegate.engines.tensorrt.timing_cache import TimingCacheFile
from enginegate.errors import EngineError
from enginegate.files import scratch_folder
from enginegate.machine import first_gpu, precisions_here
from enginegate.models import Batch, Exported, Tokens
from enginegate.variants import Precision

_PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)


class TensorRtEngine:
    """A plan on the GPU, proven by the engine inspector at every shape it was built for."""

    def __init__(self, runner: PlanRunner, properties: Mapping[str, Any], probe: Batch) -> None:
        self.runner = runner
        found = map(self._inspected, (_of(probe, *shape) for shape in runner.usual_shapes))
        matmuls, tf32 = properties["matmuls"], properties["tf32"]
        self.executed = Executed(types_of(list(found), matmuls, tf32=tf32))

    def _inspected(self, batch: Batch) -> str:
        self.embed(batch)  # the inspector knows the types of dynamic layers only with shapes
        return self.runner.inspect()

    def embed(self, batch: Batch) -> Embeddings:
        """Embeddings float32 [batch, dim]."""
        values = self.runner.run(batch)
        return check_shape(values, len(next(iter(batch.values()))))

    @property
    def mode(self) -> str:
        """What a call is."""
        return self.runner.mode

    @property
    def phases(self) -> Phases:
        """Times of the latest call."""
        return self.runner.phases


@dataclass(frozen=True)
class TensorRt:
    """Builds plans for CUDA's device 0."""

    demand: BuildHints = field(default_factory=BuildHints)
    offers: tuple[Precision, ...] = field(default_factory=lambda: precisions_here(_PRECISIONS))

    def version(self) -> str:
        """Version of TensorRT, and what else a plan depends on: GPU and driver."""
        return f"{_plan_runtime()}, driver {first_gpu().driver}"

    def for_demand(self, demand: BuildHints) -> "TensorRt":
        """A backend that builds for these batch sizes."""
        return TensorRt(demand, self.offers)

    def stand_in(self, precision: Precision) -> str | None:  # noqa: ARG002
        """None: what the GPU lacks shows in the proof."""
        return None

    def limitation(self, precision: Precision) -> str:
        """The reason why TensorRT may run another type."""
        if precision is Precision.FP32:
            return "TensorRT multiplies in TF32 only where --gate-tf32 allows it"
        return "TensorRT kept these layers in another type than their ONNX nodes have"

    def build(
        self, model: Exported, precision: Precision, calibration: Batch, folder: Path
    ) -> Mapping[str, Any]:
        """Write the plan, for this GPU, of the ONNX file converted to the given precision."""
        with scratch_folder() as temporary, open_device():
            onnx = temporary / f"{model.spec.name}-{precision}.onnx"
            inside = _convert(model, onnx, precision, calibration)
            matmuls = name_nodes(onnx)
            cache = TimingCacheFile.in_folder(self.demand.timings, self.version())
            profiles = self._profiles(model)
            plan, warnings = build_plan(onnx, profiles, cache, tf32=self.demand.tf32)
        (folder / PLAN_FILE).write_bytes(plan)
        return {
            "output": model.output,
            "runtime": _plan_runtime(),
            "matmuls": matmuls,
            "apart": 0 if inside is None else len(matmuls) - len(inside),
            "tf32": self.demand.tf32,
            PROFILES: len(profiles),
            "notes": warnings,
        }

    def _profiles(self, model: Exported) -> list[Profile]:
        """One for each batch size to be fastest at, from the one before; the last goes on.

        Of texts in buckets one for each bucket, for batches of any size.
        """
        if self.demand.lengths:
            return self._by_length(model)
        buckets, length = self.demand.buckets, model.seq_len
        lowest = [1, *(size + 1 for size in buckets)]
        highest = [*buckets[:-1], self.demand.largest_batch]
        return [
            dict.fromkeys(model.inputs, ((low, 1), (usual, length), (high, length)))
            for low, usual, high in zip(lowest, buckets, highest, strict=False)
        ]

    def _by_length(self, model: Exported) -> list[Profile]:
        usual, largest = self.demand.usual_batch, self.demand.largest_batch
        lengths = self.demand.lengths
        shortest = [1, *(length + 1 for length in lengths)]
        return [
            dict.fromkeys(model.inputs, ((1, low), (usual, length), (largest, length)))
            for low, length in zip(shortest, lengths, strict=False)
        ]

    @contextlib.contextmanager
    def load(
        self,
        folder: Path,
        properties: Mapping[str, Any],
        probe: Batch,
        threads: int,  # noqa: ARG002
    ) -> Iterator[TensorRtEngine]:
        """Load `engine.plan`. `threads` are of processors, and a GPU has its own."""
        _refuse_other(properties["runtime"], _plan_runtime(), folder)
        path, output = folder / PLAN_FILE, properties["output"]
        with open_device() as cuda, open_plan(cuda, path, output) as runner:
            yield TensorRtEngine(runner, properties, probe)


def _of(batch: Batch, rows: int, tokens: int) -> Batch:
    """The rows and tokens of a batch over again, until there are so many."""

    def many(values: Tokens) -> Tokens:
        found, wide = values.shape
        return np.ascontiguousarray(
            values[np.arange(rows)[:, None] % found, np.arange(tokens) % wide]
        )

    return {name: many(values) for name, values in batch.items()}


def _convert(
    model: Exported, target: Path, precision: Precision, calibration: Batch
) -> frozenset[str] | None:
    """Write the file in the given precision; what multiplies in it, None for everything."""
    if model.nature.is_quantised or precision is Precision.FP32:
        copy_onnx(model.onnx, target)
        return None
    if precision is Precision.INT8:
        return to_int8(model.onnx, target, calibration)
    return (to_fp16 if precision is Precision.FP16 else to_bf16)(model.onnx, target)


def _plan_runtime() -> str:
    """What a plan runs in, and nowhere else: a version of TensorRT, and a GPU. Drivers may differ.

    Raises EngineError for a version that cannot be used, or without a GPU.
    """
    return f"tensorrt {runtime_version()} on {first_gpu().name}"


def _refuse_other(built: str, here: str, folder: Path) -> None:
    if built != here:
        raise EngineError(
            f"the plan in {folder} was built by {built}, this is {here}: a plan runs only where "
            "it was built; build it here"
        )
