"""A server that stands still for 200 ms every 4 s: what open and closed loop say of it.

python benchmarks/stall.py CACHE

With even arrivals a request that is due t seconds after a stall of S begins waits S - t. So a share
of (S - x) / P of all requests is slower than x, P being the period, and the p99 is S - P / 100,
plus what a request takes anyway (the median).
"""

import itertools
import sys
from pathlib import Path

from small_model import exchange, heading, small_server

from enginegate.config.serving import Arrivals, Protocol
from enginegate.serving.load.generator import open_generator
from enginegate.serving.load.sweep import LevelRules, run_level, run_open

STALL_S, PERIOD_S, PERIODS, RATE_PER_S, RUNS = 0.2, 4.0, 10, 500.0, 3
TIME_S = PERIODS * PERIOD_S
WHOLE = LevelRules(min_window_s=PERIOD_S, window_requests=1, limit_s=4 * PERIOD_S)


def main(cache: str) -> None:
    print(f"A stall of {1e3 * STALL_S:.0f} ms every {PERIOD_S:.0f} s. {heading()}.\n")
    with small_server(Path(cache), STALL_S, PERIOD_S) as endpoints:
        asked = exchange(endpoints[Protocol.HTTP])
        with open_generator(asked) as generator:
            for arrivals, run in itertools.product(Arrivals, range(RUNS)):
                print(open_loop(generator, arrivals, run), flush=True)
            for concurrency in (1, 4):
                print(closed_loop(generator, concurrency), flush=True)


def open_loop(generator, arrivals: Arrivals, seed: int) -> str:
    found = run_open(generator, RATE_PER_S, arrivals, TIME_S, seed)
    truth_s = STALL_S - PERIOD_S / 100 + found.latency.p50_s
    p99_s = found.latency.p99_s
    return (
        f"open loop, {arrivals.value:8} {RATE_PER_S:.0f}/s: p99 {1e3 * p99_s:6.1f} ms, "
        f"truth {1e3 * truth_s:6.1f} ms, ratio {p99_s / truth_s:.3f}; "
        f"from the send {1e3 * found.latency_from_send.p99_s:.1f} ms"
    )


def closed_loop(generator, concurrency: int) -> str:
    found = run_level(generator, concurrency, lambda: None, "ours", WHOLE)
    return (
        f"closed loop, concurrency {concurrency}: p99 {1e3 * found.latency.p99_s:6.2f} ms, "
        f"longest {1e3 * found.latency.max_s:.0f} ms, {found.throughput_per_s:.0f} infer/s"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
