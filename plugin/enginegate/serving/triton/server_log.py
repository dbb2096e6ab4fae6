"""What the log of `tritonserver` says went wrong. Pure."""

import contextlib
import json
import re

TAIL_LINES = 30
_HARMLESS = "CudaDriverHelper"  # logged by every server without a GPU
_ERROR = re.compile(r"E\d{4} ")
_PORT_TAKEN = re.compile(
    r"E\d{4} .* main\.cc:\d+\] \"failed to start (HTTP|GRPC) service: .* already in use"
)


def tail_of(log: str, lines: int = TAIL_LINES) -> str:
    """The last lines of a log."""
    return "\n".join(log.splitlines()[-lines:])


def is_port_taken(log: str) -> bool:
    """Tell if the server itself, not one of its models, could not have one of its two ports."""
    return any(map(_PORT_TAKEN.match, log.splitlines()))


def logged_errors(log: str) -> list[str]:
    """The lines of a log that report an error."""
    lines = log.splitlines()
    return [line for line in lines if _ERROR.match(line) and _HARMLESS not in line]


def reason_of(log: str) -> str:
    """The reason of a failed server or model: the last error it logged, without the call stack."""
    errors = logged_errors(log)
    said = _unquoted(errors[-1]) if errors else tail_of(log)
    return f"Its log says: {said}"


def _unquoted(line: str) -> str:
    """The message of a line of the log, which quotes it as JSON does."""
    message = line.partition("] ")[2]
    with contextlib.suppress(ValueError):
        message = str(json.loads(message))
    return message.partition("\n\nAt:")[0].strip()
