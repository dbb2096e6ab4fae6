"""Requests and answers as bytes, times of requests, and what a window cuts out of them."""

import numpy as np
import pytest
from tests.selftest.kserve import OUTPUT, TEXTS, embed, exchange, tokens

from enginegate.config.serving import Arrivals, Endpoint, Protocol
from enginegate.errors import ServingError
from enginegate.serving.load.exchange import make_exchange, read_answer
from enginegate.serving.load.generator import schedule
from enginegate.serving.load.windows import cut


def test_exchange_needs_an_expectation_for_each_text():
    with pytest.raises(ServingError, match=f"3 expected embeddings for {TEXTS} texts of fake"):
        exchange("127.0.0.1:1", expected=np.zeros((3, 4), np.float32))


def test_name_of_a_model_is_quoted_in_the_path():
    endpoint, batch = Endpoint(Protocol.HTTP, "127.0.0.1:1", "mini lm/ü?"), tokens()
    asked = make_exchange(endpoint, batch, OUTPUT, embed(batch["input_ids"]), 1e-3)
    assert asked.requests[0].startswith(b"POST /v2/models/mini%20lm%2F%C3%BC%3F/infer HTTP/1.1\r\n")


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_tokens_go_in_the_type_of_their_input(kind):
    batch = {name: values.astype(kind) for name, values in tokens().items()}
    expected, name = embed(batch["input_ids"]), f"INT{8 * np.dtype(kind).itemsize}"
    http, grpc = (
        make_exchange(Endpoint(p, "127.0.0.1:1", "tiny"), batch, OUTPUT, expected, 0.1).requests[0]
        for p in Protocol
    )
    first = next(iter(batch.values()))[0]
    assert b'"datatype":"' + name.encode() in http
    assert name.encode() in grpc
    assert first.tobytes() in http
    assert first.tobytes() in grpc


def test_another_output_is_no_answer():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 14"
    with pytest.raises(ServingError, match="no output 'other' in the answer"):
        read_answer(Protocol.HTTP, head, b'{"outputs":[]}', "other")


def test_schedules():
    even = schedule(100, Arrivals.CONSTANT, 2, 0)
    assert np.allclose(np.diff(even), 0.01)
    assert len(even) == 200
    random = schedule(1000, Arrivals.POISSON, 20, 5)
    gaps = np.diff(random)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert np.array_equal(random, schedule(1000, Arrivals.POISSON, 20, 5))


def test_a_request_across_the_edge_counts_by_its_part():
    sent, received = np.array([0.0, 2.0, 3.0]), np.array([2.0, 3.0, 7.0])
    window = cut(sent, received, 1, 5)
    assert window.answered == pytest.approx(0.5 + 1 + 0.5)
    assert window.mean_s == pytest.approx(2)
    assert window.throughput_per_s * window.mean_s == pytest.approx(1)
    assert window.latencies_s.tolist() == [2, 1]
