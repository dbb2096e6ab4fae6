"""A client process of the generator, started as `python -m enginegate.serving.load.loader N`.

N is an inherited file descriptor of a saved exchange. Reads an order a line from standard input,
JSON; answers each with a line of JSON, arrays as base64 of float64. Ends when standard input does,
whatever it is doing.
"""

import gc
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

from enginegate.errors import ServingError
from enginegate.serving.load.exchange import Exchange, read_exchange
from enginegate.serving.load.loops import ClosedLoop, OpenLoop
from enginegate.serving.load.transport import open_transport
from enginegate.serving.load.windows import as_text, from_text

Order = Mapping[str, Any]


class Loader:
    """Carries out orders, one after the other."""

    def __init__(self, exchange: Exchange, orders: "SimpleQueue[Order]", answers: Any) -> None:
        self._exchange, self._orders, self._answers = exchange, orders, answers

    def serve(self) -> None:
        """For ever."""
        while True:
            order = self._orders.get()
            run = {"closed": self._closed, "open": self._open}[order["do"]]
            try:
                run(order)
            except ServingError as error:
                self._say({"cannot": str(error)})

    def _closed(self, order: Order) -> None:
        """Keep the load running, and report windows of it, until another order comes."""
        limit_s = order["limit_s"]
        with open_transport(self._exchange, limit_s) as transport:
            connections, first = order["connections"], order["first"]
            loop = ClosedLoop(transport, self._exchange, connections, first, limit_s)
            self._say({})
            while (window := self._next_order(loop))["do"] == "window":
                self._window(loop, window["end"])
            loop.drain()
        self._say({})

    def _next_order(self, loop: ClosedLoop) -> Order:
        while self._orders.empty():
            loop.turn()
        return self._orders.get()

    def _window(self, loop: ClosedLoop, end_s: float) -> None:
        start = _clocks()
        while not loop.passed(end_s):
            loop.turn()
        self._say({"client_share": _share(start), **loop.report(end_s)})

    def _open(self, order: Order) -> None:
        limit_s, first, due_s = order["limit_s"], order["first"], from_text(order["due"])
        with open_transport(self._exchange, limit_s) as transport:
            most, ready = order["most_connections"], order["ready_connections"]
            loop = OpenLoop(transport, self._exchange, most, ready)
            self._say({})
            start_s = self._orders.get()["start"]
            start = _clocks()
            report = loop.run(start_s + due_s, first, limit_s)
            self._say({"client_share": _share(start), **report})

    def _say(self, answer: Mapping[str, object]) -> None:
        self._answers.write(json.dumps(answer, default=as_text) + "\n")
        self._answers.flush()


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def _share(start: tuple[float, float]) -> float:
    """Processor time of this process / time, since `start`."""
    time_s, cpu_s = _clocks()
    return (cpu_s - start[1]) / max(time_s - start[0], 1e-9)


def _read_orders(orders: "SimpleQueue[Order]") -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(0)  # the parent is gone or done: nothing here is worth waiting for


def _inherited(descriptor: int) -> Exchange:
    """Without moving its position, which other processes share."""
    size = os.fstat(descriptor).st_size
    return read_exchange(io.BytesIO(os.pread(descriptor, size, 0)))


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the parent, which ends this process
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    orders: SimpleQueue[Order] = SimpleQueue()
    threading.Thread(target=_read_orders, args=(orders,), daemon=True).start()
    exchange = _inherited(int(sys.argv[1]))
    gc.freeze()
    gc.disable()  # nothing here makes cycles, and a collection in mid-load is a latency
    Loader(exchange, orders, answers).serve()


if __name__ == "__main__":
    main()
