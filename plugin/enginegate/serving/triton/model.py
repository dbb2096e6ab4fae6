"""The model that Triton's Python backend runs: copied into the repository as `model.py`.

Loads the engine as the tests do, in the server's environment. Beside it lie `engine.json` (what
to load), `probe.npz` (the inputs of the first inference) and the folder `engine`.
"""

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

sys.path += os.environ["ENGINEGATE_PATHS"].split(os.pathsep)  # Triton runs an isolated Python
from enginegate.engines import Engine, get_backend, register
from enginegate.models import Batch


class TritonPythonModel:
    """One instance of a model, in a process of its own."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engine. Triton shows the error of a model that raises here."""
        _refuse_numpy_2()
        folder = Path(args["model_repository"], args["model_version"])
        config = json.loads(args["model_config"])
        threads = int(config["parameters"]["threads"]["string_value"])
        self._inputs = [entry["name"] for entry in config["input"]]
        self._output = config["output"][0]["name"]
        self._closing = contextlib.ExitStack()
        self._engine: Engine = self._closing.enter_context(_loaded(folder, threads))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests from one inference; if that fails, from one inference each."""
        batches = [self._batch(request) for request in requests]
        try:
            return self._answers(batches)
        except Exception as error:  # whatever it is, the client is to read it
            if len(batches) == 1:
                return [_refusal(error)]
        return [answer for request in requests for answer in self.execute([request])]

    def finalize(self) -> None:
        """Close the engine."""
        self._closing.close()

    def _batch(self, request: Any) -> Batch:
        tensors = {n: triton.get_input_tensor_by_name(request, n) for n in self._inputs}
        return {name: tensor.as_numpy() for name, tensor in tensors.items()}

    def _answers(self, batches: Sequence[Batch]) -> list[Any]:
        whole = {n: np.concatenate([batch[n] for batch in batches]) for n in self._inputs}
        ends = np.cumsum([len(batch[self._inputs[0]]) for batch in batches])
        parts = np.split(self._engine.embed(whole), ends[:-1])
        tensors = (triton.Tensor(self._output, np.ascontiguousarray(part)) for part in parts)
        return [triton.InferenceResponse([tensor]) for tensor in tensors]


def _refusal(error: Exception) -> Any:
    return triton.InferenceResponse([], triton.TritonError(f"{type(error).__name__}: {error}"))


def _refuse_numpy_2() -> None:
    if int(np.__version__.partition(".")[0]) > 1:
        raise RuntimeError(
            f"numpy {np.__version__} in the server: Triton's Python backend answers wrong values "
            "with numpy 2 and later; install numpy<2 where the server runs"
        )


def _loaded(folder: Path, threads: int) -> contextlib.AbstractContextManager[Engine]:
    engine = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
    register(engine["backend"], engine["target"])
    backend = get_backend(engine["backend"])
    return backend.load(folder / "engine", engine["properties"], _probe(folder), threads)


def _probe(folder: Path) -> Batch:
    with np.load(folder / "probe.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays}
