"""The one family of errors a user meets: what is wrong, where, and what to do next."""


class EngineGateError(Exception):
    """Base of every error raised on purpose; its message is shown without a traceback."""


class OptionError(EngineGateError):
    """An option or a `[tool.enginegate]` setting is wrong; pytest reports it as a usage error."""


class ModelError(EngineGateError):
    """A model cannot be found, loaded, exported, or does not match its own export."""


class WorkloadError(EngineGateError):
    """The texts cannot be read, or are too few to judge anything by."""


class EngineError(EngineGateError):
    """An engine cannot be built, loaded or run."""


class EmbeddingError(EngineGateError):
    """Embeddings that cannot be compared: NaN, infinite, all zero, constant or of another shape."""


class BaselineError(EngineGateError):
    """A baseline file cannot be read, is not valid, or cannot be written."""


class StoreError(EngineGateError):
    """The engine cache cannot be written."""


class ServingError(EngineGateError):
    """A server cannot be prepared, started, reached, or serves something else than was built."""


class FleetError(EngineGateError):
    """The machines of a fleet cannot be reached, or lack what a shard needs."""


class ReportError(EngineGateError):
    """A report cannot be read, drawn or written."""


class FileError(EngineGateError):
    """A file cannot be written: the disk is full, or its folder may not be written."""
