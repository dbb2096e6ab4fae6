"""Requests serialised once, one a text, and the reading of their answers; HTTP and gRPC."""

from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from enginegate.config import Endpoint, Protocol
from enginegate.errors import ServingError
from enginegate.models import Batch, Tokens, take
from enginegate.serving.untrusted import shown

Embedding = npt.NDArray[np.float32]
INFER_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_LENGTH_HEADER = b"\r\ninference-header-content-length:"


@dataclass(frozen=True)
class Exchange:
    """What is asked of a model, and what it should answer.

    Attributes:
        endpoint: the model.
        output: name of the embedding there.
        requests: bytes to send, by text: with HTTP the head and the body, with gRPC the message.
        expected: float32 [texts, dim], the in-process embeddings.
        tolerance: largest absolute difference of an answer from them.
    """

    endpoint: Endpoint
    output: str
    requests: tuple[bytes, ...]
    expected: Embedding
    tolerance: float


def datatype_of(values: Tokens) -> str:
    """KServe's name of the type of tokens: INT64, or INT32."""
    return f"INT{8 * values.dtype.itemsize}"


def make_exchange(
    endpoint: Endpoint, tokens: Batch, output: str, expected: Embedding, tolerance: float
) -> Exchange:
    """Serialise one request for each row of `tokens`, [texts, seq] by input name.

    Raises ServingError if there are not as many expected embeddings as texts.
    """
    texts = len(next(iter(tokens.values())))
    if expected.shape[:1] != (texts,):
        raise ServingError(
            f"{len(expected)} expected embeddings for {texts} texts of {endpoint.model}; "
            "embed the same texts in this process first"
        )
    request = _http_request if endpoint.protocol is Protocol.HTTP else _grpc_request
    rows = (take(tokens, slice(text, text + 1)) for text in range(texts))
    requests = tuple(request(endpoint, row, output) for row in rows)
    return Exchange(endpoint, output, requests, expected, tolerance)


def _http_request(endpoint: Endpoint, row: Batch, output: str) -> bytes:
    from tritonclient.http import InferenceServerClient, InferRequestedOutput

    inputs = [_http_input(name, values) for name, values in row.items()]
    outputs = [InferRequestedOutput(output, binary_data=True)]
    header = f"{endpoint.header}\r\n" if endpoint.header else ""
    body, json_length = InferenceServerClient.generate_request_body(inputs, outputs=outputs)
    head = (
        f"POST /v2/models/{quote(endpoint.model, safe='')}/infer HTTP/1.1\r\n"
        f"Host: {endpoint.address}\r\n{header}"
        "Content-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {json_length}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + bytes(body)


def _http_input(name: str, values: Tokens) -> Any:
    from tritonclient.http import InferInput

    tensor = InferInput(name, list(values.shape), datatype_of(values))
    return tensor.set_data_from_numpy(values, binary_data=True)


def _grpc_request(endpoint: Endpoint, row: Batch, output: str) -> bytes:
    from tritonclient.grpc.service_pb2 import ModelInferRequest

    request = ModelInferRequest(model_name=endpoint.model)
    for name, values in row.items():
        request.inputs.add(name=name, datatype=datatype_of(values), shape=values.shape)
        little = values.dtype.newbyteorder("<")
        request.raw_input_contents.append(values.astype(little).tobytes())
    request.outputs.add(name=output)
    return bytes(request.SerializeToString())


def read_answer(protocol: Protocol, head: bytes, body: bytes, output: str) -> Embedding:
    """The embedding, float32 [dim], in an answer; with gRPC `head` is empty.

    Raises ServingError if there is none in it.
    """
    try:
        result = _http_result(head, body) if protocol is Protocol.HTTP else _grpc_result(body)
        values = result.as_numpy(output)
        found = None if values is None else np.asarray(values, dtype=np.float32).reshape(-1)
    except Exception as error:  # whatever the libraries say of bytes that are no answer
        said = shown(str(error))
        raise ServingError(f"no KServe answer in {len(body)} bytes: {said}") from error
    if found is None:
        raise ServingError(f"no output {output!r} in the answer")
    return found


def _http_result(head: bytes, body: bytes) -> Any:
    from tritonclient.http import InferResult

    _, found, rest = head.lower().partition(_LENGTH_HEADER)
    length = int(rest.partition(b"\r\n")[0]) if found else None
    return InferResult.from_response_body(body, header_length=length)


def _grpc_result(body: bytes) -> Any:
    from tritonclient.grpc import InferResult
    from tritonclient.grpc.service_pb2 import ModelInferResponse

    return InferResult(ModelInferResponse.FromString(body))


def save_exchange(exchange: Exchange, file: BinaryIO) -> None:
    """Write it as plain arrays, for the client processes."""
    lengths = np.array([len(request) for request in exchange.requests])
    data = np.frombuffer(b"".join(exchange.requests), np.uint8)
    endpoint = np.array([*vars(exchange.endpoint).values(), exchange.output])
    tolerance = np.array(exchange.tolerance)
    np.savez(
        file,
        lengths=lengths,
        data=data,
        endpoint=endpoint,
        tolerance=tolerance,
        expected=exchange.expected,
    )


def read_exchange(file: BinaryIO) -> Exchange:
    """Read what `save_exchange` wrote."""
    with np.load(file, allow_pickle=False) as arrays:
        protocol, address, model, header, output = map(str, arrays["endpoint"])
        ends = np.cumsum(arrays["lengths"])
        data = arrays["data"].tobytes()
        requests = tuple(data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True))
        endpoint = Endpoint(Protocol(protocol), address, model, header)
        tolerance = float(arrays["tolerance"])
        return Exchange(endpoint, output, requests, arrays["expected"], tolerance)
