"""A user's first day: a refresh, then unchanged runs, then the same with timing forced.

    python benchmarks/first_day.py [--runs N] > results/first-day.txt

MiniLM with its real weights on OpenVINO, fp32 and int8, batch 1 and 8, the plugin's own suite in
fresh processes. A row per kind of run: its verdicts, and the seconds of the runs as a user waits
for them. All runs use one engine cache, made by the refresh.
"""

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from enginegate.machine import this_machine

SUITE = ("--pyargs", "enginegate.suite", "-q", "--precision=fp32,int8", "--gate-batches=1,8")
WAYS = {"unchanged": (), "timed all the same": ("--gate-measure-identical",)}


def run(folder: Path, *arguments: str) -> tuple[float, list[str]]:
    """One run of the suite: its seconds, and the speed verdict of each engine."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "pytest", *SUITE, f"--gate-report-json={report}", *arguments]
    variables = {**os.environ, "ENGINEGATE_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=variables, check=False, capture_output=True)
    elapsed_s = time.perf_counter() - start
    results = json.loads(report.read_text())["results"]
    report.unlink()
    return elapsed_s, [result["speed_verdict"] for result in results]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    machine = this_machine()
    print(
        f"{machine.cpu}, {machine.cores} processors, {time.strftime('%Y-%m-%d')}, {runs} runs each"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pyproject.toml").write_text('[tool.enginegate]\nmodel = ["minilm"]\n')
        refreshed_s, _ = run(folder, "--gate-refresh-baselines")
        print(f"refresh: {refreshed_s:.0f} s, export and building included")
        for way, arguments in WAYS.items():
            found = [run(folder, *arguments) for _ in range(runs)]
            counted = collections.Counter(verdict for _, verdicts in found for verdict in verdicts)
            said = ", ".join(f"{count} {verdict}" for verdict, count in counted.most_common())
            times_s = [elapsed_s for elapsed_s, _ in found]
            middle_s, most_s = statistics.median(times_s), max(times_s)
            print(f"{way}: {said}; median {middle_s:.1f} s, most {most_s:.1f} s", flush=True)


if __name__ == "__main__":
    main()
