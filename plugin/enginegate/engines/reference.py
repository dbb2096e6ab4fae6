"""The reference: the model's ONNX file, run by ONNX Runtime in fp32."""

from pathlib import Path

from enginegate.engines.api import Embeddings, Engine
from enginegate.models import Batch


def open_reference(onnx: Path, output: str, probe: Batch, threads: int) -> Engine:
    """A model's file, loaded; `probe` runs once. Raises EngineError if it does not run."""
    from enginegate.engines.onnxruntime import open_onnx

    return open_onnx(onnx, output, probe, threads)


def run_reference(path: Path, batch: Batch, *, optimised: bool = True) -> Embeddings:
    """The first output of an ONNX file for one batch, float32 [batch, dim].

    `optimised`: the runtime may change the graph, as it does for every engine of its own.
    """
    from enginegate.engines.onnxruntime import run_onnx

    return run_onnx(path, batch, optimised=optimised)
