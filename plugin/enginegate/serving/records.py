"""Records of load: how a model is deployed, what each level of load showed, where it breaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from enginegate.config import Arrivals, Deployment, Slo
from enginegate.verdicts import Judgement


class Cause(StrEnum):
    """Why throughput or latency breaks at a level."""

    QUEUE_DELAY = "queue delay"
    SATURATED = "saturated instance"
    CLIENT = "client-bound"
    NOISE = "noisy machine"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Cliff:
    """A range of levels where adding load makes it worse.

    Attributes:
        first, last: concurrencies, both inside.
        throughput_per_s: smallest in the range.
        expected_per_s: what its neighbours lead one to expect at that level.
        cause: by the evidence there is.
        proven: whether the server's own figures show the cause; else it is suspected.
        evidence: the numbers, in words.
        advice: what to change in the configuration; empty where there is nothing to.
        promised_per_s: throughput by concurrency that the advice should give.
        tried_per_s: what it gave in this run, where it was tried.
    """

    first: int
    last: int
    throughput_per_s: float
    expected_per_s: float
    cause: Cause
    proven: bool
    evidence: str
    advice: str
    promised_per_s: Mapping[int, float] = field(default_factory=dict)
    tried_per_s: Mapping[int, float] = field(default_factory=dict)

    @property
    def blames_server(self) -> bool:
        """Tell if it is the server's own, not the machine's or the client's."""
        return self.cause not in (Cause.NOISE, Cause.CLIENT)


@dataclass(frozen=True)
class Analysis:
    """What a sweep says.

    Attributes:
        cliffs: by concurrency.
        saturated_from: concurrency from which more load only raises latency; None if not seen.
        saturation_per_s: median throughput from there on; None if not seen.
        notes: what the reader should know besides, in words.
    """

    cliffs: tuple[Cliff, ...]
    saturated_from: int | None
    saturation_per_s: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Latency:
    """Seconds from asking to the whole answer, over the requests of a level."""

    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True)
class Breakdown:
    """Mean seconds of a request by where they went; the sum is the mean latency.

    Attributes:
        network_s: between client and server, both ways, the server's front end included.
        queue_s: waiting for a batch and for the instance.
        compute_input_s, compute_infer_s, compute_output_s: as Triton's statistics count them.
        client_s: handing the request to the system, and waiting there for the client to take an
            answer that has come; 0 where the driver does not tell, and it is in `network_s`.
    """

    network_s: float
    queue_s: float
    compute_input_s: float
    compute_infer_s: float
    compute_output_s: float
    client_s: float = 0.0

    @classmethod
    def of(cls, mean_s: float, client_s: float, server_s: Sequence[float]) -> "Breakdown":
        """Of the mean latency; `server_s` are queue, input, infer, output; the rest is network."""
        queue_s, input_s, infer_s, output_s = server_s
        network_s = mean_s - sum(server_s) - client_s
        return cls(network_s, queue_s, input_s, infer_s, output_s, client_s)

    @property
    def compute_s(self) -> float:
        """Seconds of the execution that a request was in."""
        return self.compute_input_s + self.compute_infer_s + self.compute_output_s

    @property
    def turnaround_s(self) -> float:
        """Seconds that the server does not count: client and network."""
        return self.client_s + self.network_s


@dataclass(frozen=True)
class Level:
    """One level of closed-loop load: so many requests outstanding all the time, one text each.

    Attributes:
        concurrency: requests outstanding.
        throughput_per_s: texts answered per second.
        latency: of the requests.
        driver: what made the load; empty where figures were read from a file.
        requests: number of requests counted.
        duration_s: seconds they were counted in.
        breakdown: None where the server's statistics are unknown.
        batches: number of executions by their batch size, from the server's statistics.
        client_share: processor time of the busiest client process / time; None if unknown.
        server_share: processor time of the server with its models / time, above 1 with several
            threads, the warm-up included; None if unknown.
        spread: largest / smallest throughput of the windows it was counted in.
        marks: why the level is not to be trusted, in words; empty if it is.
    """

    concurrency: int
    throughput_per_s: float
    latency: Latency
    driver: str = ""
    requests: int = 0
    duration_s: float = 0.0
    breakdown: Breakdown | None = None
    batches: Mapping[int, int] = field(default_factory=dict)
    client_share: float | None = None
    server_share: float | None = None
    spread: float = 1.0
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenLevel:
    """One level of open-loop load: requests sent at times fixed beforehand, answered or not.

    Attributes:
        rate_per_s: requests scheduled per second.
        arrivals: their spacing.
        throughput_per_s: texts answered per second.
        latency: from the scheduled time, so that a stalled server is seen to be slow.
        latency_from_send: from the sending, as closed-loop tools count it.
        requests, duration_s, client_share, marks: as of `Level`.
    """

    rate_per_s: float
    arrivals: Arrivals
    throughput_per_s: float
    latency: Latency
    latency_from_send: Latency
    requests: int
    duration_s: float
    client_share: float | None = None
    marks: tuple[str, ...] = ()


class SearchEnd(StrEnum):
    """How the search for a capacity ended."""

    FOUND = "found"
    NEVER = "never holds"
    CLIENT = "holds up to the client's limit"
    HIGHEST = "holds up to the highest rate allowed"


@dataclass(frozen=True)
class Capacity:
    """The highest rate of open-loop load that holds a limit of latency.

    Attributes:
        slo: the limit.
        end: how the search ended.
        low_per_s: the highest rate that held, which is the capacity; 0 if none did.
        high_per_s: the lowest rate that did not hold; None if all did.
        probes: every level that was tried, in order.
    """

    slo: Slo
    end: SearchEnd
    low_per_s: float
    high_per_s: float | None
    probes: tuple[OpenLevel, ...]


@dataclass(frozen=True)
class Load:
    """What a served engine carries, judged.

    Attributes:
        server: what served it.
        deployment: how.
        driver: what made the load.
        difference: largest difference of a served embedding to the one in this process.
        levels: of the closed loop, by concurrency.
        analysis: where they break and where they are saturated.
        open_levels: of the open loop.
        capacity: None where none was sought.
        judgement: on cliffs and capacity against the baseline.
    """

    server: str
    deployment: Deployment
    driver: str
    difference: float
    levels: tuple[Level, ...]
    analysis: Analysis
    open_levels: tuple[OpenLevel, ...]
    capacity: Capacity | None
    judgement: Judgement

    @property
    def largest_per_s(self) -> float:
        """Largest throughput of its levels, texts per second."""
        return max(level.throughput_per_s for level in self.levels)


@dataclass(frozen=True)
class StoredLoad:
    """What a served engine carried.

    Attributes:
        levels: concurrencies that were swept.
        cliffs: first and last concurrency of each.
        slo: the limit that the capacity holds, empty if none was sought.
        low_per_s, high_per_s: between these lies the capacity; None if no rate was too high.
    """

    levels: tuple[int, ...]
    cliffs: tuple[tuple[int, int], ...]
    slo: str = ""
    low_per_s: float = 0.0
    high_per_s: float | None = None
