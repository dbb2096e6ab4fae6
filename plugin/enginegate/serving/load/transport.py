"""How a client process sends requests and collects answers: sockets for HTTP, a channel for gRPC.

The HTTP side is plain sockets and epoll: it costs a client about a tenth of what a general HTTP
library does, and what the client costs is taken from the figures.
"""

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from enginegate.config import Protocol as Wire
from enginegate.errors import ServingError
from enginegate.serving.load.exchange import INFER_METHOD, Exchange
from enginegate.serving.untrusted import MOST_BYTES, length_of, message_of, shown

_CHUNK_BYTES = 1 << 18
_COARSE_S = 0.02  # epoll counts whole milliseconds; shorter waits go through select
_CONNECT_S = 10.0  # for a channel of gRPC
_OK = b"HTTP/1.1 200"
_SIZES = [
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.max_send_message_length", -1),
]


class Answer(NamedTuple):
    """What came back on a connection.

    Attributes:
        slot: the connection.
        received_s: monotonic clock.
        head, body: bytes; of HTTP both, of gRPC the body only.
        taking_s: seconds that it had waited for the client, as far as that is known.
        error: what went wrong, in words; empty if nothing did.
        lost: whether the connection is gone.
    """

    slot: int
    received_s: float
    taking_s: float = 0.0
    head: bytes = b""
    body: bytes = b""
    error: str = ""
    lost: bool = False


Take = Callable[[Answer], None]


class Transport(Protocol):
    """Connections to one endpoint, with one request outstanding on each.

    Attributes:
        take: what to do with each answer, as soon as it is there; on any thread.
    """

    take: Take

    def connect(self) -> int:
        """Open a connection and return its slot. Raises ServingError if that fails."""

    def send(self, slot: int, text: int) -> None:
        """Send the request of a text; a failure is taken like an answer."""

    def run(self, wait_s: float) -> None:
        """Wait `wait_s` at most for something to arrive, and see that it is taken."""


@contextlib.contextmanager
def open_transport(exchange: Exchange, timeout_s: float) -> Iterator[Transport]:
    """The transport of the exchange's endpoint; closes all connections at the end."""
    http = exchange.endpoint.protocol is Wire.HTTP
    opened = HttpTransport if http else GrpcTransport
    with contextlib.closing(opened(exchange, timeout_s)) as transport:
        yield transport


class HttpTransport:
    """HTTP/1.1 connections that are kept alive."""

    take: Take

    def __init__(self, exchange: Exchange, timeout_s: float) -> None:
        self._requests, self._timeout_s = exchange.requests, timeout_s
        self._address = exchange.endpoint.address
        self._sockets: dict[int, socket.socket] = {}
        self._parts: dict[int, bytes] = {}
        self._failed: list[Answer] = []
        self._epoll, self._woken_s = select.epoll(), 0.0

    def connect(self) -> int:
        """Open a connection; the slot is its file descriptor."""
        host, _, port = self._address.rpartition(":")
        try:
            made = socket.create_connection((host.strip("[]"), int(port)), self._timeout_s)
        except OSError as error:
            raise ServingError(
                f"cannot connect to {self._address}: {error.strerror or error}; is it serving?"
            ) from error
        _tune(made, self._timeout_s)
        self._epoll.register(made.fileno(), select.EPOLLIN)
        self._sockets[made.fileno()] = made
        return made.fileno()

    def send(self, slot: int, text: int) -> None:
        """Send a prepared request at once."""
        try:
            self._sockets[slot].sendall(self._requests[text])
        except OSError as error:
            self._failed.append(self._lose(slot, f"connection lost: {error.strerror or error}"))

    def run(self, wait_s: float) -> None:
        """Read every connection that has something."""
        while self._failed:
            self.take(self._failed.pop())
        if wait_s < _COARSE_S:
            select.select([self._epoll], [], [], max(wait_s, 0))
            wait_s = 0
        ready, self._woken_s = self._epoll.poll(wait_s), time.monotonic()
        for slot, _ in ready:
            answer = self._read(slot) if slot in self._sockets else None
            if answer is not None:
                self.take(answer)

    def _read(self, slot: int) -> Answer | None:
        try:
            new = self._sockets[slot].recv(_CHUNK_BYTES)
        except OSError as error:
            return self._lose(slot, f"connection lost: {error.strerror or error}")
        if not new:
            return self._lose(slot, "connection lost: the server closed it")
        data = self._parts.pop(slot, b"") + new
        answer = _whole(slot, data, self._woken_s)
        if answer is None:
            self._parts[slot] = data
        return self._lose(slot, answer.error) if answer is not None and answer.lost else answer

    def _lose(self, slot: int, error: str) -> Answer:
        self._parts.pop(slot, None)
        self._epoll.unregister(slot)
        self._sockets.pop(slot).close()
        return Answer(slot, time.monotonic(), error=error, lost=True)

    def close(self) -> None:
        """Close all connections."""
        for opened in self._sockets.values():
            opened.close()
        self._epoll.close()


