"""The embeddings that a server answers, asked for as the load asks: one text a request."""

import math
import time
from collections.abc import Iterator
from queue import SimpleQueue

import numpy as np

from enginegate.config import Endpoint
from enginegate.engines import Embeddings
from enginegate.errors import ServingError
from enginegate.models import Batch
from enginegate.serving.load.exchange import Exchange, make_exchange, read_answer
from enginegate.serving.load.transport import Answer, Transport, open_transport
from enginegate.serving.untrusted import unfit

LIMIT_S = 60.0  # of one request
_WAIT_S = 0.002
_LOG = "look into the server's log, and for numpy 2 in the server's environment"


def embed_served(endpoint: Endpoint, batch: Batch, output: str, size: int) -> Embeddings:
    """Embeddings of every text of `batch`, float32 [texts, dim], as the server answers them.

    Each request carries one text and `size` are outstanding, so that the server batches them as it
    does under load. Raises ServingError for a request that fails or an answer of a wrong shape.
    """
    rows = len(next(iter(batch.values())))
    nothing = np.zeros((rows, 0), np.float32)
    exchange = make_exchange(endpoint, batch, output, nothing, math.inf)
    found: dict[int, Embeddings] = {}
    with open_transport(exchange, LIMIT_S) as transport:
        for text, answer in _answers(exchange, transport, min(size, rows)):
            found[text] = _vector(exchange, answer)
    if len({vector.shape for vector in found.values()}) > 1:
        raise unfit(endpoint, "answered vectors of unlike shapes", _LOG)
    return np.stack([found[text] for text in range(rows)])


def _answers(exchange: Exchange, transport: Transport, size: int) -> Iterator[tuple[int, Answer]]:
    """Each text and its answer, as they come."""
    rows = len(exchange.requests)
    taken: SimpleQueue[Answer] = SimpleQueue()
    transport.take = taken.put
    asked: dict[int, tuple[int, float]] = {}
    free = [transport.connect() for _ in range(size)]
    text = 0
    while asked or text < rows:
        while free and text < rows:
            slot = free.pop()
            asked[slot] = text, time.monotonic()
            transport.send(slot, text)
            text += 1
        transport.run(_WAIT_S)
        while not taken.empty():
            answer = taken.get()
            free.append(answer.slot)
            yield asked.pop(answer.slot)[0], answer
        if any(time.monotonic() - sent_s > LIMIT_S for _, sent_s in asked.values()):
            raise unfit(exchange.endpoint, f"no answer in {LIMIT_S:g} s")


def _vector(exchange: Exchange, answer: Answer) -> Embeddings:
    endpoint = exchange.endpoint
    if answer.error:
        raise unfit(endpoint, answer.error)
    try:
        return read_answer(endpoint.protocol, answer.head, answer.body, exchange.output)
    except ServingError as error:
        raise unfit(endpoint, str(error), _LOG) from error
