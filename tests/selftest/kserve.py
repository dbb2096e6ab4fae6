"""A small KServe v2 server in this process, over HTTP, that can be made to fail."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from enginegate.config.serving import Endpoint, Protocol
from enginegate.serving.load.exchange import make_exchange

SEQ, DIM, TEXTS = 8, 4, 20
OUTPUT = "sentence_embedding"


def tokens():
    """int64 [20, 8] of both inputs."""
    ids = np.random.default_rng(3).integers(0, 200, (TEXTS, SEQ))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def embed(ids):
    """float32 [texts, 4]."""
    return (ids.sum(axis=1, keepdims=True) * np.arange(1, DIM + 1)).astype(np.float32)


def exchange(address, protocol=Protocol.HTTP, expected=None):
    """What is asked of the server at an address, and what it answers without a fault."""
    batch = tokens()
    expected = embed(batch["input_ids"]) if expected is None else expected
    return make_exchange(Endpoint(protocol, address, "fake"), batch, OUTPUT, expected, 1e-3)


class KServe(ThreadingHTTPServer):
    """Answers requests; from number `after` on with the fault, if there is one.

    `stall` seconds pass before request number `after` is answered; the others wait for it, as they
    would for a single instance.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, fault="", after=0, stall=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.after, self.stall = fault, after, stall
        self.seen, self.lock = 0, threading.Lock()

    @property
    def address(self):
        return f"127.0.0.1:{self.server_address[1]}"

    def answer(self, ids):
        """Embedding and whether the fault strikes."""
        with self.lock:
            self.seen += 1
            if self.stall and self.seen == self.after:
                time.sleep(self.stall)
            return embed(ids)[0], self.seen > self.after


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "KServe"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer arrives as a whole

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        ids = np.frombuffer(body[int(self.headers["Inference-Header-Content-Length"]) :], np.int64)
        values, struck = self.server.answer(ids[None, :SEQ])
        reply = getattr(self, f"reply_{self.server.fault}", self.reply) if struck else self.reply
        reply(values)

    def reply(self, values):
        binary = {"parameters": {"binary_data_size": 4 * len(values)}}
        entry = {"name": OUTPUT, "datatype": "FP32", "shape": [1, len(values)], **binary}
        head = json.dumps({"model_name": "fake", "outputs": [entry]}).encode()
        self.whole(200, head + values.tobytes(), {"Inference-Header-Content-Length": len(head)})

    def whole(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def reply_wrong(self, values):
        self.reply(values + 1)

    def reply_nan(self, values):
        self.reply(values * np.nan)

    def reply_short(self, values):
        self.reply(values[:-1])

    def reply_error(self, _values):
        self.whole(500, b'{"error": "the instance ran out of memory"}', {})

    def reply_garbage(self, _values):
        self.whole(200, b"hello", {})

    def reply_drop(self, _values):
        self.close_connection = True

    def reply_silence(self, _values):
        time.sleep(5)

    def log_message(self, *_arguments):
        """Be quiet."""

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()


@contextlib.contextmanager
def kserve(**faults):
    with KServe(**faults) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
