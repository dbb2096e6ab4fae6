"""A server that answers whatever it likes over HTTP, and what may be wrong with its answers."""

import contextlib
import http.client
import io
import json
import socket
import threading
import time

import numpy as np

from enginegate.config.serving import Endpoint, Protocol
from enginegate.serving.load.embed import embed_served
from enginegate.serving.triton.client import check_model, statistics

INPUT = {"name": "ids", "datatype": "INT64", "shape": [-1, 8]}
OUTPUT = {"name": "embedding", "datatype": "FP32", "shape": [-1, 4]}
METADATA = {"name": "tiny", "inputs": [INPUT], "outputs": [OUTPUT]}
CONFIG = {"max_batch_size": 4, "parameters": {"threads": {"string_value": "2"}}}
PHASE = {"count": 3, "ns": 5}
STATISTICS = {
    "model_stats": [
        {
            "inference_stats": {"success": PHASE},
            "batch_stats": [{"batch_size": 1, "compute_infer": PHASE}],
        }
    ]
}
ANSWER = {"outputs": [{"name": "embedding", "datatype": "FP32", "shape": [1, 4], "data": [0] * 4}]}
BATCH = {"ids": np.ones((3, 8), np.int64)}


def raw(*pieces):
    """These bytes, and nothing around them."""
    return lambda: iter(pieces)


