"""What an engine and its backend are to everybody else."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from enginegate.engines.profile import Profile
from enginegate.errors import EngineError
from enginegate.models import Batch, Exported, for_all, take
from enginegate.variants import Precision

Embeddings = npt.NDArray[np.float32]
ONNX_FILE = "engine.onnx"  # of an engine that is an ONNX graph
PLAN_FILE = "engine.plan"  # of one that is a TensorRT plan
PLANS = ".tensorrt-"  # ONNX Runtime's; a dot: the folders lie among engines and are none
APART, ACCELERATORS, PROFILES = "apart", "accelerators", "profiles"  # of an engine's properties
EMBEDDED_AT_ONCE = 32  # texts
_ENQUEUE_BOUND = 0.8  # of the compute time

EXPECTED_TYPES: Mapping[Precision, frozenset[str]] = MappingProxyType(
    {
        Precision.FP32: frozenset({"f32"}),
        Precision.FP16: frozenset({"f16"}),
        Precision.BF16: frozenset({"bf16"}),
        Precision.INT8: frozenset({"i8", "u8"}),
    }
)


@dataclass(frozen=True)
class Executed:
    """What really ran, read back from the loaded engine after an inference.

    Attributes:
        matmuls: number of matrix multiplications by the element type they computed in
            (`f32`, `f16`, `bf16`, `i8`, `u8`).
    """

    matmuls: Mapping[str, int]

    @property
    def summary(self) -> str:
        """`bf16`, or `u8 75 % f32 25 %`, most frequent first; `none` multiplied."""
        ranked = sorted(self.matmuls.items(), key=lambda item: (-item[1], item[0]))
        total = sum(self.matmuls.values())
        if len(ranked) < 2:  # noqa: PLR2004
            return ranked[0][0] if ranked else "none"
        return " ".join(f"{name} {count / total:.0%}" for name, count in ranked)

    def count_of(self, types: frozenset[str]) -> int:
        """Count the matrix multiplications that ran in one of the given types."""
        return sum(count for name, count in self.matmuls.items() if name in types)


class Engine(Protocol):
    """A loaded engine. Closed by the context manager that `Backend.load` returned."""

    @property
    def executed(self) -> Executed:
        """The types that ran in the inference that `load` made."""

    def embed(self, batch: Batch) -> Embeddings:
        """Embeddings float32 [batch, dim] of whole numbers [batch, seq] by input."""


@dataclass(frozen=True)
class Phases:
    """Times of one call, in seconds, the first three from CUDA events.

    Attributes:
        h2d_s: inputs to the device.
        compute_s: the inference.
        d2h_s: outputs to the host.
        enqueue_s: what the processor needs to hand the inference over.
    """

    h2d_s: float
    compute_s: float
    d2h_s: float
    enqueue_s: float

    @property
    def waits_for_host(self) -> bool:
        """Tell if the GPU may wait for what the processor hands over: trtexec's own rule."""
        return self.enqueue_s > _ENQUEUE_BOUND * self.compute_s


@runtime_checkable
class ReportsPhases(Protocol):
    """An engine that tells where the time of its calls goes; optional."""

    @property
    def mode(self) -> str:
        """What a call is: transfers, CUDA graph, how the host waits, memory of the runtime."""

    @property
    def phases(self) -> Phases:
        """Times of the latest call."""


class Backend(Protocol):
    """Builds engines of one runtime and loads them."""

    offers: tuple[Precision, ...]

    def version(self) -> str:
        """Version of the runtime."""

    def stand_in(self, precision: Precision) -> str | None:
        """The backend that builds `precision` where this one would run another; None for itself."""

    def limitation(self, precision: Precision) -> str:
        """The reason why `precision` may not be what runs on this machine; goes into the flag."""

    def build(
        self, model: Exported, precision: Precision, calibration: Batch, folder: Path
    ) -> Mapping[str, Any]:
        """Write the engine's files into `folder`; return JSON properties that `load` needs.

        Some are looked at elsewhere: `notes`, texts that are told with the engine; `apart`, the
        number of multiplications that the conversion leaves in another type; `accelerators`, names
        of Triton's execution accelerators with their parameters; `profiles`, how many a plan
        has.
        """

    def load(
        self, folder: Path, properties: Mapping[str, Any], probe: Batch, threads: int
    ) -> AbstractContextManager[Engine]:
        """Load a built engine and run `probe` once. Raises EngineError."""


