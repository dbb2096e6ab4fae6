"""The cliff of the reference report on a real Triton: found, explained, and gone as was advised.

    python benchmarks/cliff_live.py [--rounds 3]

A project with one small model runs the plugin's own suite, `pytest --serve triton`, in turn as the
report's server seems to have been configured (preferred batch 16, queue delay 10 ms) and as the
plugin then advises (no delay). For every level of the cliff: what it gave, what the advice promised
(from the sweeps with the delay alone) and what came of it; medians over the rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from enginegate.machine import this_machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "selftest"))
from tiny import write_tiny_onnx

PROJECT = """
[tool.enginegate.models.small]
onnx = "small.onnx"
vocab_size = 200
seq_len = 16
"""
LEVELS = "1:18"
DELAYED = ("--preferred-batch-sizes=16", "--max-queue-delay-us=10000", "--max-batch-size=16")
ADVISED = ("--max-batch-size=16",)


def sweep(project: Path, deployment: tuple[str, ...]) -> dict:
    """The load of the report."""
    report = project / "report.json"
    asked = ("--precision=fp32", "--serve=triton", f"--concurrency={LEVELS}", *deployment)
    suite = ("--pyargs", "enginegate.suite.test_serving", f"--report-json={report}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *suite, *asked]
    found = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-3000:]
    results = json.loads(report.read_text())["results"]
    return next(result["load"] for result in results if result["variant"]["served"])


def by_level(loads: list[dict]) -> dict[int, float]:
    """Median throughput of each level."""
    rates: dict[int, list[float]] = {}
    for load in loads:
        for level in load["levels"]:
            rates.setdefault(level["concurrency"], []).append(level["throughput_per_s"])
    return {concurrency: statistics.median(found) for concurrency, found in rates.items()}


def promised(loads: list[dict]) -> dict[int, float]:
    """Median of what the advice promised for each level."""
    rates: dict[int, list[float]] = {}
    for cliff in (cliff for load in loads for cliff in load["analysis"]["cliffs"]):
        for concurrency, rate in cliff["promised_per_s"].items():
            rates.setdefault(int(concurrency), []).append(rate)
    return {concurrency: statistics.median(found) for concurrency, found in rates.items()}


def show(delayed: list[dict], advised: list[dict]) -> None:
    machine = this_machine()
    print(f"{time.strftime('%Y-%m-%d')}, {machine.cpu}, {machine.cores} cores")
    for load in delayed:
        for cliff in load["analysis"]["cliffs"]:
            proof = "proven" if cliff["proven"] else "suspected"
            cause = f"{proof}: {cliff['cause']}; {cliff['evidence']}"
            print(f"with the delay: cliff at {cliff['first']} to {cliff['last']}, {cause}")
    print(f"advice: {delayed[0]['analysis']['cliffs'][0]['advice']}")
    for load in advised:
        print(f"without it: {len(load['analysis']['cliffs'])} cliffs")
    then, now, said = by_level(delayed), by_level(advised), promised(delayed)
    print("concurrency  with delay  promised  without  promised / without")
    for n, rate in sorted(said.items()):
        print(f"{n:11}  {then[n]:10.0f}  {rate:8.0f}  {now[n]:7.0f}  {rate / now[n]:18.2f}")
    near = [n for n, rate in said.items() if abs(rate / now[n] - 1) <= 0.15]
    print(f"promised within 15 % at {len(near)} of {len(said)} levels")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        write_tiny_onnx(project / "small.onnx")
        (project / "pyproject.toml").write_text(PROJECT)
        turns = [(sweep(project, DELAYED), sweep(project, ADVISED)) for _ in range(rounds)]
    show([delayed for delayed, _ in turns], [advised for _, advised in turns])


if __name__ == "__main__":
    main()
