"""What a client asks, of a KServe in a thread."""

import contextlib
import dataclasses
import http.server
import json
import socket
import threading
from typing import Any

import numpy as np
import pytest

from enginegate.config.serving import Deployment, Endpoint, Protocol
from enginegate.errors import ServingError
from enginegate.serving.load.embed import embed_served
from enginegate.serving.triton.client import check_model, deployment_of, statistics
from enginegate.serving.triton.statistics import read_statistics

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"


@pytest.fixture
def batch():
    ids = np.random.default_rng(0).integers(1, 200, (64, 8))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@contextlib.contextmanager
def taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@dataclasses.dataclass
class Answers:
    """What the KServe in a thread answers for the model `tiny`."""

    ready: bool = True
    inputs: tuple[Any, ...] = tuple((name, "INT64", [-1, 8]) for name in INPUTS)
    output: tuple[Any, ...] = (OUTPUT, "FP32", [-1, 16])
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    stats: dict[str, Any] = dataclasses.field(default_factory=dict)

    def of(self, path):
        tensor = ("name", "datatype", "shape")
        return {
            "/v2/models/tiny": {
                "name": "tiny",
                "inputs": [dict(zip(tensor, i, strict=True)) for i in self.inputs],
                "outputs": [dict(zip(tensor, self.output, strict=True))],
            },
            "/v2/models/tiny/config": self.config,
            "/v2/models/tiny/stats": self.stats,
        }.get(path, {"name": "not the one that was started"})


@contextlib.contextmanager
def kserve(answers):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(answers.of(self.path)).encode()
            ready = answers.ready or not self.path.endswith("ready")
            self.send_response(200 if ready else 400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Endpoint(Protocol.HTTP, f"127.0.0.1:{server.server_port}", "tiny")
        server.shutdown()


WRONG: dict[str, Any] = {
    "has no output 'sentence_embedding', but pooled; serve": {
        "output": ("pooled", "FP32", [-1, 16])
    },
    "has output 'sentence_embedding' of width 8, not 16": {"output": (OUTPUT, "FP32", [-1, 8])},
    "has output 'sentence_embedding' of type FP16, not FP32": {
        "output": (OUTPUT, "FP16", [-1, 16])
    },
    "has no input 'attention_mask', but input_ids": {"inputs": (("input_ids", "INT64", [-1, 8]),)},
    "has input 'input_ids' of type INT32, not INT64": {
        "inputs": (("input_ids", "INT32", [-1, 8]), ("attention_mask", "INT64", [-1, 8]))
    },
    "has input 'input_ids' of width 9, not 8": {
        "inputs": (("input_ids", "INT64", [-1, 9]), ("attention_mask", "INT64", [-1, 8]))
    },
    "needs an input 'token_type_ids' that was not exported": {
        "inputs": (*Answers().inputs, ("token_type_ids", "INT64", [-1, 8]))
    },
    "is not ready; load it": {"ready": False},
}


class TestCheckModel:
    def test_the_right_model(self):
        with kserve(Answers(config={"max_batch_size": 4})) as endpoint:
            assert check_model(endpoint, INPUTS, OUTPUT, 8, 16).max_batch_size == 4

    def test_open_widths_are_fine(self):
        output = (OUTPUT, "FP32", [-1, -1])
        with kserve(Answers(output=output, config={"max_batch_size": 4})) as endpoint:
            assert check_model(endpoint, INPUTS, OUTPUT, 8, 16).max_batch_size == 4

    def test_an_input_of_another_width_of_number_is_wrong(self):
        inputs = ((INPUTS[0], "INT32", [-1, 8]), (INPUTS[1], "INT64", [-1, 8]))
        with kserve(Answers(inputs=inputs)) as endpoint:
            check_model(endpoint, INPUTS, OUTPUT, 8, 16, {INPUTS[0]})
            with pytest.raises(ServingError, match="of type INT32, not INT64"):
                check_model(endpoint, INPUTS, OUTPUT, 8, 16)

    @pytest.mark.parametrize("words", WRONG)
    def test_a_wrong_model(self, words):
        with (
            kserve(Answers(**WRONG[words])) as endpoint,
            pytest.raises(ServingError, match=words),
        ):
            check_model(endpoint, INPUTS, OUTPUT, 8, 16)

    @pytest.mark.parametrize("protocol", Protocol)
    def test_nobody_there(self, protocol, batch, monkeypatch):
        monkeypatch.setattr("enginegate.serving.load.transport._CONNECT_S", 0.2)
        with taken_port() as port:
            pass
        endpoint = Endpoint(protocol, f"127.0.0.1:{port}", "tiny")
        with pytest.raises(ServingError, match=f"tiny on {protocol}://127.*see that the server"):
            check_model(endpoint, INPUTS, OUTPUT, 8, 16)
        with pytest.raises(ServingError, match="is it serving"):
            embed_served(endpoint, batch, OUTPUT, 2)

    def test_deployment_as_configured(self):
        config = {
            "max_batch_size": 16,
            "dynamic_batching": {
                "preferred_batch_size": [16],
                "max_queue_delay_microseconds": 10_000,
            },
            "instance_group": [{"count": 2}],
        }
        with kserve(Answers(config=config)) as endpoint:
            assert deployment_of(endpoint) == Deployment(16, (16,), 10_000, 2, threads=0)

    @pytest.mark.parametrize(("said", "threads"), [("2", 2), ("auto", 0), ("-1", 0), ("", 0)])
    def test_threads_that_are_no_number_are_not_known(self, said, threads):
        config = {"parameters": {"threads": {"string_value": said}}}
        with kserve(Answers(config=config)) as endpoint:
            assert deployment_of(endpoint).threads == threads


def counted(success, batches):
    phases = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    return {
        "model_stats": [
            {
                "inference_stats": {name: {"count": success, "ns": "2000"} for name in phases},
                "batch_stats": [
                    {"batch_size": size, "compute_infer": {"count": count}}
                    for size, count in batches.items()
                ],
            }
        ]
    }


class TestStatistics:
    def test_counts_of_a_server(self):
        with kserve(Answers(stats=counted(4, {2: 2}))) as endpoint:
            found = statistics(endpoint)
        assert found.success.count == 4
        assert found.success.mean_s == pytest.approx(5e-7)
        assert found.batches == {2: 2}

    def test_difference(self):
        before, after = (read_statistics(counted(*c)) for c in ((4, {2: 2}), (9, {2: 3, 3: 1})))
        assert after.since(before).success.count == 5
        assert after.since(before).batches == {2: 1, 3: 1}
        assert after.since(after).success.mean_s == 0

    def test_reloaded_meanwhile(self):
        before, after = (read_statistics(counted(*c)) for c in ((4, {2: 2}), (9, {3: 3})))
        with pytest.raises(ServingError, match="went backwards: the model was loaded anew"):
            after.since(before)