def _tune(made: socket.socket, timeout_s: float) -> None:
    """No waiting for more to send; a send that takes too long fails. The kernel keeps the time."""
    made.settimeout(None)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    limit = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _whole(slot: int, data: bytes, woken_s: float) -> Answer | None:
    """The answer, once all of it is there; the client knew of its last part at `woken_s`."""
    head, found, _ = data.partition(b"\r\n\r\n")
    if not found:
        return _unread(slot, "a head without end") if len(head) > _CHUNK_BYTES else None
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    if not found:
        return _unread(slot, "an answer without Content-Length")
    body = data[len(head) + 4 :]
    try:
        length = length_of(rest.partition(b"\r\n")[0].strip())
    except ValueError as refused:
        return _unread(slot, str(refused))
    if len(body) < length:
        return None
    if len(body) > length:
        return _unread(slot, f"an answer of more bytes than its Content-Length {length}")
    error = "" if head.startswith(_OK) else _http_error(head, body)
    received_s = time.monotonic()
    return Answer(slot, received_s, received_s - woken_s, head, body, error)


def _unread(slot: int, error: str) -> Answer:
    return Answer(slot, time.monotonic(), error=error, lost=True)


def _http_error(head: bytes, body: bytes) -> str:
    status = head.partition(b"\r\n")[0].decode("latin-1")
    return f"{shown(status)}: {message_of(body)}"


class GrpcTransport:
    """One channel for all requests; answers are taken on its own thread."""

    take: Take

    def __init__(self, exchange: Exchange, timeout_s: float) -> None:
        import grpc

        self._requests, self._timeout_s = exchange.requests, timeout_s
        self._channel = grpc.insecure_channel(exchange.endpoint.address, options=_SIZES)
        self._ask: Callable[..., Any] = self._channel.unary_unary(INFER_METHOD).future
        self._address, self._slots = exchange.endpoint.address, 0

    def connect(self) -> int:
        """A slot for one more request on the channel."""
        import grpc

        self._slots += 1
        if self._slots > 1:
            return self._slots
        try:
            grpc.channel_ready_future(self._channel).result(_CONNECT_S)
        except grpc.FutureTimeoutError as error:
            raise ServingError(
                f"cannot connect to {self._address} in {_CONNECT_S:g} s; is it serving gRPC?"
            ) from error
        return self._slots

    def send(self, slot: int, text: int) -> None:
        """Send a prepared request."""
        call = self._ask(self._requests[text], timeout=self._timeout_s)
        call.add_done_callback(lambda done: self.take(_grpc_answer(slot, done)))

    def run(self, wait_s: float) -> None:
        """Let the channel's thread work."""
        time.sleep(max(wait_s, 0))

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def _grpc_answer(slot: int, call: Any) -> Answer:
    import grpc

    received_s = time.monotonic()
    try:
        return Answer(slot, received_s, body=call.result())
    except (grpc.RpcError, grpc.FutureCancelledError) as error:
        code, details = call.code(), call.details()
        lost = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        said = shown(str(details or error))
        return Answer(slot, received_s, error=f"{code.name}: {said}", lost=lost)
