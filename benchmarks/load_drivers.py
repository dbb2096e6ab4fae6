"""Our load generator against perf_analyzer: one small model at a time, one Triton, one run.

python benchmarks/load_drivers.py CACHE LIBRARY_PATH [PERF_ANALYZER] [REPEATS]

CACHE is the folder of the engine cache; LIBRARY_PATH has perf_analyzer's libb64 and libcudart. The
drivers take turns level by level; a figure is the median of its repeats, a ratio the median of the
ratios of neighbouring turns.

Two models. One is a single matrix product, so that next to nothing but the drivers and the server
is seen; there, at concurrency 1 over HTTP, ours takes turns with the least that a client can do as
well: a blocking socket and two calls. That is the latency to be near to; what a driver shows above
it is its own. The other is a small encoder, MiniLM with its real weights as an fp32 engine of
OpenVINO, as one is served.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from small_model import exchange, heading, progress, small_server, tokens
from trials import Bench

from enginegate.config.serving import Deployment, Endpoint, Protocol
from enginegate.errors import ServingError
from enginegate.models.workload import Batch
from enginegate.serving.load.exchange import Exchange, make_exchange
from enginegate.serving.load.generator import open_generator
from enginegate.serving.load.perf_analyzer import find_perf_analyzer, run_perf_analyzer
from enginegate.serving.load.sweep import run_level
from enginegate.serving.records import Level
from enginegate.serving.served import ToServe, write_model
from enginegate.serving.triton.environment import server_environment
from enginegate.serving.triton.server import serve

CONCURRENCIES = (1, 8, 16, 32)
ENCODER, DIM, TOLERANCE = "minilm", 384, 1e-4


def main(cache: str, library_path: str, binary: str = "", repeats: str = "5") -> None:
    os.environ["LD_LIBRARY_PATH"] = library_path
    if binary:
        os.environ["PATH"] = os.pathsep.join([str(Path(binary).parent), os.environ["PATH"]])
    analyzer = find_perf_analyzer()
    version = subprocess.run([analyzer, "--version"], capture_output=True, text=True, check=True)
    print(f"Load drivers. {heading()}. {version.stdout.strip().splitlines()[-1]}.")
    print("Triton 2.51, Python backend; one run, drivers in turn.")
    print("\nOne matrix product a text")
    with small_server(Path(cache)) as endpoints:
        for endpoint in endpoints.values():
            table(analyzer, exchange(endpoint), tokens(), int(repeats))
        print(beside_bare(endpoints[Protocol.HTTP], int(repeats)), flush=True)
    print("\nMiniLM, OpenVINO fp32, batches up to 32")
    with encoder_server(Path(cache)) as (asked, texts):
        table(analyzer, asked, texts, int(repeats))


@contextlib.contextmanager
def encoder_server(cache: Path) -> Iterator[tuple[Exchange, Batch]]:
    """What to ask of a served MiniLM over HTTP, and its texts."""
    bench = Bench(cache)
    built, texts = bench.build("fp32"), bench.workload
    with built.load(texts, 1) as engine:
        expected = engine.embed(texts.evaluation)

    def write(repository: Path) -> list[str]:
        source = ToServe(built, None, engine, bench.model, texts, DIM)
        write_model(repository, ENCODER, source, built, Deployment())
        return [ENCODER]

    with serve(server_environment(bench.store, progress), write, progress) as server:
        endpoint = server.endpoint(ENCODER, Protocol.HTTP)
        asked = (texts.evaluation, bench.model.output, expected, TOLERANCE)
        yield make_exchange(endpoint, *asked), texts.evaluation


def table(analyzer, asked: Exchange, texts: Batch, repeats: int) -> None:
    """Print every concurrency."""
    print(f"{asked.endpoint.protocol.value:4}  | throughput, infer/s         | mean latency, ms")
    print("conc. |  ours  perf_analyzer  ratio |  ours  perf_analyzer  ratio | client")
    for concurrency in CONCURRENCIES:
        pairs = measure(analyzer, asked, texts, concurrency, repeats)
        print(row(concurrency, pairs) if pairs else f"{concurrency:5} | none", flush=True)


def measure(
    analyzer, asked: Exchange, texts: Batch, concurrency: int, repeats: int
) -> list[tuple[Level, Level]]:
    pairs = []
    with open_generator(asked) as generator:
        for turn in range(repeats):
            drivers = {
                0: lambda: run_level(generator, concurrency, lambda: None, "ours"),
                1: lambda: run_perf_analyzer(analyzer, asked.endpoint, texts, concurrency),
            }
            try:
                found = {i: drivers[i]() for i in ((0, 1) if turn % 2 == 0 else (1, 0))}
            except ServingError as error:  # perf_analyzer hangs now and then
                print(f"{concurrency:5} | a repeat was lost: {error}")
                continue
            pairs.append((found[0], found[1]))
    return pairs


def beside_bare(endpoint: Endpoint, repeats: int) -> str:
    """Ours beside a bare socket, in turn."""
    with open_generator(exchange(endpoint)) as generator:
        ours = lambda: run_level(generator, 1, lambda: None, "ours").latency.mean_s  # noqa: E731
        turns = np.array([(ours(), bare_s(endpoint)) for _ in range(repeats)])
    mine, bare = 1e3 * np.median(turns, axis=0)
    ratio = np.median(turns[:, 0] / turns[:, 1])
    return f"concurrency 1: ours {mine:.3f} ms, bare socket {bare:.3f} ms, ratio {ratio:.3f}"


def bare_s(endpoint: Endpoint, time_s: float = 3.0) -> float:
    """Mean latency over a blocking socket; every answer comes in one piece."""
    requests = exchange(endpoint).requests
    host, _, port = endpoint.address.partition(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start, count = time.monotonic(), 0
        while time.monotonic() < start + time_s:
            connection.sendall(requests[count % len(requests)])
            connection.recv(1 << 18)
            count += 1
        return (time.monotonic() - start) / count


def row(concurrency: int, pairs: list[tuple[Level, Level]]) -> str:
    rates = np.array([[level.throughput_per_s for level in pair] for pair in pairs])
    means = np.array([[1e3 * level.latency.mean_s for level in pair] for pair in pairs])
    share = max(ours.client_share for ours, _ in pairs)
    marks = sorted({mark for ours, _ in pairs for mark in ours.marks})
    rate, mean = np.median(rates, axis=0), np.median(means, axis=0)
    rate_ratio = np.median(rates[:, 0] / rates[:, 1])
    mean_ratio = np.median(means[:, 0] / means[:, 1])
    return (
        f"{concurrency:5} | {rate[0]:5.0f} {rate[1]:14.0f}  {rate_ratio:5.2f} "
        f"| {mean[0]:5.3f} {mean[1]:14.3f}  {mean_ratio:5.2f} | {share:.0%} {'; '.join(marks)}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
