"""TensorRT's logger: keeps what went wrong, so that an error can say it."""

import tensorrt as trt

from enginegate.errors import EngineError

_MOST_KEPT = 5


class Log(trt.ILogger):  # type: ignore[misc,unused-ignore]
    """Keeps the latest errors of TensorRT. Must outlive every object that was made with it."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self._errors = [*self._errors[1 - _MOST_KEPT :], msg]

    def error(self, what: str) -> EngineError:
        """An error that also says what TensorRT logged, which is then forgotten."""
        said, self._errors = "; ".join(self._errors), []
        return EngineError(f"{what}: {said}" if said else f"{what}; TensorRT logged no error")
