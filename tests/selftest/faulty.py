"""A backend that runs ONNX Runtime and spoils it, by the word in $ENGINEGATE_PLANTED_FAULT."""

import contextlib
import dataclasses
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from enginegate.engines.onnxruntime import OnnxRuntime
from enginegate.speed import timing
from enginegate.variants import Precision

BUSY_S = 0.002
_SERVER = "triton_python_backend_utils"  # loaded there alone
PACE_S = 0.005  # of a served call, in sleep: other jobs do not lengthen it


class FaultyEngine:
    """An engine whose every call takes at least 2 ms, so that a fault of speed has a scale."""

    def __init__(self, engine, fault):
        self.engine, self._fault = engine, fault
        self.executed = engine.executed
        if fault == "another type":
            matmuls = {"bf16": sum(engine.executed.matmuls.values())}
            self.executed = dataclasses.replace(engine.executed, matmuls=matmuls)
        self._calls = 0

    def embed(self, batch):
        rows = len(batch["input_ids"])
        if self._fault == "sees 40 tokens":
            seen = np.arange(batch["attention_mask"].shape[1]) < 40
            batch = {**batch, "attention_mask": batch["attention_mask"] * seen}
        embeddings = np.array(self.engine.embed(batch))
        if _SERVER in sys.modules:
            embeddings = self._served(embeddings)
        _work(BUSY_S * self._slowdown())
        return _SPOIL.get(self._fault, _as_it_is)(embeddings) if rows > 2 else embeddings

    def _served(self, embeddings):
        """Faults of the server alone."""
        self._calls += 1
        if self._fault == "served: kills the server" and self._calls > 300:
            os.kill(os.getppid(), signal.SIGKILL)
        if self._fault == "served: slow batches of 2 to 4" and len(embeddings) in (2, 3, 4):
            time.sleep(0.15)
        time.sleep({"served: slow": 8 * PACE_S, "served: pace": PACE_S}.get(self._fault, 0.0))
        return embeddings + 1 if self._fault == "served: other embeddings" else embeddings

    def _slowdown(self):
        self._calls += 1
        tail = 3.0 if self._calls % 20 == 0 else 1.0
        return {"slow": 1.4, "slow tail": tail}.get(self._fault, 1.0)


class Faulty(OnnxRuntime):
    offers: tuple[Precision, ...] = (Precision.FP32, Precision.INT8)

    @contextlib.contextmanager
    def load(self, folder, properties, probe, threads):
        fault = os.environ.get("ENGINEGATE_PLANTED_FAULT", "")
        if fault.startswith("served: ") and "/candidate/" not in str(folder):
            fault = "served: pace" if fault == "served: slow" else ""  # a yardstick
        if fault == "served: does not load" and _SERVER in sys.modules:
            raise RuntimeError("planted: it does not load")
        with super().load(folder, properties, probe, threads) as engine:
            yield FaultyEngine(engine, fault)


def _work(seconds):
    """Takes so long by the clock of `timing`: at once where a test has put its own there."""
    if skip := getattr(vars(timing)["time"], "skip", None):
        skip(seconds)
        return
    if _SERVER in sys.modules:
        time.sleep(seconds)  # no processor is taken from what else runs
        return
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _as_it_is(embeddings):
    return embeddings


def _swapped(embeddings):
    embeddings[[0, 1]] = embeddings[[1, 0]]
    return embeddings


def _nan(embeddings):
    embeddings[1, 3] = np.nan
    return embeddings


_SPOIL: dict[str, Any] = {
    "swapped rows": _swapped,
    "nan": _nan,
    "head off by 1 %": lambda embeddings: embeddings * np.float32(1.01),
    "all zero": np.zeros_like,
    "constant": lambda embeddings: np.broadcast_to(embeddings[0], embeddings.shape),
}


class Dynamic(OnnxRuntime):
    """int8 with ranges taken from each batch: an embedding changes with its batch-mates."""

    offers: tuple[Precision, ...] = (Precision.INT8,)

    def build(self, model, precision, calibration, folder):
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(model.onnx, folder / "engine.onnx")
        return {"output": model.output}


class Restless(OnnxRuntime):
    """A backend whose builds differ: by a little, or from the second one on by far."""

    builds = 0

    def build(self, model, precision, calibration, folder):
        import onnx
        from onnx import numpy_helper

        Restless.builds += 1
        off = 0.2 if os.environ.get("ENGINEGATE_PLANTED_FAULT") == "bad rebuild" else 1e-6
        graph = onnx.load(str(model.onnx))
        head = next(t for t in graph.graph.initializer if t.name == "head")
        values = numpy_helper.to_array(head).copy()
        values[0] *= 1 + off * (Restless.builds - 1)
        head.CopyFrom(numpy_helper.from_array(values, "head"))
        onnx.save(graph, str(folder / "engine.onnx"))
        return {"output": model.output}


class Everything(Faulty):
    """Stands in for a backend that builds every precision."""

    offers: tuple[Precision, ...] = tuple(p for p in Precision if p is not Precision.BEST)
