"""What the answers of a KServe server must look like, before anything in them is used."""

from collections.abc import Mapping
from typing import Any

from enginegate.serving.untrusted import shown

_NAME = {"type": "string", "minLength": 1, "maxLength": 256, "format": "printable"}
_COUNT = {
    "anyOf": [  # gRPC as JSON has numbers of 64 bits as text
        {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
        {"type": "string", "pattern": "^[0-9]{1,18}$"},
    ]
}
_SIZE = {
    "anyOf": [
        {"type": "integer", "minimum": -1, "maximum": 2**31 - 1},
        {"type": "string", "pattern": "^(-1|[0-9]{1,9})$"},
    ]
}
_INT32 = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def _record(required: tuple[str, ...] = (), **properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _list(of: Mapping[str, Any], most: int = 1000, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "maxItems": most, "minItems": least, "items": of}


_TENSOR = _record(
    ("name", "datatype", "shape"), name=_NAME, datatype=_NAME, shape=_list(_SIZE, 16, 1)
)
_PHASE = _record(count=_COUNT, ns=_COUNT)
_BATCH = _record(
    ("batch_size", "compute_infer"),
    batch_size=_COUNT,
    compute_infer=_record(("count",), count=_COUNT),
)
_PHASES = {"type": "object", "additionalProperties": _PHASE}
SERVER = _record(("name",), name=_NAME)
METADATA = _record(("inputs", "outputs"), inputs=_list(_TENSOR), outputs=_list(_TENSOR))
CONFIG = _record(
    max_batch_size=_INT32,
    dynamic_batching=_record(
        preferred_batch_size=_list(_INT32), max_queue_delay_microseconds=_COUNT
    ),
    instance_group=_list(_record(count=_INT32)),
    parameters=_record(threads=_record(string_value={"type": "string", "maxLength": 256})),
)
STATISTICS = _record(
    ("model_stats",),
    model_stats=_list(_record(inference_stats=_PHASES, batch_stats=_list(_BATCH, 100_000))),
)


def check_answer(answer: Any, schema: Mapping[str, Any]) -> Any:
    """The answer, if it fits. Raises ValueError, saying where it does not."""
    import jsonschema

    formats = jsonschema.FormatChecker(())
    formats.checks("printable")(lambda text: not isinstance(text, str) or text.isprintable())
    validator = jsonschema.Draft202012Validator(schema, format_checker=formats)
    try:
        error = next(validator.iter_errors(answer), None)  # one is enough: there may be millions
        found = shown(f"{error.json_path}: {error.message}") if error else ""
    except RecursionError as error:
        raise ValueError("brackets within brackets without end") from error
    if found:
        raise ValueError(found)
    return answer