def whole(body, status="200 OK", **headers):
    """An answer as it should be, but for what is given."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content_Length": len(text)} | headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + text


GOOD = {"ready": b"", "": METADATA, "config": CONFIG, "stats": STATISTICS, "infer": ANSWER}


class Hostile(threading.Thread):
    """Sends a body for each kind of request, or what a function gives, piece by piece."""

    def __init__(self, answers):
        super().__init__(daemon=True)
        self.answers, self.listener = answers, socket.create_server(("127.0.0.1", 0))
        self.asked = []
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=[connection], daemon=True).start()

    def serve(self, connection):
        with connection, contextlib.suppress(OSError):
            while request := read_request(connection):
                self.asked.append(request)
                answer = self.answers[request.removeprefix("/v2/models/tiny").removeprefix("/")]
                for piece in answer() if callable(answer) else [whole(answer)]:
                    connection.sendall(piece)


def read_request(connection):
    """The path that is asked for; the body is read too."""
    data = b""
    while b"\r\n\r\n" not in data:
        new = connection.recv(1 << 16)
        if not new:
            return ""
        data += new
    head, _, body = data.partition(b"\r\n\r\n")
    fields = http.client.parse_headers(_lines(head.partition(b"\r\n")[2]))
    missing = int(fields.get("Content-Length", 0)) - len(body)
    while missing > 0:
        missing -= len(connection.recv(missing))
    return head.split()[1].decode()


def _lines(head):
    return io.BytesIO(head + b"\r\n\r\n")


@contextlib.contextmanager
def hostile(**answers):
    """The endpoint of a server that answers so, and the server."""
    server = Hostile(GOOD | answers)
    server.start()
    try:
        yield Endpoint(Protocol.HTTP, server.address, "tiny"), server
    finally:
        server.listener.close()


@contextlib.contextmanager
def serving(**answers):
    """The endpoint alone."""
    with hostile(**answers) as (endpoint, _):
        yield endpoint


def ask(endpoint):
    """Everything that a run asks before it makes load."""
    found = check_model(endpoint, ["ids"], "embedding", 8, 4)
    embeddings = embed_served(endpoint, BATCH, "embedding", 2)
    return found, embeddings, statistics(endpoint)


def sent(body, status="200 OK", **headers):
    return raw(whole(body, status, **headers))


def metadata(**changes):
    return METADATA | changes


def tensor(**changes):
    return metadata(outputs=[OUTPUT | changes])


def drip(text):
    """One byte at a time, without end."""

    def send():
        yield text
        while True:
            time.sleep(0.05)
            yield b" "

    return send


DEEP = b"[" * 200_000
TENSORS = {
    "metadata is a list": ([], r"is no model metadata: \$: \[\] is not of type 'object'"),
    "metadata is a number": (b"7", "is not of type 'object'"),
    "metadata is null": (b"null", "is not of type 'object'"),
    "no inputs": ({"outputs": [OUTPUT]}, "'inputs' is a required property"),
    "no outputs": ({"inputs": [INPUT]}, "'outputs' is a required property"),
    "inputs are text": (metadata(inputs="ids"), r"\$.inputs: 'ids' is not of type 'array'"),
    "an input is null": (metadata(inputs=[None]), r"\$.inputs\[0\]: None is not of type"),
    "an input has no name": (metadata(inputs=[{"shape": [1]}]), "'name' is a required property"),
    "a name is a number": (tensor(name=7), r"\$.outputs\[0\].name: 7 is not of type 'string'"),
    "a name with control characters": (tensor(name="a\x1b[2J\n::error::"), "is not a 'printable'"),
    "a name is half a character": (tensor(name="\ud800"), "surrogates not allowed"),
    "a name without end": (tensor(name="a" * 100_000), "is too long"),
    "no shape": (metadata(outputs=[{"name": "a", "datatype": "FP32"}]), "'shape' is a required"),
    "an empty shape": (tensor(shape=[]), r"outputs\[0\].shape: \[\] (should|is too short)"),
    "a shape of text": (tensor(shape=["wide"]), r"shape\[0\]: 'wide' is not valid"),
    "a negative dimension": (tensor(shape=[-1, -7]), r"shape\[1\]: -7 is not valid"),
    "a huge dimension": (tensor(shape=[1, 10**15]), r"shape\[1\]: 10{15} is not valid"),
    "a dimension of 400 digits": (b'{"inputs":[],"outputs":[{"name":"a","datatype":"FP32","shape":'
    b"[1e400]}]}", "the number 1e400 is too large"),
    "a shape of shapes": (tensor(shape=[[1], [2]]), r"shape\[0\]: \[1\] is not valid"),
    "many dimensions": (tensor(shape=[1] * 99), "is too long"),
    "an unknown type": (tensor(datatype="FP9000"), "of type FP9000, not FP32"),
    "no JSON": (b"<html>busy</html>", "is no JSON: Expecting value"),
    "an empty body": (b"", "is no JSON: Expecting value"),
    "other than UTF-8": (b'{"name": "\xff\xfe"}', "is no JSON: 'utf-8' codec can't decode"),
    "200,000 brackets": (DEEP, "is no JSON: brackets are nested too deep"),
    "200,000 closed brackets": (DEEP + DEEP.replace(b"[", b"]"), "brackets are nested too deep"),
    "a number of 5,000 digits": (b'{"inputs": ' + b"9" * 5000 + b"}", "of 5000 digits is too"),
    "NaN": (b'{"inputs": NaN}', "is no JSON: NaN is not JSON"),
    "two million inputs": (metadata(inputs=[1] * 2_000_000), "is too long"),
}  # fmt: skip
LENGTHS = {
    "Content-Length abc": (sent(METADATA, Content_Length="abc"), "with Content-Length abc"),
    "Content-Length -5": (sent(METADATA, Content_Length="-5"), "with Content-Length -5"),
    "gigabytes": (sent(METADATA, Content_Length=5 * 10**9), "with Content-Length 5000000000"),
    "5,000 digits": (sent(METADATA, Content_Length="9" * 5000), "with Content-Length 9999"),
    "a part": (raw(whole(b"{}", Content_Length=9)), "is not answered in 0.3 s"),
    "a status of text": (raw(b"HTTP/1.1 good\r\n\r\n"), "HTTP/1.1 good"),
    "no HTTP": (raw(b"220 mail.example ESMTP\r\n\r\n"), "220 mail.example"),
    "headers without end": (raw(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200), "100"),
    "a header without end": (raw(b"HTTP/1.1 200 OK\r\na: " + b"b" * 99_999), "65536"),
    "a redirect": (sent(b"", "302 Found", Location="http://127.0.0.1:1/"), "redirect is followed"),
    "an error with escapes": (
        sent({"error": "no \x1b[31mway\n::error::"}, "500 Broken"),
        r"no \\x1b\[31mway\\n::error::; see that",
    ),
    "an error of brackets": (sent(DEEP, "500 Broken"), r"\[{150} ... \[{150}; see that"),
}
CONFIGS = {
    "config is a list": ([1], "is no model config: "),
    "a batch size of text": ({"max_batch_size": "many"}, "max_batch_size: 'many' is not of"),
    "a negative batch size": ({"max_batch_size": -4}, "max_batch_size: -4 is less"),
    "a huge batch size": ({"max_batch_size": 10**12}, "is greater than the maximum"),
    "batching is null": ({"dynamic_batching": None}, "dynamic_batching: None is not of type"),
    "sizes are text": ({"dynamic_batching": {"preferred_batch_size": ["a"]}}, "'a' is not of type"),
    "a group is a number": ({"instance_group": [3]}, r"instance_group\[0\]: 3 is not of type"),
    "threads of 5,000 digits": (
        {"parameters": {"threads": {"string_value": "9" * 5000}}}, "is too long"
    ),
    "parameters are a list": ({"parameters": []}, "parameters: .. is not of type 'object'"),
}  # fmt: skip
COUNTS = {
    "statistics are empty": ({}, "is no inference statistics: .*'model_stats' is a required"),
    "statistics are null": ({"model_stats": None}, "model_stats: None is not of type"),
    "a count is text": (
        {"model_stats": [{"inference_stats": {"success": {"count": "x"}}}]}, "'x' is not valid"
    ),
    "a count is negative": (
        {"model_stats": [{"inference_stats": {"queue": {"ns": -1}}}]}, "-1 is not valid"
    ),
    "a batch without a size": (
        {"model_stats": [{"batch_stats": [{"compute_infer": {}}]}]}, "'batch_size' is a required"
    ),
}  # fmt: skip


def output(**changes):
    return {"outputs": [ANSWER["outputs"][0] | changes]}


EMBEDDINGS = {
    "no outputs": ({}, "no KServe answer|no output 'embedding'"),
    "outputs are null": ({"outputs": None}, "no output .embedding."),
    "another output": (output(name="other"), "no output 'embedding'"),
    "an embedding of text": (output(datatype="BYTES", data=list("abcd")), "no KServe answer"),
    "values that do not fill the shape": (output(shape=[1, 5]), "no KServe answer"),
    "a shape of gigabytes": (output(shape=[1, 10**12]), "no KServe answer"),
    "a negative shape": (output(shape=[-4, -4]), "no KServe answer"),
    "no JSON in the answer": (b"\xff\x00", "no KServe answer"),
    "brackets in the answer": (DEEP, "no KServe answer"),
    "an empty answer": (b"", "no KServe answer"),
    "a length of the head that is none": (sent(ANSWER, Inference_Header_Content_Length="x"), "no"),
    "length abc": (sent(ANSWER, Content_Length="abc"), "with Content-Length abc"),
    "length -5": (sent(ANSWER, Content_Length="-5"), "with Content-Length -5"),
    "length of gigabytes": (sent(ANSWER, Content_Length=5 * 10**9), "Content-Length 5000000000"),
    "more than the length": (sent(ANSWER, Content_Length=3), "more bytes than its Content-Length"),
    "no length": (raw(b"HTTP/1.1 200 OK\r\n\r\n{}"), "without Content-Length"),
    "a head without end": (raw(b"HTTP/1.1 200 OK\r\na: " + b"b" * 600_000), "a head without end"),
    "a redirect": (sent(b"", "302 Found", Location="http://127.0.0.1:1/"), "302 Found"),
    "an error with escapes": (sent({"error": "\x1b[31m"}, "500 Broken"), r"Broken: \\x1b\[31m"),
    "an error of brackets": (sent(DEEP, "500 Broken"), r"Broken: \[{150} ... \[{150};"),
}


DRIPS = {
    "a body now and then": b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n",
    "a head now and then": b"HTTP/1.1",
}


def cases():
    """A name, what is answered, and the words of the error."""
    for place, found in {
        "": TENSORS | {f"{k}, as a head": v for k, v in LENGTHS.items()},
        "config": CONFIGS, "stats": COUNTS, "infer": EMBEDDINGS,
    }.items():  # fmt: skip
        for name, (answer, words) in found.items():
            yield f"{place or 'metadata'}: {name}", place, answer, words
    for name, text in DRIPS.items():
        for place in ("", "infer"):
            yield f"{place or 'metadata'}: {name}", place, drip(text), "answer(ed)? in 0.3 s"
