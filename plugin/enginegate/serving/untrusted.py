"""What a server says is data: it is measured before it is read, and escaped before it is shown."""

from typing import Any

from enginegate.config import Endpoint
from enginegate.errors import ServingError
from enginegate.files import for_page, parse_json

MOST_BYTES = 1 << 24  # of one answer, which holds one embedding
REACHABLE = "see that the server runs there and serves that model"
_MOST_DIGITS, _MOST_CHARACTERS = 12, 300


def unfit(endpoint: Endpoint, fault: str, advice: str = REACHABLE) -> ServingError:
    """The error for what an endpoint answers, or fails to."""
    where = f"{endpoint.protocol}://{endpoint.address}"
    return ServingError(f"{endpoint.model} on {where}: {fault}; {advice}")


def length_of(said: bytes) -> int:
    """A Content-Length. Raises ValueError for one that is no number, or more than `MOST_BYTES`."""
    if not said.isdigit() or len(said) > _MOST_DIGITS or int(said) > MOST_BYTES:
        length = shown(said.decode("latin-1"))
        raise ValueError(f"an answer with Content-Length {length}, where {MOST_BYTES} is the most")
    return int(said)


def shown(said: str) -> str:
    """What a server says, without what a terminal would obey; its middle is left out if long."""
    half = _MOST_CHARACTERS // 2
    brief = f"{said[:half]} ... {said[-half:]}" if len(said) > 2 * half else said
    return for_page(brief).replace("\n", r"\n")


def message_of(body: bytes) -> str:
    """The message in the body of an error, as `shown`."""
    try:
        return shown(str(read_json(body)["error"]))
    except (ValueError, KeyError, TypeError):
        return shown(body.decode("utf-8", "replace"))


def read_json(body: bytes) -> Any:
    """Parse JSON. Raises ValueError for whatever else a server sends."""
    return parse_json(body.decode())
