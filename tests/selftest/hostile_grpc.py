"""A server that answers whatever it likes over gRPC, and what may be wrong with its answers."""

import contextlib
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf.json_format import ParseDict
from tests.selftest.hostile_server import CONFIG, INPUT, OUTPUT, STATISTICS, Hostile
from tritonclient.grpc import service_pb2 as pb

from enginegate.config.serving import Endpoint, Protocol
from enginegate.serving.untrusted import MOST_BYTES

LARGE = [(f"grpc.max_{what}_message_length", -1) for what in ("send", "receive")]
VECTOR = {"name": "embedding", "datatype": "FP32", "shape": [1, 4]}


def vector(values=bytes(16), **changes):
    """An answer to a text, its tensor otherwise than it should be."""
    tensor = ParseDict(VECTOR | changes, pb.ModelInferResponse.InferOutputTensor())
    return pb.ModelInferResponse(outputs=[tensor], raw_output_contents=[values])


GOOD = {
    "ModelReady": {"ready": True},
    "ModelMetadata": {"name": "tiny", "inputs": [INPUT], "outputs": [OUTPUT]},
    "ModelConfig": {"config": CONFIG},
    "ModelStatistics": STATISTICS,
    "ModelInfer": vector(),
}


def written(method, body):
    """The bytes of an answer, which are given, or those of a message, or of one as JSON."""
    if isinstance(body, dict):
        body = ParseDict(body, getattr(pb, f"{method}Response")())
    return body if isinstance(body, bytes) else body.SerializeToString()


class Service(grpc.GenericRpcHandler):
    """Answers each method with what is given for it, or as a function of the call does."""

    def __init__(self, answers):
        self.answers = answers

    def service(self, asked):
        method = asked.method.rpartition("/")[2]
        body = self.answers[method]
        give = body if callable(body) else lambda _: written(method, body)
        return grpc.unary_unary_rpc_method_handler(lambda _, call: give(call))


class Raw(Hostile):
    """Sends bytes to whoever connects, or what a function of the connection gives."""

    def serve(self, connection):
        with connection, contextlib.suppress(OSError):
            for piece in self.answers(connection):
                connection.sendall(piece)
            while connection.recv(1 << 16):
                pass


@contextlib.contextmanager
def serving(connection=None, **answers):
    """The endpoint of a server that answers so; `connection` says how one is answered that is none.

    Every method that is not named is answered well.
    """
    if connection:
        server = Raw(connection)
        server.start()
        address, stop = server.address, server.listener.close
    else:
        rpc = grpc.server(ThreadPoolExecutor(4), [Service(GOOD | answers)], options=LARGE)
        address, stop = f"127.0.0.1:{rpc.add_insecure_port('127.0.0.1:0')}", lambda: rpc.stop(None)
        rpc.start()
    try:
        yield Endpoint(Protocol.GRPC, address, "tiny")
    finally:
        stop()


def bytes_alone(*pieces):
    """A connection that sends these, whatever it is asked."""
    return lambda connection: iter(pieces)


def drip(connection):
    """One byte at a time, without end."""
    yield frame(4, 0)[:5]
    while True:
        time.sleep(0.05)
        yield b"\0"


def frame(kind, stream, content=b"", flags=0):
    """One frame of HTTP/2."""
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def status(code):
    """The head of an answer to the first question."""
    head = b"\x08\x03" + str(code).encode() + b"\x0f\x10\x10application/grpc"
    return frame(1, 1, head, flags=4)


def by_hand(*frames):
    """A connection that speaks HTTP/2, and answers its first question with these frames."""

    def answer(connection):
        yield frame(4, 0)
        data = connection.recv(1 << 16)
        while not asks(data[24:]):  # after the preface
            data += connection.recv(1 << 16)
        yield from frames

    return answer


def asks(data):
    """Whether a frame that opens a question is among them."""
    while len(data) >= 9:
        if data[3] == 1:
            return True
        data = data[9 + int.from_bytes(data[:3], "big") :]
    return False


def refused(code, words):
    return lambda call: call.abort(code, words)


def never(call):
    """Keep the question until whoever asked has left."""
    while call.is_active():
        time.sleep(0.02)
    return b""


def metadata(**changes):
    return GOOD["ModelMetadata"] | changes


def tensor(**changes):
    return metadata(outputs=[OUTPUT | changes])


