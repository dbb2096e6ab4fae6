"""What a client asks of a server: is it the right model, and what has it counted.

Works with any KServe v2 server. Owns tritonclient's gRPC; HTTP is `rest.py`.
"""

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from enginegate.config import Deployment, Endpoint, Protocol
from enginegate.errors import ServingError
from enginegate.serving.triton.answers import CONFIG, METADATA, SERVER, STATISTICS, check_answer
from enginegate.serving.triton.rest import get, get_json
from enginegate.serving.triton.statistics import ServerStatistics, read_statistics
from enginegate.serving.untrusted import shown, unfit

_TIMEOUT_S = 60.0
_READY_S = 2.0
_POLL_S = 0.05
_OK = 200
_EXPORT = "serve the model that is tested, or test the one that is served"
_LEAVING = ("READY", "UNLOADING")
_MOST_TOLD_BYTES = 1 << 20  # about a model: it takes seconds to read more of it
_SIZES = [("grpc.max_receive_message_length", _MOST_TOLD_BYTES)]
_PATHS = {
    "get_model_metadata": "",
    "get_model_config": "/config",
    "get_inference_statistics": "/stats",
}


@contextlib.contextmanager
def _connected(endpoint: Endpoint) -> Iterator[Any]:
    """A client of the endpoint's gRPC; a failure of the transport becomes a ServingError."""
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    try:
        with grpc.InferenceServerClient(endpoint.address, channel_args=_SIZES) as client:
            yield client
    except (InferenceServerException, OSError) as error:
        raise unfit(endpoint, shown(str(error) or type(error).__name__)) from error


def _asked(endpoint: Endpoint, what: str, schema: Mapping[str, Any]) -> Any:
    """The answer of a method that takes a model's name. Raises ServingError if it does not fit."""
    if endpoint.protocol is Protocol.GRPC:
        with _connected(endpoint) as client:
            ask = getattr(client, what)
            answer = ask(endpoint.model, as_json=True, client_timeout=_TIMEOUT_S)
        answer = answer.get("config", answer)
    else:
        answer = get_json(endpoint, _path(endpoint) + _PATHS[what], _TIMEOUT_S)
    try:
        return check_answer(answer, schema)
    except ValueError as error:
        asked = what.removeprefix("get_").replace("_", " ")
        raise unfit(endpoint, f"what it answers is no {asked}: {error}") from error


def _path(endpoint: Endpoint) -> str:
    return f"/v2/models/{quote(endpoint.model, safe='')}"


def _is_ready(endpoint: Endpoint) -> bool:
    if endpoint.protocol is Protocol.GRPC:
        with _connected(endpoint) as client:
            return bool(client.is_model_ready(endpoint.model, client_timeout=_TIMEOUT_S))
    return get(endpoint, f"{_path(endpoint)}/ready", _TIMEOUT_S)[0] == _OK


def server_name(endpoint: Endpoint) -> str | None:
    """The name that a ready server gives itself over HTTP; None while there is no ready one."""
    try:
        ready = get(endpoint, "/v2/health/ready", _READY_S)[0] == _OK
        answer = check_answer(get_json(endpoint, "/v2", _READY_S), SERVER)
    except (ServingError, ValueError):  # nobody answers yet, or somebody else
        return None
    return str(answer["name"]) if ready else None


def load_model(endpoint: Endpoint, timeout_s: float) -> None:
    """Have the server load a model of its repository, unless it is loaded; over gRPC.

    Raises ServingError if it cannot, or not in `timeout_s`.
    """
    with _connected(endpoint) as client:
        client.load_model(endpoint.model, client_timeout=timeout_s)


def unload_model(endpoint: Endpoint, timeout_s: float) -> None:
    """Have the server unload a model, and wait until it has; over gRPC. Raises ServingError."""
    end = time.monotonic() + timeout_s
    with _connected(endpoint) as client:
        client.unload_model(endpoint.model, client_timeout=timeout_s)
        while _state(client, endpoint.model) in _LEAVING:
            if time.monotonic() > end:
                raise ServingError(
                    f"{endpoint.model} was not unloaded in {timeout_s:.0f} s; "
                    "end the requests that it still answers"
                )
            time.sleep(_POLL_S)


def _state(client: Any, model: str) -> str:
    index = client.get_model_repository_index(client_timeout=_TIMEOUT_S)
    return next((str(entry.state) for entry in index.models if entry.name == model), "")


def check_model(
    endpoint: Endpoint,
    inputs: Sequence[str],
    output: str,
    seq_len: int,
    dim: int,
    int32: Collection[str] = (),
) -> Deployment:
    """The model's deployment; ServingError unless it takes and gives what tests expect.

    That is int64, or int32 for those of `int32`, [texts, seq_len] of each of `inputs`, and float32
    [texts, dim] as `output`.
    """
    if not _is_ready(endpoint):
        raise _wrong(endpoint, "is not ready", "load it, or name another model")
    metadata = _asked(endpoint, "get_model_metadata", METADATA)
    for name in inputs:
        kind = "INT32" if name in int32 else "INT64"
        _check_tensor(endpoint, metadata["inputs"], "input", (name, kind, seq_len))
    extra = sorted({tensor["name"] for tensor in metadata["inputs"]} - set(inputs))
    if extra:
        raise _wrong(endpoint, f"needs an input {extra[0]!r} that was not exported", _EXPORT)
    _check_tensor(endpoint, metadata["outputs"], "output", (output, "FP32", dim))
    return deployment_of(endpoint)


def _check_tensor(
    endpoint: Endpoint, tensors: Sequence[Any], kind: str, wanted: tuple[str, str, int]
) -> None:
    name, datatype, width = wanted
    found = {tensor["name"]: tensor for tensor in tensors}
    if name not in found:
        offered = shown(", ".join(sorted(found))) or "none"
        raise _wrong(endpoint, f"has no {kind} {name!r}, but {offered}", _EXPORT)
    if found[name]["datatype"] != datatype:
        fault = f"has {kind} {name!r} of type {found[name]['datatype']}, not {datatype}"
        raise _wrong(endpoint, fault, _EXPORT)
    last = int(found[name]["shape"][-1])
    if last not in (width, -1):
        raise _wrong(endpoint, f"has {kind} {name!r} of width {last}, not {width}", _EXPORT)


def _wrong(endpoint: Endpoint, fault: str, advice: str) -> ServingError:
    return ServingError(f"model {endpoint.model} on {endpoint.address} {fault}; {advice}")


def deployment_of(endpoint: Endpoint) -> Deployment:
    """The deployment that the server is configured for; threads 0 where it does not say."""
    config = _asked(endpoint, "get_model_config", CONFIG)
    batching = config.get("dynamic_batching", {})
    return Deployment(
        max_batch_size=int(config.get("max_batch_size", 0)),
        preferred_batch_sizes=tuple(map(int, batching.get("preferred_batch_size", ()))),
        max_queue_delay_us=int(batching.get("max_queue_delay_microseconds", 0)),
        instances=sum(int(group.get("count", 1)) for group in config.get("instance_group", [])),
        threads=_threads(config),
    )


def _threads(config: Mapping[str, Any]) -> int:
    """The threads in the model's own parameter; 0 if there is none, or it is no number."""
    said = str(config.get("parameters", {}).get("threads", {}).get("string_value", ""))
    return int(said) if said.isdecimal() else 0


def statistics(endpoint: Endpoint) -> ServerStatistics:
    """The server's counts for the model since it loaded it. Raises ServingError."""
    return read_statistics(_asked(endpoint, "get_inference_statistics", STATISTICS))
