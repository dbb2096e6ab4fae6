"""What a client asks of a server: is it the right model, what it counted, its embeddings.

Owns tritonclient. Works with any KServe v2 server over HTTP or gRPC.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from enginegate.config import Deployment, Endpoint, Protocol
from enginegate.engines import Embeddings
from enginegate.errors import ServingError
from enginegate.models import Batch, take
from enginegate.serving.triton.statistics import ServerStatistics, read_statistics

_TIMEOUT_S = 60.0
_READY_S = 2.0
_POLL_S = 0.05
_EXPORT = "serve the model that is tested, or test the one that is served"
_LOG = "look into the server's log"
_LEAVING = ("READY", "UNLOADING")


@contextlib.contextmanager
def _connected(endpoint: Endpoint, timeout_s: float = _TIMEOUT_S) -> Iterator[Any]:
    """A client of the endpoint's protocol; a failure of the transport becomes a ServingError."""
    try:
        with _client(endpoint, timeout_s) as client:
            yield client
    except _transport_errors() as error:
        said = str(error) or type(error).__name__
        raise ServingError(
            f"{endpoint.model} on {endpoint.protocol}://{endpoint.address}: {said}; "
            "see that the server runs there and serves that model"
        ) from error


def _client(endpoint: Endpoint, timeout_s: float) -> Any:
    if endpoint.protocol is Protocol.GRPC:
        from tritonclient import grpc

        return grpc.InferenceServerClient(endpoint.address)
    from tritonclient import http

    return http.InferenceServerClient(
        endpoint.address, connection_timeout=timeout_s, network_timeout=timeout_s
    )


def _transport_errors() -> tuple[type[Exception], ...]:
    from http.client import HTTPException

    from tritonclient.utils import InferenceServerException

    return (InferenceServerException, HTTPException, OSError)


def _patience(endpoint: Endpoint) -> dict[str, float]:
    """The HTTP client has its timeout from the start, that of gRPC takes it with every call."""
    return {"client_timeout": _TIMEOUT_S} if endpoint.protocol is Protocol.GRPC else {}


def _asked(endpoint: Endpoint, what: str) -> Any:
    """The JSON answer of a method that takes a model's name."""
    options = {"as_json": True} if endpoint.protocol is Protocol.GRPC else {}
    with _connected(endpoint) as client:
        return getattr(client, what)(endpoint.model, **options, **_patience(endpoint))


def server_name(address: str) -> str | None:
    """The name that a ready server gives itself over HTTP; None while there is no ready one."""
    try:
        with _client(Endpoint(Protocol.HTTP, address, ""), _READY_S) as client:
            ready = client.is_server_ready()
            return str(client.get_server_metadata()["name"]) if ready else None
    except _transport_errors():  # nobody answers yet
        return None


def load_model(address: str, model: str, timeout_s: float) -> None:
    """Have the server load a model of its repository, unless it is loaded; over HTTP.

    Raises ServingError if it cannot, or not in `timeout_s`.
    """
    with _connected(Endpoint(Protocol.HTTP, address, model), timeout_s) as client:
        client.load_model(model)


def unload_model(address: str, model: str, timeout_s: float) -> None:
    """Have the server unload a model, and wait until it has; over HTTP. Raises ServingError."""
    end = time.monotonic() + timeout_s
    with _connected(Endpoint(Protocol.HTTP, address, model), timeout_s) as client:
        client.unload_model(model)
        while _state(client, model) in _LEAVING:
            if time.monotonic() > end:
                raise ServingError(
                    f"{model} on {address} was not unloaded in {timeout_s:.0f} s; "
                    "end the requests that it still answers"
                )
            time.sleep(_POLL_S)


def _state(client: Any, model: str) -> str:
    found = [entry for entry in client.get_model_repository_index() if entry["name"] == model]
    return str(found[0].get("state", "")) if found else ""


