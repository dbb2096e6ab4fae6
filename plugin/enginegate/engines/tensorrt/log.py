"""TensorRT's logger: keeps what went wrong, and what it warned of, so that somebody can say it."""

import functools

import tensorrt as trt

from enginegate.errors import EngineError

_MOST_KEPT = 5


class Log(trt.ILogger):  # type: ignore[misc,unused-ignore]
    """Keeps the latest errors and warnings of TensorRT."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: list[str] = []
        self._warnings: dict[str, None] = {}

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self._errors = [*self._errors[1 - _MOST_KEPT :], msg]
        elif severity == trt.ILogger.WARNING:
            self._warnings[msg] = None

    def error(self, what: str) -> EngineError:
        """An error that also says what TensorRT logged, which is then forgotten."""
        said, self._errors = "; ".join(self._errors), []
        return EngineError(f"{what}: {said}" if said else f"{what}; TensorRT logged no error")

    def warnings(self) -> list[str]:
        """Return the warnings since the last call, each once, and forget them."""
        found, self._warnings = list(self._warnings), {}
        more = [f"{len(found) - _MOST_KEPT} more warnings"] if len(found) > _MOST_KEPT else []
        return [f"TensorRT warns: {text}" for text in [*found[:_MOST_KEPT], *more]]


@functools.cache
def the_log() -> Log:
    """The logger of this process: TensorRT takes the first, and uses it to the end."""
    return Log()
