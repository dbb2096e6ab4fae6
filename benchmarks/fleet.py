"""Fleets of 10, 100 and 1,000 shards: how often they alarm, and what merging them takes.

    python benchmarks/fleet.py play SIZE FLEETS KEPT [--at-limit] [--unshared]
    python benchmarks/fleet.py table KEPT > results/fleet.txt
    python benchmarks/fleet.py merge [--reports 1000] >> results/fleet.txt

A shard is an engine of one batch size beside its baseline's own. A replicate is drawn: normal, with
the spread that the cell got, from those that docs/measurement.md found (0.7 to 4 %), and now and
then one that a neighbour disturbed. The rules are those of a run, the alarm error that of its
share. `play` counts fleets in which any shard alarmed, and adds the count to the file KEPT, with
fresh seeds each time; nothing changed in any engine, or with `--at-limit` each is exactly as slow
as still passes, the hardest case. `--unshared` gives every shard the whole 1 %. `table` adds all
up, with exact 95 % intervals (Clopper and Pearson).

`merge` writes reports of one engine each, made of the example in the docs, and merges them by the
command itself in a fresh process: seconds, and the most memory that it held.
"""

import argparse
import functools
import json
import math
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy import stats
from user_project import heading

from enginegate.accuracy.sample import sample_of
from enginegate.baselines.calibration import Drawn
from enginegate.config import Shard
from enginegate.speed import ALARM, P50, Anchor, Question, SequentialTest, gating_rules
from enginegate.verdicts import Verdict

ROOT = Path(__file__).parents[1]
LIMIT, TIME_S, REPLICATE_S = 0.05, 20.0, 0.5
SPREADS = (0.007, 0.02, 0.04)
DISTURBED, DISTURBANCE = 0.03, 0.15  # share of the replicates, and by how much
MERGE = "import sys; from enginegate.cli import main; sys.exit(main(sys.argv[1:]))"


def alarms(seed: int, share: float, slowdown: float) -> bool:
    """Tell if a shard alarms whose engine has that slowdown, with that share of the error."""
    rng, now_s = random.Random(seed), 0.0
    spread = rng.choice(SPREADS)

    def measure(batches):
        nonlocal now_s
        now_s += REPLICATE_S
        disturbed = rng.choice((-1, 1)) * DISTURBANCE if rng.random() < DISTURBED else 0.0
        value = math.log1p(slowdown) + rng.gauss(0.0, spread) + disturbed
        return {batch: Drawn(value) for batch in batches}

    trial = SequentialTest(gating_rules(12, TIME_S, share), lambda: now_s)
    found = trial.run(measure, [1], {(1, P50): Question(Anchor(), LIMIT, scale_s=1.0)})
    return found.findings[1, P50].judgement.verdict is Verdict.REGRESSED


def play_fleet(seeds: range, share: float, slowdown: float) -> bool:
    """Tell if any shard of a fleet alarms."""
    return any(alarms(seed, share, slowdown) for seed in seeds)


def play(given: argparse.Namespace) -> None:
    """Play fleets, and add what came of them to the file."""
    size, kept = given.size, rows(given.kept)
    share = 1.0 if given.unshared else Shard(1, size).share
    key = {"size": size, "at_limit": given.at_limit, "shared": not given.unshared}
    done = sum(row["fleets"] for row in kept if row.items() >= key.items())
    fleets = [range(n * size, (n + 1) * size) for n in range(done, done + given.fleets)]
    one = functools.partial(play_fleet, share=share, slowdown=LIMIT if given.at_limit else 0.0)
    with multiprocessing.Pool(2) as pool:
        found = sum(pool.map(one, fleets, chunksize=1))
    with given.kept.open("a") as stream:
        stream.write(json.dumps({**key, "fleets": len(fleets), "alarmed": found}) + "\n")


def rows(path: Path) -> list[dict]:
    """What was played so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(given: argparse.Namespace) -> None:
    """All that was played, added up."""
    print(heading(f"limit {LIMIT:.0%}, {TIME_S:.0f} s a variant; drawn replicates"))
    print("shards  engines       error of 1 %   fleets  with a false alarm")
    counts: dict[tuple, list[int]] = {}
    for row in rows(given.kept):
        count = counts.setdefault((row["at_limit"], not row["shared"], row["size"]), [0, 0])
        count[0] += row["alarmed"]
        count[1] += row["fleets"]
    for (at_limit, unshared, size), (alarmed, fleets) in sorted(counts.items()):
        engines = "at the limit" if at_limit else "unchanged"
        error = "each its own" if unshared else "shared"
        print(f"{size:6}  {engines:12}  {error:12}  {fleets:7}  {said(alarmed, fleets)}")


def said(count: int, total: int) -> str:
    """Count, share and its exact 95 % interval."""
    interval = stats.binomtest(count, total).proportion_ci()
    return f"{count:5} {count / total:7.2%} ({interval.low:.2%} … {interval.high:.2%})"


def merge(given: argparse.Namespace) -> None:
    """Merge so many reports in each form; what it took."""
    count = given.reports
    with tempfile.TemporaryDirectory() as folder:
        files = [str(write(Path(folder), number, count)) for number in range(1, count + 1)]
        size_mb = sum(Path(file).stat().st_size for file in files) / 1e6
        for kind in ("json", "markdown", "html"):
            command = [sys.executable, "-c", MERGE, "merge", *files, f"--{kind}={folder}/fleet"]
            start_s, before = time.perf_counter(), processor_s()
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            took_s, spent_s = time.perf_counter() - start_s, processor_s() - before
            most_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
            said = next(line for line in done.stdout.splitlines() if "engines" in line)
            used = f"{took_s:.1f} s, {spent_s:.1f} s of processor, {most_gb:.2f} GB at most"
            how = f"load {os.getloadavg()[0]:.1f}, exit status {done.returncode}"
            print(f"merging {count} reports ({size_mb:.0f} MB) into {kind}: {used}; {how}: {said}")


def processor_s() -> float:
    """Seconds of processor that ended children used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write(folder: Path, number: int, count: int) -> Path:
    """A report of one engine, of a model of its own."""
    example = json.loads((ROOT / "docs/examples/report.json").read_text())
    one = next(r for r in example["results"] if r["speeds"] and not r["variant"]["served"])
    costs = {f"model{number}": example["costs"].get(one["variant"]["model"])}
    one["variant"]["model"] = f"model{number}"
    precision = one["variant"]["precision"]
    vectors = np.random.default_rng(0).standard_normal((256, 384))
    one["accuracy"]["sample"] = asdict(sample_of(vectors))
    asked = {"models": [f"model{n}" for n in range(1, count + 1)], "precisions": [precision]}
    part = {"number": number, "count": count, "kinds": 1, "plan": "c" * 64, "asked": asked}
    part["variants"] = [[f"model{number}", precision]]
    ending = {"alarm": ALARM / count, "failures": [], "shard": part}
    path = folder / f"report-{number}.json"
    path.write_text(json.dumps({**example, "results": [one], "costs": costs, **ending}))
    return path


def main() -> None:
    """Play, add up, or merge."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    played = commands.add_parser("play")
    played.add_argument("size", type=int)
    played.add_argument("fleets", type=int)
    played.add_argument("kept", type=Path)
    played.add_argument("--at-limit", action="store_true")
    played.add_argument("--unshared", action="store_true")
    played.set_defaults(run=play)
    shown = commands.add_parser("table")
    shown.add_argument("kept", type=Path)
    shown.set_defaults(run=table)
    merged = commands.add_parser("merge")
    merged.add_argument("--reports", type=int, default=1000)
    merged.set_defaults(run=merge)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
