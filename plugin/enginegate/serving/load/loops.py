"""The two kinds of load, as a client process runs them: closed and open loop."""

import bisect
import math
import threading
import time
from array import array
from collections import deque
from dataclasses import dataclass

import numpy as np

from enginegate.errors import ServingError
from enginegate.serving.load.exchange import Exchange, read_answer
from enginegate.serving.load.transport import Answer, Transport
from enginegate.serving.load.windows import Seconds

LONGEST_WAIT_S = 0.02  # then orders are looked at again
_CHECK_EVERY_S = 0.01  # of a slow model every answer is looked at, of a fast one few
_NEVER = math.inf


@dataclass
class Faults:
    """How often something went wrong, and the first time in words."""

    count: int = 0
    first: str = ""

    def note(self, what: str) -> None:
        """Count one more."""
        self.count += 1
        self.first = self.first or what

    def taken(self) -> tuple[int, str]:
        """Count and first; starts anew."""
        found = (self.count, self.first)
        self.count, self.first = 0, ""
        return found


class Checker:
    """Compares sampled answers with the expected embeddings."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange, self._length, self._checked_s = exchange, -1, 0.0
        self.wrong = Faults()

    def check(self, text: int, answer: Answer) -> None:
        """Look at the first answer, one each 10 ms, and all that are not as long as the first."""
        soon = answer.received_s - self._checked_s < _CHECK_EVERY_S
        if soon and len(answer.body) == self._length:
            return
        self._checked_s = answer.received_s
        fault = self._fault(text, answer)
        if fault:
            self.wrong.note(f"text {text}: {fault}")
        elif self._length < 0:
            self._length = len(answer.body)

    def _fault(self, text: int, answer: Answer) -> str:
        expected = self._exchange.expected[text]
        protocol, output = self._exchange.endpoint.protocol, self._exchange.output
        try:
            found = read_answer(protocol, answer.head, answer.body, output)
        except ServingError as error:
            return str(error)
        if found.shape != expected.shape:
            return f"{found.size} values, not {expected.size}"
        difference = float(np.abs(found - expected).max())
        wrong = not difference <= self._exchange.tolerance  # NaN is wrong too
        return f"differs by {difference:.3g}" if wrong else ""


class ClosedLoop:
    """One request outstanding on each connection all the time, until it is dropped.

    A connection that is lost, or waits longer than the limit for its answer, is not used again.
    """

    def __init__(
        self, transport: Transport, exchange: Exchange, connections: int, first: int, limit_s: float
    ) -> None:
        self._transport, self._texts, self._limit_s = transport, len(exchange.requests), limit_s
        self._lock = threading.RLock()  # answers may be taken on another thread
        self._checker, self._errors = Checker(exchange), Faults()
        self._next, self._ending = first, False
        self._text: dict[int, int] = {}
        self._since: dict[int, float] = {}
        self._sent, self._received = array("d"), array("d")
        self._sending_s: dict[int, float] = {}
        self._in_client_s, self._counted = 0.0, 0
        transport.take = self._take
        for slot in [transport.connect() for _ in range(connections)]:
            with self._lock:
                self._ask(slot)

    def turn(self) -> None:
        """Let answers be taken for a while."""
        self._transport.run(LONGEST_WAIT_S)

    def _take(self, answer: Answer) -> None:
        with self._lock:
            if self._since[answer.slot] != _NEVER:
                self._follow(answer)

    def _follow(self, answer: Answer) -> None:
        """Ask again on the connection, then look at the answer."""
        sent_s, text = self._since[answer.slot], self._text[answer.slot]
        client_s = self._sending_s.get(answer.slot, 0.0) + answer.taking_s
        if answer.lost or self._ending:
            self._since[answer.slot] = _NEVER
        else:
            self._ask(answer.slot)  # before all else: the connection is to be idle for no time
        if answer.error:
            self._errors.note(answer.error)
        else:
            self._sent.append(sent_s)
            self._received.append(answer.received_s)
            self._in_client_s += client_s
            self._counted += 1
            self._checker.check(text, answer)

    def drain(self) -> None:
        """Ask nothing more, and wait for what is outstanding."""
        self._ending, end_s = True, time.monotonic()
        while not self.passed(end_s):
            self.turn()

    def _ask(self, slot: int) -> None:
        self._next = (self._next + 1) % self._texts
        self._text[slot] = self._next
        self._since[slot] = start_s = time.monotonic()
        self._transport.send(slot, self._next)
        self._sending_s[slot] = time.monotonic() - start_s

    def passed(self, end_s: float) -> bool:
        """Tell if all requests sent before `end_s` have been answered or given up."""
        with self._lock:
            if time.monotonic() >= end_s:
                self._give_up()
            return min(self._since.values()) >= end_s

    def _give_up(self) -> None:
        now = time.monotonic()
        for slot, since in self._since.items():
            if now - since > self._limit_s:
                self._errors.note(f"no answer in {self._limit_s:g} s")
                self._since[slot] = _NEVER

    def report(self, end_s: float) -> dict[str, object]:
        """Requests answered since the last report: times of sending and of the answer.

        Those answered after `end_s` are kept for the next report, too. And their mean seconds in
        the client: being sent, and waiting to be taken.
        """
        with self._lock:
            found = {"sent": self._sent, "received": self._received}
            later = bisect.bisect_left(self._received, end_s)
            self._sent, self._received = self._sent[later:], self._received[later:]
            faults = {"wrong": self._checker.wrong.taken(), "errors": self._errors.taken()}
            mean_client_s = self._in_client_s / max(self._counted, 1)
            self._in_client_s, self._counted = 0.0, 0
        return {**found, **faults, "mean_client_s": mean_client_s}


class OpenLoop:
    """Requests sent when they are due, whatever has become of those before.

    A request without a free connection opens one more, up to a bound; beyond it, it waits.
    """

    def __init__(
        self, transport: Transport, exchange: Exchange, most_connections: int, ready: int
    ) -> None:
        self._transport, self._exchange = transport, exchange
        self._lock = threading.RLock()
        self._checker, self._errors = Checker(exchange), Faults()
        self._most = most_connections
        self._free = deque(transport.connect() for _ in range(min(ready, most_connections)))
        self._connections, self._held = len(self._free), False
        self._asked: dict[int, int] = {}  # request by slot
        self._failed: list[int] = []
        transport.take = self._take
        self._next = 0

    def run(self, due_s: Seconds, first: int, limit_s: float) -> dict[str, object]:
        """Send each request at its time; wait for the last answer for `limit_s` at most.

        Times of sending and of the answer by request, NaN for what did not happen; which failed.
        """
        nothing = [math.nan] * len(due_s)
        self._sent, self._received = array("d", nothing), array("d", nothing)
        self._due_s, self._first, end_s = due_s, first, due_s[-1] + limit_s
        while (self._next < len(due_s) or self._asked) and time.monotonic() < end_s:
            self._send_due()
            self._transport.run(LONGEST_WAIT_S if self._blocked() else self._due_in_s())
        ended = {"ended": time.monotonic(), "failed": self._failed, "held": self._held}
        faults = {"wrong": self._checker.wrong.taken(), "errors": self._errors.taken()}
        return {"sent": self._sent, "received": self._received, **ended, **faults}

    def _send_due(self) -> None:
        with self._lock:
            while self._due_in_s() <= 0 and not self._blocked():
                self._send(self._slot())
            self._held = self._held or (self._blocked() and self._due_in_s() <= 0)

    def _send(self, slot: int) -> None:
        request, self._next = self._next, self._next + 1
        self._asked[slot] = request
        self._sent[request] = time.monotonic()
        self._transport.send(slot, self._text(request))

    def _blocked(self) -> bool:
        return not self._free and self._connections == self._most

    def _slot(self) -> int:
        if self._free:
            return self._free.popleft()
        self._connections += 1
        return self._transport.connect()

    def _text(self, request: int) -> int:
        return (self._first + request) % len(self._exchange.requests)

    def _due_in_s(self) -> float:
        if self._next == len(self._due_s):
            return LONGEST_WAIT_S
        return min(LONGEST_WAIT_S, float(self._due_s[self._next]) - time.monotonic())

    def _take(self, answer: Answer) -> None:
        with self._lock:
            self._free_slot(answer)
        self._send_due()

    def _free_slot(self, answer: Answer) -> None:
        request = self._asked.pop(answer.slot, None)
        if answer.lost:
            self._connections -= 1
        if request is None:  # the server closed a connection that nothing was asked on
            self._free.remove(answer.slot)
            return
        if not answer.lost:
            self._free.append(answer.slot)
        self._note(request, answer)

    def _note(self, request: int, answer: Answer) -> None:
        if answer.error:
            self._errors.note(answer.error)
            self._failed.append(request)
        else:
            self._received[request] = answer.received_s
            self._checker.check(self._text(request), answer)
