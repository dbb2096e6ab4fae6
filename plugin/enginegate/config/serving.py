"""What `--gate-serve` and the options beside it ask for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from enginegate.config.settings import (
    Option,
    Settings,
    flag_of,
    given,
    number,
    refuse_unknown,
    text,
)
from enginegate.errors import OptionError

if TYPE_CHECKING:
    import pytest

EMBEDDED = "triton"
_PORT_DIGITS, _MOST_PORT = 5, 65535
_SLO = re.compile(r"(mean|p50|p90|p95|p99|max)\s*(?:=|<=)\s*([0-9.]+)\s*(us|ms|s)")
_UNITS_S: Mapping[str, float] = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class Protocol(StrEnum):
    """How requests travel; both speak KServe v2."""

    HTTP = "http"
    GRPC = "grpc"


class Arrivals(StrEnum):
    """How open-loop requests are spaced."""

    CONSTANT = "constant"
    POISSON = "poisson"


class Driver(StrEnum):
    """What makes the load."""

    OWN = "own"
    PERF_ANALYZER = "perf_analyzer"


@dataclass(frozen=True)
class Deployment:
    """How a server runs a model; goes with every served figure.

    Attributes:
        max_batch_size: most texts in one execution.
        preferred_batch_sizes: sizes that the dynamic batcher waits for; empty for Triton's own
            default, `max_batch_size`.
        max_queue_delay_us: microseconds that it waits for them at most.
        instances: copies of the engine that run at the same time.
        threads: threads of each.
    """

    max_batch_size: int = 32
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    instances: int = 1
    threads: int = 1


@dataclass(frozen=True)
class Endpoint:
    """A model on a server.

    Attributes:
        protocol: HTTP or gRPC.
        address: `host:port`, or with gRPC `unix:PATH`.
        model: its name there.
        header: `Name: value` that every HTTP request has to carry; empty for none.
    """

    protocol: Protocol
    address: str
    model: str
    header: str = field(default="", repr=False)


@dataclass(frozen=True)
class Slo:
    """A limit of latency, counted from the scheduled time.

    Attributes:
        figure: `mean`, `p50`, `p90`, `p95`, `p99` or `max`.
        limit_s: seconds that it must not exceed.
    """

    figure: str
    limit_s: float

    def __str__(self) -> str:
        return f"{self.figure} <= {1e3 * self.limit_s:g} ms"


@dataclass(frozen=True)
class ServeOptions:
    """How engines are served and loaded.

    Attributes:
        endpoint: a server that runs already; None for one that is started.
        concurrencies: levels of the closed loop.
        deployment: how a started server runs the models.
        driver: what makes the load.
        slo: latency that the capacity is sought for; None for no search.
        arrivals: spacing of open-loop requests.
        rates_per_s: open-loop rates to measure besides.
        timeout_s: longest that a server or a model may take to get ready.
        repository: folder to write the engines into as a model repository, or None.
    """

    endpoint: Endpoint | None
    concurrencies: tuple[int, ...]
    deployment: Deployment
    driver: Driver
    slo: Slo | None
    arrivals: Arrivals
    rates_per_s: tuple[float, ...]
    timeout_s: float
    repository: Path | None

    @classmethod
    def from_settings(cls, get: Settings, threads: int) -> "ServeOptions | None":
        """Read them; None without `--gate-serve`. Raises OptionError for what is wrong in them."""
        refuse_unknown(get, "tool.enginegate.serve")
        target = given(get.config, "serve")
        if not target:
            return None
        if find_spec("tritonclient") is None:
            raise OptionError(
                "--gate-serve needs tritonclient, not installed: "
                "pip install 'pytest-enginegate[serve]'"
            )
        endpoint = None if target == EMBEDDED else _endpoint(target)
        _refuse_unfit(get.config, running=endpoint is not None)
        values = get.values()
        return cls(
            endpoint=endpoint,
            concurrencies=tuple(sorted(values["concurrency"])),
            deployment=_deployment(values, threads),
            driver=values["load_driver"],
            slo=values["slo"],
            arrivals=values["arrivals"],
            rates_per_s=tuple(number("--gate-rates", word, float) for word in values["rates"]),
            timeout_s=values["serve_timeout"],
            repository=values["model_repository"],
        )


def _refuse_unfit(config: "pytest.Config", *, running: bool) -> None:
    """Refuse what cannot be had of served engines, and of a server that runs already."""
    never = ["against_python", "calibrate"]
    theirs = ["max_batch_size", "preferred_batch_sizes", "max_queue_delay_us", "instances"]
    theirs += ["against", "refresh_baselines"]
    if unfit := [flag_of(name) for name in never if given(config, name)]:
        raise OptionError(f"{unfit[0]} judges engines in this process: run it without --gate-serve")
    if running and (unfit := [flag_of(name) for name in theirs if given(config, name)]):
        raise OptionError(f"{unfit[0]} needs a server that is started: use --gate-serve {EMBEDDED}")


def _deployment(values: Mapping[str, Any], threads: int) -> Deployment:
    names = ("max_batch_size", "preferred_batch_sizes", "max_queue_delay_us", "instances")
    found = Deployment(threads=threads, **{name: values[name] for name in names})
    if (preferred := max(found.preferred_batch_sizes, default=0)) > found.max_batch_size:
        raise OptionError(
            f"--gate-preferred-batch-sizes {preferred} is more than "
            f"--gate-max-batch-size {found.max_batch_size}"
        )
    return found


def _endpoint(target: str) -> Endpoint:
    """`grpc://host:port/model` or `http://host:port/model`; the model may be left out."""
    parts = urlsplit(target)
    if parts.scheme not in tuple(Protocol) or not _has_port(parts.netloc):
        raise OptionError(
            f"--gate-serve {target!r} is neither `{EMBEDDED}` nor an address such as "
            "grpc://127.0.0.1:8001/model or http://127.0.0.1:8000/model"
        )
    return Endpoint(Protocol(parts.scheme), parts.netloc, unquote(parts.path.strip("/")))


def _has_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    known = port.isascii() and port.isdecimal() and len(port) <= _PORT_DIGITS
    return host.isascii() and bool(host) and known and 0 < int(port) <= _MOST_PORT


def slo(get: Settings, option: Option) -> Slo | None:
    """A limit of latency, `p99=20ms`. Raises OptionError."""
    said = text(get, option)
    if not said:
        return None
    found = _SLO.fullmatch(said.strip())
    if found is None:
        raise OptionError(
            f"--gate-slo {said!r} is not a figure and a time, such as p99=20ms; figures are mean, "
            "p50, p90, p95, p99 and max"
        )
    figure, amount, unit = found.groups()
    return Slo(figure, number(option.flag, amount, float) * _UNITS_S[unit])