SLOW = "Deadline Exceeded|in 0.3 s"
NO_MESSAGE = b"\xff" * 40
MANY = b"\x22\0" * 100_000  # inputs
INTERNAL = grpc.StatusCode.INTERNAL
TENSORS = {
    "nothing": ({}, "'inputs' is a required property"),
    "no inputs": ({"outputs": [OUTPUT]}, "'inputs' is a required property"),
    "no outputs": ({"inputs": [INPUT]}, "'outputs' is a required property"),
    "an input has no name": (metadata(inputs=[{"shape": [1]}]), "'name' is a required property"),
    "a name with control characters": (tensor(name="a\x1b[2J\n::error::"), "is not a 'printable'"),
    "a name without end": (tensor(name="a" * 100_000), "is too long"),
    "no shape": (metadata(outputs=[{"name": "a", "datatype": "FP32"}]), "'shape' is a required"),
    "a negative dimension": (tensor(shape=[-1, -7]), r"shape\[1\]: '-7' is not valid"),
    "a huge dimension": (tensor(shape=[1, 10**15]), r"shape\[1\]: '10{15}' is not valid"),
    "many dimensions": (tensor(shape=[1] * 99), "is too long"),
    "an unknown type": (tensor(datatype="FP9000"), "of type FP9000, not FP32"),
    "a hundred thousand inputs": (MANY + written("ModelMetadata", metadata()), "is too long"),
    "ten million inputs": (b"\x22\0" * 10_000_000, "larger than max"),
    "no message": (NO_MESSAGE, "deserializ"),
    "other than UTF-8": (b"\x0a\x04\xff\xfe\xfd\xfc", "deserializ"),
    "a message of more bytes than is read": (bytes(MOST_BYTES + 1), "larger than max"),
    "an error with escapes": (
        refused(INTERNAL, "no \x1b[31mway\n::error::"), r"no \\x1b\[31mway\\n::error::; see that"
    ),
    "an error without end": (refused(INTERNAL, "[" * 6_000), r"\[{150};"),
    "no answer": (never, SLOW),
}  # fmt: skip
CONFIGS = {
    "a negative batch size": ({"config": {"max_batch_size": -4}}, "max_batch_size: -4 is less"),
    "a negative batch size that is preferred": (
        {"config": {"dynamic_batching": {"preferred_batch_size": [-1]}}}, "-1 is less"
    ),
    "a negative count": ({"config": {"instance_group": [{"count": -2}]}}, "-2 is less"),
    "threads of 5,000 digits": (
        {"config": {"parameters": {"threads": {"string_value": "9" * 5000}}}}, "is too long"
    ),
    "no message": (NO_MESSAGE, "deserializ"),
}  # fmt: skip
COUNTS = {
    "nothing": ({}, "'model_stats' is a required"),
    "a count of 20 digits": (
        {"model_stats": [{"inference_stats": {"success": {"count": 2**64 - 1}}}]}, "is not valid"
    ),
    "a batch without a size": (
        {"model_stats": [{"batch_stats": [{"compute_infer": {}}]}]}, "'batch_size' is a required"
    ),
    "no message": (NO_MESSAGE, "deserializ"),
}  # fmt: skip
EMBEDDINGS = {
    "nothing": ({}, "no output 'embedding'"),
    "another output": (vector(name="other"), "no output 'embedding'"),
    "an embedding of text": (vector(b"abcd", datatype="BYTES"), "no KServe answer"),
    "an unknown type": (vector(datatype="FP9000"), "no KServe answer"),
    "values that do not fill the shape": (vector(shape=[1, 5]), "no KServe answer"),
    "a shape of gigabytes": (vector(shape=[1, 10**12]), "no KServe answer"),
    "a negative shape": (vector(shape=[-4, -4]), "no KServe answer"),
    "values of half a number": (vector(bytes(15)), "no KServe answer"),
    "no message": (NO_MESSAGE, "no KServe answer"),
    "a message of more bytes than is read": (bytes(MOST_BYTES + 1), "larger than max"),
    "an error with escapes": (refused(INTERNAL, "\x1b[31m"), r"INTERNAL: \\x1b\[31m"),
    "an error without end": (refused(INTERNAL, "[" * 6_000), r"\[{150};"),
    "no answer": (never, SLOW),
}
GIGABYTES = b"\0" + struct.pack(">I", 4 * 10**9)
LOST, BROKEN = "UNAVAILABLE", "INTERNAL|UNKNOWN|UNAVAILABLE"
CONNECTIONS = {
    "HTTP/1.1 with Content-Length abc": (
        bytes_alone(b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n"), LOST
    ),
    "mail": (bytes_alone(b"220 mail.example ESMTP\r\n"), LOST),
    "nothing at all": (bytes_alone(), SLOW),
    "a byte now and then": (drip, SLOW),
    "a frame of 16 MB": (bytes_alone(b"\xff\xff\xff\x04\0\0\0\0\0"), LOST),
    "a redirect": (by_hand(status(302), frame(0, 1, b"", flags=1)), "status: 302"),
    "a status of text": (by_hand(status("abc")), BROKEN),
    "a message of gigabytes": (by_hand(status(200), frame(0, 1, GIGABYTES)), "larger than max"),
    "a part of a message": (by_hand(status(200), frame(0, 1, b"\0\0\0\0\x09ab")), SLOW),
    "an end without a status": (by_hand(status(200), frame(0, 1, b"", flags=1)), BROKEN),
    "a head of junk": (by_hand(frame(1, 1, b"\xff" * 90, flags=4)), BROKEN),
}  # fmt: skip


def cases():
    """A name, what is answered, and the words of the error."""
    for place, found in {
        "ModelMetadata": TENSORS, "ModelConfig": CONFIGS, "ModelStatistics": COUNTS,
        "ModelInfer": EMBEDDINGS, "connection": CONNECTIONS,
    }.items():  # fmt: skip
        for name, (answer, words) in found.items():
            yield f"{place}: {name}", place, answer, words
