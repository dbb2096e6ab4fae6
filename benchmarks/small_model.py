"""A small model on a real Triton, for what is claimed of the load generator.

One matrix product a text. It may stall: stand still for a while once every period.
"""

import contextlib
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from enginegate.cache import Store
from enginegate.config.serving import Endpoint, Protocol
from enginegate.serving.load.exchange import Exchange, make_exchange
from enginegate.serving.triton.environment import server_environment
from enginegate.serving.triton.server import serve

NAME, OUTPUT, SEQ, DIM, TEXTS = "small", "sentence_embedding", 16, 384, 256
CONFIG = f"""
backend: "python"
max_batch_size: 32
input [
  {{ name: "input_ids" data_type: TYPE_INT64 dims: [ {SEQ} ] }},
  {{ name: "attention_mask" data_type: TYPE_INT64 dims: [ {SEQ} ] }}
]
output [ {{ name: "{OUTPUT}" data_type: TYPE_FP32 dims: [ {DIM} ] }} ]
dynamic_batching {{ }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""
MODEL = """
import os
import sys
import time

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        self.weights = np.random.default_rng(0).normal(size=(%(seq)d, %(dim)d)).astype(np.float32)
        self.next_s = time.monotonic() + %(period_s)r

    def execute(self, requests):
        if %(stall_s)r and time.monotonic() >= self.next_s:
            self.next_s += %(period_s)r
            time.sleep(%(stall_s)r)
        ids = [pb.get_input_tensor_by_name(r, "input_ids").as_numpy() for r in requests]
        whole = np.concatenate(ids).astype(np.float32) / 1000 @ self.weights
        ends = np.cumsum([len(i) for i in ids])[:-1]
        return [
            pb.InferenceResponse([pb.Tensor("%(output)s", np.ascontiguousarray(part))])
            for part in np.split(whole, ends)
        ]
"""


def tokens() -> dict[str, np.ndarray]:
    """int64 [256, 16] of both inputs."""
    ids = np.random.default_rng(1).integers(0, 1000, (TEXTS, SEQ))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def exchange(endpoint: Endpoint) -> Exchange:
    """Requests and what they should give."""
    weights = np.random.default_rng(0).normal(size=(SEQ, DIM)).astype(np.float32)
    batch = tokens()
    expected = batch["input_ids"].astype(np.float32) / 1000 @ weights
    return make_exchange(endpoint, batch, OUTPUT, expected, 1e-4)


@contextlib.contextmanager
def small_server(cache: Path, stall_s: float = 0.0, period_s: float = 0.0) -> Iterator[dict]:
    """Endpoints by protocol of a running server."""
    values = {"seq": SEQ, "dim": DIM, "output": OUTPUT, "stall_s": stall_s, "period_s": period_s}

    def write(repository: Path) -> list[str]:
        folder = repository / NAME / "1"
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(MODEL % values)
        (repository / NAME / "config.pbtxt").write_text(CONFIG)
        return [NAME]

    environment = server_environment(Store(cache), progress)
    with serve(environment, write, progress) as server:
        yield {protocol: server.endpoint(NAME, protocol) for protocol in Protocol}


def progress(_what: str) -> contextlib.AbstractContextManager[None]:
    """Say nothing."""
    return contextlib.nullcontext()


def heading() -> str:
    """Date and machine."""
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    processor = names[0].partition(": ")[2] if names else platform.processor()
    return f"{time.strftime('%Y-%m-%d')}, {len(names)} x {processor}, Linux {platform.release()}"
