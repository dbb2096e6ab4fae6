"""What a generator saw: windows of closed-loop load, and open-loop runs. Pure."""

import base64
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from enginegate.serving.records import Latency

Seconds = npt.NDArray[np.float64]


def as_text(values: "Seconds | array[float]") -> str:
    """Numbers as they go between processes; `from_text` reads them."""
    return base64.b64encode(values.tobytes()).decode()


def from_text(text: str) -> Seconds:
    """What `as_text` wrote."""
    return np.frombuffer(base64.b64decode(text), np.float64)


@dataclass(frozen=True)
class Fault:
    """What went wrong, how often, and the first time in words; nothing by default."""

    count: int = 0
    first: str = ""


@dataclass(frozen=True)
class Window:
    """Some seconds of closed-loop load.

    A request that was outstanding at an edge counts by the part of it that lies inside, so that few
    slow requests do not make a window's throughput jump by a whole batch.

    Attributes:
        latencies_s: of the requests answered inside.
        duration_s: its length.
        answered: requests, each by its part inside.
        outstanding_s: seconds that requests were outstanding inside, summed.
        client_share: processor time of the busiest client process / time.
        client_s: seconds that the answered requests spent in the client, summed.
        wrong: sampled answers that are not the expected embedding.
        errors: requests without an answer.
    """

    latencies_s: Seconds
    duration_s: float
    answered: float
    outstanding_s: float
    client_share: float
    client_s: float = 0.0
    wrong: Fault = Fault()
    errors: Fault = Fault()

    @property
    def requests(self) -> int:
        """Requests answered inside."""
        return len(self.latencies_s)

    @property
    def throughput_per_s(self) -> float:
        """Requests per second."""
        return self.answered / self.duration_s

    @property
    def mean_s(self) -> float:
        """Mean latency; NaN if nothing was answered."""
        return self.outstanding_s / self.answered if self.answered else float("nan")

    @property
    def mean_client_s(self) -> float:
        """Mean seconds of a request in the client; 0 if nothing was answered."""
        return self.client_s / self.answered if self.answered else 0.0

    @property
    def latency(self) -> Latency:
        """Mean over the parts inside, the rest over the requests answered inside."""
        return replace(latency_of(self.latencies_s), mean_s=self.mean_s)


@dataclass(frozen=True)
class OpenWindow:
    """One run of open-loop load.

    Attributes:
        latencies_s: from the scheduled time, of every request without an error; one that was never
            answered counts with the time it had waited at the end.
        latencies_from_send_s: of the answered ones, from the sending.
        duration_s: from the first scheduled time to the last answer, or to the end of the waiting.
        requests: number scheduled.
        unanswered: of them, not answered within the limit.
        held: whether requests had to wait for a connection, as many being open as are allowed.
        client_share, wrong, errors: as of `Window`.
    """

    latencies_s: Seconds
    latencies_from_send_s: Seconds
    duration_s: float
    requests: int
    unanswered: int
    held: bool
    client_share: float
    wrong: Fault = Fault()
    errors: Fault = Fault()

    @property
    def throughput_per_s(self) -> float:
        """Requests answered per second."""
        return len(self.latencies_from_send_s) / self.duration_s


def latency_of(latencies_s: Seconds) -> Latency:
    """Mean, quantiles and maximum; NaN if there are none."""
    if not len(latencies_s):
        return Latency(*[float("nan")] * 6)
    p50, p90, p95, p99, most = map(float, np.quantile(latencies_s, [0.5, 0.9, 0.95, 0.99, 1]))
    return Latency(float(latencies_s.mean()), p50, p90, p95, p99, most)


def cut(sent_s: Seconds, received_s: Seconds, start_s: float, end_s: float) -> Window:
    """The window between two times of requests sent and received at the given times."""
    inside_s = np.minimum(received_s, end_s) - np.maximum(sent_s, start_s)
    inside_s = np.maximum(inside_s, 0)
    whole_s = received_s - sent_s
    answered = (received_s >= start_s) & (received_s < end_s)
    parts = float((inside_s / whole_s).sum())
    outstanding_s = float(inside_s.sum())
    return Window(whole_s[answered], end_s - start_s, parts, outstanding_s, client_share=0)


def merge(windows: Sequence[Window]) -> Window:
    """The same seconds seen by several client processes."""
    return _sum(windows, windows[0].duration_s)


def pool(windows: Sequence[Window]) -> Window:
    """Windows one after the other as one."""
    return _sum(windows, sum(window.duration_s for window in windows))


def _sum(windows: Sequence[Window], duration_s: float) -> Window:
    return Window(
        latencies_s=np.concatenate([window.latencies_s for window in windows]),
        duration_s=duration_s,
        answered=sum(window.answered for window in windows),
        outstanding_s=sum(window.outstanding_s for window in windows),
        client_share=max(window.client_share for window in windows),
        client_s=sum(window.client_s for window in windows),
        wrong=add_faults([window.wrong for window in windows]),
        errors=add_faults([window.errors for window in windows]),
    )


def add_faults(faults: Sequence[Fault]) -> Fault:
    """All of them, in the words of the first."""
    first = next((fault.first for fault in faults if fault.first), "")
    return Fault(sum(fault.count for fault in faults), first)
