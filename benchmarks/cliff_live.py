"""The cliff of the reference report on a real Triton: found, explained, and gone as was advised.

    python benchmarks/cliff_live.py [--rounds 6]

A project with two small models runs the plugin's own suite, `pytest --gate-serve triton`, in turn
as the report's server seems to have been configured (preferred batch 16, queue delay 10 ms) and as
the plugin then advises (no delay). For every level of the cliff: what it gave, what the advice
promised (from the runs with the delay alone, which try it at up to eight levels) and what came of
it; medians over the rounds.

One model is an encoder whose calls take about as long as those of the report's INT8 engine on its
GPU, at 1 and at 16 texts: 12 narrow layers. The other is a sum and a matrix product; next to all of
its time goes to the server and the client, which share the processors.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from enginegate.machine.fingerprint import this_machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "selftest"))
from tiny import write_tiny_onnx

PROJECT = """
[tool.enginegate.models.encoder]
transformers = "none, so that its weights are seeded"
vocab_size = 2000
seq_len = 8

[tool.enginegate.models.encoder.architecture]
model_type = "distilbert"
vocab_size = 2000
dim = 64
hidden_dim = 128
n_layers = 12
n_heads = 2

[tool.enginegate.models.product]
onnx = "product.onnx"
vocab_size = 200
seq_len = 16
"""
MODELS = ("encoder", "product")
LEVELS = "1:18"
DELAYED = (
    "--gate-preferred-batch-sizes=16",
    "--gate-max-queue-delay-us=10000",
    "--gate-max-batch-size=16",
)
ADVISED = ("--gate-max-batch-size=16",)


def sweep(project: Path, model: str, deployment: tuple[str, ...]) -> dict:
    """The load of the report."""
    report = project / "report.json"
    asked = (
        f"--gate-model={model}",
        "--precision=fp32",
        "--gate-serve=triton",
        f"--gate-concurrency={LEVELS}",
        *deployment,
    )
    suite = ("--pyargs", "enginegate.suite.test_serving", f"--gate-report-json={report}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *suite, *asked]
    found = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-3000:]
    results = json.loads(report.read_text())["results"]
    return next(result["load"] for result in results if result["variant"]["served"])


def by_level(loads: Sequence[dict]) -> dict[int, float]:
    """Median throughput of each level."""
    rates: dict[int, list[float]] = {}
    for load in loads:
        for level in load["levels"]:
            rates.setdefault(level["concurrency"], []).append(level["throughput_per_s"])
    return {concurrency: statistics.median(found) for concurrency, found in rates.items()}


def promised(loads: Sequence[dict]) -> dict[int, float]:
    """Median of what the advice promised for each level."""
    rates: dict[int, list[float]] = {}
    for cliff in (cliff for load in loads for cliff in load["analysis"]["cliffs"]):
        for concurrency, rate in cliff["promised_per_s"].items():
            rates.setdefault(int(concurrency), []).append(rate)
    return {concurrency: statistics.median(found) for concurrency, found in rates.items()}


def show(model: str, delayed: Sequence[dict], advised: Sequence[dict]) -> None:
    print(f"\n{model}")
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
    print(f"promised within 15 % at {len(near)} of {len(said)} levels", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    machine = this_machine()
    print(f"{time.strftime('%Y-%m-%d')}, {machine.cpu}, {machine.cores} cores")
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        write_tiny_onnx(project / "product.onnx")
        (project / "pyproject.toml").write_text(PROJECT)
        for model in MODELS:
            turns = [
                [sweep(project, model, deployment) for deployment in (DELAYED, ADVISED)]
                for _ in range(rounds)
            ]
            show(model, *zip(*turns, strict=True))


if __name__ == "__main__":
    main()
