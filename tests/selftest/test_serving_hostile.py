"""A server that answers whatever it likes: one clear error, in time, that names its address."""

import numpy as np
import pytest
from tests.selftest import hostile_grpc
from tests.selftest.hostile_server import (
    BATCH,
    DEEP,
    DRIPS,
    EMBEDDINGS,
    ask,
    cases,
    drip,
    hostile,
    sent,
    serving,
)

from enginegate.config.serving import Deployment, _endpoint
from enginegate.errors import OptionError, ServingError
from enginegate.serving.load import embed
from enginegate.serving.load.exchange import make_exchange
from enginegate.serving.load.generator import open_generator
from enginegate.serving.load.sweep import LevelRules, run_level
from enginegate.serving.triton import client
from enginegate.serving.triton.client import server_name
from enginegate.serving.untrusted import MOST_BYTES, shown

pytestmark = pytest.mark.xdist_group("server")

RULES = LevelRules(warm_up_s=0.05, min_window_s=0.05, limit_s=240, window_requests=1, tolerance=-1)


def test_a_server_that_answers_well_passes():
    with hostile() as (endpoint, _):
        deployment, embeddings, counted = ask(endpoint)
    assert deployment == Deployment(4, instances=0, threads=2)
    assert embeddings.tolist() == [[0.0] * 4] * 3
    assert (counted.success.count, counted.batches) == (3, {1: 3})


@pytest.mark.parametrize(
    ("place", "answer", "words"), [pytest.param(*case, id=name) for name, *case in cases()]
)
def test_one_clear_error(place, answer, words, monkeypatch):
    is_one_clear_error(serving(**{place: answer}), words, monkeypatch)


def test_a_server_that_answers_well_over_grpc_passes():
    with hostile_grpc.serving() as endpoint:
        deployment, embeddings, counted = ask(endpoint)
    assert deployment == Deployment(4, instances=0, threads=2)
    assert embeddings.tolist() == [[0.0] * 4] * 3
    assert (counted.success.count, counted.batches) == (3, {1: 3})


@pytest.mark.parametrize(
    ("place", "answer", "words"),
    [pytest.param(*case, id=name) for name, *case in hostile_grpc.cases()],
)
def test_one_clear_error_over_grpc(place, answer, words, monkeypatch):
    is_one_clear_error(hostile_grpc.serving(**{place: answer}), words, monkeypatch)


def is_one_clear_error(served, words, monkeypatch):
    for name in (f"{client.__name__}._TIMEOUT_S", f"{embed.__name__}.LIMIT_S"):
        monkeypatch.setattr(name, 0.3 if "0.3 s" in words else 60.0)
    with served as endpoint:
        with pytest.raises(ServingError, match=words) as caught:
            ask(endpoint)
        assert endpoint.address in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["no answer", "an error with escapes"])
def test_under_load_over_grpc(name):
    answer, words = hostile_grpc.EMBEDDINGS[name]
    limit_s = 0.3 if "0.3 s" in words else 60.0
    with (
        hostile_grpc.serving(ModelInfer=answer) as endpoint,
        open_generator(exchange_of(endpoint), timeout_s=limit_s, most_processes=1) as generator,
        pytest.raises(ServingError, match=words),
    ):
        run_level(generator, 2, lambda: None, "test", RULES)


@pytest.mark.parametrize("text", DRIPS.values(), ids=DRIPS)
def test_a_byte_now_and_then_under_load(text):
    """Each read is answered, for ever, and the limit holds all the same."""
    with (
        hostile(infer=drip(text)) as (endpoint, _),
        open_generator(exchange_of(endpoint), timeout_s=0.4, most_processes=1) as generator,
        pytest.raises(ServingError, match=r"no answer in 0.4 s"),
    ):
        run_level(generator, 2, lambda: None, "test", RULES)


@pytest.mark.parametrize("name", [name for name in EMBEDDINGS if "length" in name])
def test_under_load(name):
    answer, words = EMBEDDINGS[name]
    with (
        hostile(infer=answer) as (endpoint, _),
        open_generator(exchange_of(endpoint), most_processes=1) as generator,
        pytest.raises(ServingError, match=words),
    ):
        run_level(generator, 2, lambda: None, "test", RULES)


def exchange_of(endpoint):
    return make_exchange(endpoint, BATCH, "embedding", np.zeros((3, 4), np.float32), 1e-3)


def test_a_redirect_is_not_followed():
    with hostile() as (other, asked):
        places = {"": f"http://{other.address}/v2/models/tiny", "infer": f"http://{other.address}/"}
        for place, location in places.items():
            moved = sent(b"", "307 Temporary Redirect", Location=location)
            with hostile(**{place: moved}) as (endpoint, _), pytest.raises(ServingError):
                ask(endpoint)
    assert asked.asked == []


def test_an_answer_without_end_is_left():
    def endless():
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        while True:
            yield b" " * (1 << 20)

    words = f"an answer of more than {MOST_BYTES} bytes"
    with hostile(**{"": endless}) as found, pytest.raises(ServingError, match=words):
        ask(found[0])


@pytest.mark.parametrize("answer", [b"", DEEP, {"name": 7}, {"name": "\x1b"}, []])
def test_a_port_that_somebody_else_answers_is_not_the_server(answer):
    with hostile(**{"v2": answer, "v2/health/ready": b""}) as (endpoint, _):
        assert server_name(endpoint) is None


@pytest.mark.parametrize("port", ["0", "65536", "99999999", "-1", "\u0668"])
def test_an_address_that_is_none(port):
    with pytest.raises(OptionError, match="is neither `triton` nor an address"):
        _endpoint(f"http://localhost:{port}/tiny")


def test_what_a_server_says_is_shown_without_what_a_terminal_obeys():
    assert shown("a\x1b[31m\n\u202e\ud800") == r"a\x1b[31m\n\u202e\ud800"
    assert len(shown("\x00" * 10_000)) < 4 * 300 + 9
