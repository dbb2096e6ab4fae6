"""HTTP with a server that is not trusted: limits of time and size hold, redirects are refused."""

import http.client
import math
import socket
import time
from collections.abc import Mapping
from typing import Any

from enginegate.config import Endpoint
from enginegate.serving.untrusted import (
    MOST_BYTES,
    length_of,
    message_of,
    read_json,
    shown,
    unfit,
)

_REDIRECTS, _ERRORS = range(300, 400), range(400, 600)


class _Limited(socket.socket):
    """A socket that waits until one moment, however often it has to wait."""

    end_s = math.inf

    def recv_into(self, *arguments: Any) -> int:
        """Read what is there, in what is left of the time."""
        left_s = self.end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left_s)
        return super().recv_into(*arguments)


class _Connection(http.client.HTTPConnection):
    """A connection with a limit for all that is done on it."""

    def connect(self) -> None:
        end_s = time.monotonic() + float(self.timeout or 0)
        made = socket.create_connection((self.host, self.port), self.timeout)
        self.sock = _Limited(fileno=made.detach())
        self.sock.end_s = end_s


def get_json(endpoint: Endpoint, path: str, timeout_s: float) -> Any:
    """The JSON that a server answers. Raises ServingError, naming the address, for anything else.

    `timeout_s` is the longest that all of it may take.
    """
    status, body = get(endpoint, path, timeout_s)
    if status in _ERRORS:
        raise unfit(endpoint, message_of(body) or f"status {status}")
    try:
        return read_json(body)
    except ValueError as error:
        raise unfit(endpoint, f"{path} is no JSON: {shown(str(error))}") from error


def get(endpoint: Endpoint, path: str, timeout_s: float) -> tuple[int, bytes]:
    """Status and body of an answer. Raises ServingError as `get_json`."""
    try:
        status, body = _asked(endpoint, path, timeout_s)
    except TimeoutError as error:
        raise unfit(endpoint, f"{path} is not answered in {timeout_s:g} s") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = shown(str(error) or type(error).__name__)
        raise unfit(endpoint, said) from error
    if status in _REDIRECTS:
        raise unfit(endpoint, f"{path} is redirected, and no redirect is followed")
    return status, body


def _asked(endpoint: Endpoint, path: str, timeout_s: float) -> tuple[int, bytes]:
    host, _, port = endpoint.address.rpartition(":")
    name, _, value = endpoint.header.partition(": ")
    headers: Mapping[str, str] = {name: value} if name else {}
    connection = _Connection(host.strip("[]"), int(port), timeout_s)
    try:
        connection.request("GET", path, headers={"Connection": "close", **headers})
        with connection.getresponse() as answer:
            return answer.status, _body(answer)
    finally:
        connection.close()


def _body(answer: http.client.HTTPResponse) -> bytes:
    """All of it. Raises ValueError for a length that is none, is not kept, or is too large."""
    told = answer.headers.get_all("Content-Length") or []
    lengths = {length_of(length.strip().encode("latin-1")) for length in told}
    body = answer.read(MOST_BYTES + 1)
    if len(body) > MOST_BYTES:
        raise ValueError(f"an answer of more than {MOST_BYTES} bytes")
    if lengths - {len(body)}:
        raise ValueError(f"an answer of {len(body)} bytes with Content-Length {max(lengths)}")
    return body
