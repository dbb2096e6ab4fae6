"""What the reading of a sweep is worth: false alarms, misses, and promises against what came.

    python benchmarks/cliffs.py [runs]

Simulated dynamic batchers (tests/selftest/batcher.py) under closed loops of 1 to 32 clients, or of
1, 2, 4, 8, 16, 32 (`sparse`), with noise of measurement on every level. `alarms` are sweeps without
delay in which a cliff is named. `missed` are sweeps with a delay of 3 or 10 ms in which none is,
or not from 1 to the preferred size - 1; by the server's figures (`server`) or the client's alone.
`error` is promised / found - 1 with the advice applied, over all levels of the cliff; the
turnaround is in executions of one text, `spread` the part of it that is exponential. One
instance: several are not predicted.
"""

import itertools
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "selftest"))
from batcher import Server, client_figures, level_of, noisy, sweep_of, undelayed

from enginegate.config.serving import Deployment
from enginegate.serving.analysis.cliffs import analyse

NOISES = (0.01, 0.03, 0.05, 0.10)
TIMES_S = ((2e-4, 5e-5), (2e-4, 2e-4), (1e-3, 5e-5), (1e-3, 2e-4))
SWEEPS = {"dense": range(1, 33), "sparse": (1, 2, 4, 8, 16, 32)}


def servers():
    """Delay, preferred size and execution time, each with the others."""
    for delay_us, size, times_s in itertools.product((3_000, 10_000), (4, 8, 16), TIMES_S):
        deployment = Deployment(32, (size,), delay_us)
        yield Server(deployment, *times_s, turnaround_s=3e-4, spread=0.3)


def found(levels, server, deployment) -> bool:
    """Whether the one cliff is where the delay is."""
    size = server.deployment.preferred_batch_sizes[0]
    slow = [level.concurrency for level in levels if level.concurrency < size]
    return [(c.first, c.last) for c in analyse(levels, deployment).cliffs] == [(1, slow[-1])]


def detection(sweep: str, sd: float, runs: int, rng) -> str:
    """A row: false alarms with and without the server's figures, and misses."""
    whole = [(s, sweep_of(s, SWEEPS[sweep])) for s in servers()]
    clean = [sweep_of(undelayed(s), SWEEPS[sweep]) for s in servers()]
    alarms, blind, missed, unseen = 0, 0, 0, 0
    for run in range(runs):
        server, levels = whole[run % len(whole)]
        quiet, slow = (noisy(x, sd, rng) for x in (clean[run % len(clean)], levels))
        alarms += bool(analyse(quiet, undelayed(server).deployment).cliffs)
        blind += bool(analyse(client_figures(quiet), None).cliffs)
        missed += not found(slow, server, server.deployment)
        unseen += not found(client_figures(slow), server, None)
    shares = "".join(f"{n / runs:11.2%}" for n in (alarms, blind, missed, unseen))
    return f"{sweep:7}{sd:6.0%}{shares}"


def errors(turnaround: float, spread: float):
    """Promised / found - 1 of every level of the cliffs."""
    for fixed_s, each_s in TIMES_S:
        one = Server(Deployment(32, (16,), 10_000), fixed_s, each_s)
        server = Server(one.deployment, fixed_s, each_s, turnaround * one.execution_s(1), spread)
        for cliff in analyse(sweep_of(server), server.deployment).cliffs:
            for clients, promised in cliff.promised_per_s.items():
                yield promised / level_of(undelayed(server), clients).throughput_per_s - 1


def promises(turnaround: float, spread: float) -> str:
    """A row: quantiles of the error of the promise, and how many are within 15 %."""
    off = np.array(list(errors(turnaround, spread)))
    low, middle, high = np.quantile(off, (0, 0.5, 1))
    inside = np.mean(np.abs(off) <= 0.15)
    return f"{turnaround:10g}{spread:8g}{low:+9.1%}{middle:+9.1%}{high:+9.1%}{inside:9.0%}"


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    rng = np.random.default_rng(1)
    print(f"{time.strftime('%Y-%m-%d')}, {runs} sweeps a row")
    print("sweep   noise     alarms   (client)     missed   (client)")
    for sweep, sd in itertools.product(SWEEPS, NOISES):
        print(detection(sweep, sd, runs, rng), flush=True)
    print("\nturnaround  spread   lowest   median  highest  in 15 %")
    for row in itertools.product((0.1, 0.5, 1.0, 2.0), (0.0, 0.3, 1.0)):
        print(promises(*row), flush=True)


if __name__ == "__main__":
    main()