@dataclass(frozen=True)
class Keeping:
    """How to build one engine again and again, each time with other layers kept in fp32.

    Nodes are those of the model's ONNX file, by the name of their first output.

    Attributes:
        touched: the nodes that the engine computes otherwise than in fp32.
        build: writes the engine that keeps the given nodes in fp32 into a folder; returns what
            `Backend.load` needs.
    """

    touched: frozenset[str]
    build: Callable[[frozenset[str], Path], Mapping[str, Any]]


@runtime_checkable
class Keeps(Protocol):
    """A backend that can keep some layers in fp32; optional."""

    def keeping(self, model: Exported, precision: Precision, calibration: Batch) -> Keeping:
        """Do once what all such builds share. With no node kept they give what `build` does.

        Raises EngineError where this precision cannot keep layers.
        """


@runtime_checkable
class Profiles(Protocol):
    """A backend that tells where an engine's time goes; optional."""

    def profile(
        self, folder: Path, properties: Mapping[str, Any], batch: Batch, threads: int
    ) -> Profile:
        """Load a built engine, watched, and run `batch` a few times. Raises EngineError."""


@dataclass(frozen=True)
class BuildHints:
    """What is known before an engine is built, for backends that build for it.

    Attributes:
        usual_batch: batch size to be fastest at, of those that none of `batches` is for.
        batches: further batch sizes to be fastest at.
        largest_batch: largest batch size it will be given.
        tf32: fp32 matrix multiplications may run in TF32.
        timings: folder for timings that make a later build quicker; None keeps none.
        lengths: buckets of tokens, ascending, each to be fast at; empty where all texts have one
            length, that of the model.
    """

    usual_batch: int = 32
    largest_batch: int = 32
    tf32: bool = False
    timings: Path | None = None
    batches: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    @property
    def key(self) -> dict[str, Any]:
        """The settings for which another engine would be built."""
        key = {
            "usual": self.usual_batch,
            "largest": self.largest_batch,
            "tf32": self.tf32,
            "batches": self.buckets,
        }
        return {**key, "lengths": self.lengths} if self.lengths else key

    @property
    def buckets(self) -> list[int]:
        """The batch sizes to be fastest at, ascending."""
        return sorted({*self.batches, self.usual_batch})


@runtime_checkable
class SupportsBuildHints(Protocol):
    """A backend whose engines are built for given batch sizes."""

    def for_demand(self, demand: BuildHints) -> Backend:
        """A backend that builds for it."""


def embed_all(engine: Engine, batch: Batch, size: int = EMBEDDED_AT_ONCE) -> Embeddings:
    """Embeddings of every row, `size` rows of one length at a time: float32 [rows, dim].

    Of a model with a vector for every token, those of each row.
    """
    return for_all(batch, size, lambda rows: engine.embed(take(batch, rows)))


def check_shape(embeddings: npt.NDArray[Any], rows: int) -> Embeddings:
    """The embeddings as float32 [rows, dim], or [rows, tokens, dim] where each token has one.

    EngineError for any other shape.
    """
    if embeddings.ndim not in (2, 3) or embeddings.shape[0] != rows:
        raise EngineError(
            f"the engine returned shape {list(embeddings.shape)} for {rows} texts, not "
            f"[{rows}, dim] or [{rows}, tokens, dim]: name its pooled output with `output` in the "
            "model's table"
        )
    return np.asarray(embeddings, dtype=np.float32)
