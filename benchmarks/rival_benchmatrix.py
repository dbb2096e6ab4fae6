"""benchmatrix's paired mode on unchanged engines, run for real beside the gate.

    python benchmarks/rival_benchmatrix.py FILE [--runs 10] [--neighbour]

Every run times the engines of benchmarks/trials.py (MiniLM, OpenVINO int8 and fp32, batch 1 and 8)
twice, one after the other: as a gated run with --gate-against would, and with `benchmatrix
collect-paired` and `compare --paired` at their defaults, both sides the same. FILE gets a line of
JSON a run; the table is printed at the end. Needs `pip install benchmatrix`.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from trials import Bench, judged_live
from verdicts import CONCLUSIVE, share

from enginegate.machine.fingerprint import this_machine

HERE = Path(__file__).parent
TESTS = """
import contextlib, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from benchmatrix import BenchmarkCase, make_benchmark_test
from trials import BATCHES, Bench

bench, keep = Bench(Path({cache!r})), contextlib.ExitStack()
built = {{name: bench.build(name) for name in ("int8", "fp32")}}
engines = {{n: keep.enter_context(b.load(bench.workload, 1)) for n, b in built.items()}}
cases = [BenchmarkCase.from_values(f"b{{b}}", bench.workload.batch(b)) for b in BATCHES]
test_engines = make_benchmark_test(
    {{name: engine.embed for name, engine in engines.items()}}, cases, metrics=["{metric}"]
)
"""
METRIC = "single_call_latency"


def benchmatrix_run(cache: Path, seed: int) -> list[str]:
    """The verdict of every cell of one paired run."""
    with tempfile.TemporaryDirectory() as folder:
        text = TESTS.format(here=str(HERE), cache=str(cache), metric=METRIC)
        Path(folder, "test_engines.py").write_text(text)
        pytest = [sys.executable, "-m", "pytest", "--benchmark-only", "-q", "test_engines.py"]
        tool = [sys.executable, "-m", "benchmatrix"]
        collect = [*tool, "collect-paired", f"--random-seed={seed}", "--output=pairs"]
        run(folder, [*collect, "--", *pytest, ":::", *pytest])
        said = run(folder, [*tool, "compare", "pairs", "--paired", "--format=json"])
    return [cell["regression"] for cell in json.loads(said)["comparisons"]]


def run(folder: str, command: list[str]) -> str:
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    return found.stdout


@contextlib.contextmanager
def neighbour(*, busy: bool) -> Iterator[None]:
    """A noisy neighbour for as long as this lasts."""
    if not busy:
        yield
        return
    process = subprocess.Popen([sys.executable, str(HERE / "neighbour.py")])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def timed(action) -> tuple[list[str], float]:
    start = time.monotonic()
    verdicts = action()
    return verdicts, round(time.monotonic() - start, 1)


def show(rows: list[dict]) -> None:
    machine = this_machine()
    print(f"{time.strftime('%Y-%m-%d')}, {machine.cpu}, {machine.cores} cores")
    print("condition  rule                     runs  with an alarm      cells conclusive  s a run")
    for condition in sorted({row["condition"] for row in rows}, reverse=True):
        mine = [row for row in rows if row["condition"] == condition]
        for tool, known in (("enginegate", CONCLUSIVE), ("benchmatrix paired", MATRIX)):
            cells = [verdict for row in mine for verdict in row[tool][0]]
            alarms = sum("regressed" in row[tool][0] for row in mine)
            conclusive = sum(verdict in known for verdict in cells) / len(cells)
            spent_s = sum(row[tool][1] for row in mine) / len(mine)
            print(
                f"{condition:10} {tool:24} {len(mine):4}  {share(alarms, len(mine))}"
                f"  {conclusive:6.1%}  {spent_s:6.0f}"
            )


MATRIX = ("unchanged", "improved", "regressed")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--neighbour", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/enginegate").expanduser())
    given = parser.parse_args()
    bench = Bench(given.cache)
    with neighbour(busy=given.neighbour), given.file.open("a") as out:
        for index in range(given.runs):
            row = {
                "condition": "neighbour" if given.neighbour else "quiet",
                "enginegate": timed(lambda index=index: judged_live(bench, index)),
                "benchmatrix paired": timed(
                    lambda index=index: benchmatrix_run(given.cache, index)
                ),
            }
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(row, flush=True)
    show([json.loads(line) for line in given.file.read_text().splitlines()])


if __name__ == "__main__":
    main()