def check_model(
    endpoint: Endpoint, inputs: Sequence[str], output: str, seq_len: int, dim: int
) -> Deployment:
    """The model's deployment; ServingError unless it takes and gives what tests expect.

    That is int64 [texts, seq_len] of each of `inputs`, and float32 [texts, dim] as `output`.
    """
    with _connected(endpoint) as client:
        if not client.is_model_ready(endpoint.model, **_patience(endpoint)):
            raise _wrong(endpoint, "is not ready", "load it, or name another model")
    metadata = _asked(endpoint, "get_model_metadata")
    for name in inputs:
        _check_tensor(endpoint, metadata.get("inputs", []), "input", (name, "INT64", seq_len))
    extra = sorted({tensor["name"] for tensor in metadata.get("inputs", [])} - set(inputs))
    if extra:
        raise _wrong(endpoint, f"needs an input {extra[0]!r} that was not exported", _EXPORT)
    _check_tensor(endpoint, metadata.get("outputs", []), "output", (output, "FP32", dim))
    return deployment_of(endpoint)


def _check_tensor(
    endpoint: Endpoint, tensors: Sequence[Any], kind: str, wanted: tuple[str, str, int]
) -> None:
    name, datatype, width = wanted
    found = {tensor["name"]: tensor for tensor in tensors}
    if name not in found:
        offered = ", ".join(sorted(found)) or "none"
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
    config = _asked(endpoint, "get_model_config")
    config = config.get("config", config)  # gRPC wraps it
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
    return read_statistics(_asked(endpoint, "get_inference_statistics"))


def embed_served(endpoint: Endpoint, batch: Batch, output: str, size: int) -> Embeddings:
    """Embeddings of every text of `batch`, float32 [texts, dim], as the server answers them.

    Each request carries one text and `size` are outstanding, so that the server batches them as it
    does under load. Raises ServingError for a request that fails or an answer of a wrong shape.
    """
    rows = len(next(iter(batch.values())))
    starts = range(min(size, rows))
    with ThreadPoolExecutor(len(starts)) as pool:
        parts = list(pool.map(lambda s: _embed_rows(endpoint, batch, output, s, size), starts))
    whole = [parts[row % size][row // size] for row in range(rows)]
    if len({vector.shape for vector in whole}) > 1 or whole[0].ndim != 1:
        raise _wrong(endpoint, "answered vectors of unlike shapes", _LOG)
    return np.stack(whole)


def _embed_rows(
    endpoint: Endpoint, batch: Batch, output: str, start: int, step: int
) -> list[Embeddings]:
    """Every `step`-th text from `start` on, one after the other."""
    rows = range(start, len(next(iter(batch.values()))), step)
    with _connected(endpoint) as client:
        return [_embed_one(client, endpoint, take(batch, slice(r, r + 1)), output) for r in rows]


def _embed_one(client: Any, endpoint: Endpoint, text: Batch, output: str) -> Embeddings:
    tensors = _tensors(endpoint.protocol, text)
    values = _values(endpoint, client.infer(endpoint.model, tensors, **_patience(endpoint)), output)
    if values is None or values.ndim != 2 or len(values) != 1:  # noqa: PLR2004
        shape = "nothing" if values is None else f"shape {list(values.shape)}"
        raise _wrong(endpoint, f"answered {shape} for one text", _LOG)
    return np.asarray(values[0], dtype=np.float32)


def _values(endpoint: Endpoint, result: Any, output: str) -> Any:
    """An output's array, None if there is none; ServingError if its bytes do not fill its shape."""
    try:
        return result.as_numpy(output)
    except ValueError as error:
        advice = "look for numpy 2 in the server's environment"
        raise _wrong(endpoint, f"answered too few values: {error}", advice) from error


def _tensors(protocol: Protocol, text: Batch) -> list[Any]:
    if protocol is Protocol.GRPC:
        from tritonclient.grpc import InferInput
    else:
        from tritonclient.http import InferInput

    tensors = [InferInput(name, list(values.shape), "INT64") for name, values in text.items()]
    for tensor, values in zip(tensors, text.values(), strict=True):
        tensor.set_data_from_numpy(values)
    return tensors
