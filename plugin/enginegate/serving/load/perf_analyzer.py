"""NVIDIA's perf_analyzer as a second driver: a program of its own, one level a call.

Its figures land in the same records. It counts latency from the send, knows no maximum, and looks
at no answer.
"""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from enginegate.config import Endpoint
from enginegate.errors import ServingError
from enginegate.files import scratch_folder
from enginegate.models import Batch
from enginegate.serving.load.sweep import RULES, UNSTABLE
from enginegate.serving.records import Breakdown, Latency, Level

DRIVER = "perf_analyzer"
_ADVICE = (
    "the wheel of tritonclient 2.51 carries one; it also needs libb64 and libcudart 12 on its "
    "library path"
)
_VERSION_WAIT_S = 20.0
_LEVEL_WAIT_S = 120.0
_TAIL_LINES = 8
_ANY_SPREAD = 1e6  # per cent
_UNSTABLE = "Failed to obtain stable measurement"
_COUNT = re.compile(r"Request count: (\d+)")


def find_perf_analyzer() -> Path:
    """The program on PATH or beside the interpreter.

    Raises ServingError if there is none, or if it cannot run.
    """
    places = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    found = shutil.which("perf_analyzer", path=places)
    if not found:
        raise ServingError(f"no perf_analyzer on PATH or beside the interpreter; {_ADVICE}")
    code, said = _run([found, "--version"], _VERSION_WAIT_S)
    if code or "Perf Analyzer" not in said:
        last = said.strip().splitlines()[-1:] or ["it says nothing"]
        raise ServingError(f"{found} cannot be used: {last[0]}; {_ADVICE}")
    return Path(found)


def run_perf_analyzer(program: Path, endpoint: Endpoint, tokens: Batch, concurrency: int) -> Level:
    """One level of closed-loop load with the rows of `tokens`, [texts, seq] by input name.

    Several requests are kept outstanding by one thread: with a thread for each, as is its default,
    the program starves itself on few processors, and may never end. A level that does not get
    stable is measured once more without that demand, and marked. Raises ServingError if the
    program fails or counts no answer.
    """
    with scratch_folder("enginegate-perf-") as folder:
        data, report = folder / "inputs.json", folder / "level.csv"
        _write_inputs(tokens, data)
        command = _command(program, endpoint, data, report)
        command += ["--concurrency-range", str(concurrency)]
        command += ["--async", "--max-threads", "1"] if concurrency > 1 else ["--sync"]
        code, said = _run(command, _LEVEL_WAIT_S)
        marks: tuple[str, ...] = ()
        if _UNSTABLE in said:
            marks = (f"{UNSTABLE}: perf_analyzer saw no three windows agree",)
            command += ["--stability-percentage", str(_ANY_SPREAD)]
            code, said = _run(command, _LEVEL_WAIT_S)
        return _level(concurrency, _row(report, code, said), said, marks)


def _write_inputs(tokens: Batch, path: Path) -> None:
    texts = len(next(iter(tokens.values())))
    rows = [{name: ids[text].tolist() for name, ids in tokens.items()} for text in range(texts)]
    path.write_text(json.dumps({"data": rows}), encoding="utf-8")


def _command(program: Path, endpoint: Endpoint, data: Path, report: Path) -> list[str]:
    window_s = RULES.limit_s / (RULES.agreeing + 1)
    options = {
        "-m": endpoint.model,
        "-u": endpoint.address,
        "-i": endpoint.protocol.value,
        "-f": report,
        "--input-data": data,
        "--measurement-interval": round(1000 * window_s),
        "--max-trials": RULES.agreeing + 1,
        "--stability-percentage": 100 * RULES.tolerance,
    }
    if endpoint.header:
        options["-H"] = endpoint.header
    pairs = [str(part) for pair in options.items() for part in pair]
    return [str(program), *pairs, "--verbose-csv"]


def _run(command: list[str], timeout_s: float) -> tuple[int, str]:
    """Exit status and everything it printed."""
    try:
        done = subprocess.run(  # noqa: S603
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except OSError as error:
        return 1, str(error)
    except subprocess.TimeoutExpired as error:
        raise ServingError(
            f"{command[0]} did not end in {timeout_s:g} s; see that the server answers"
        ) from error
    return done.returncode, done.stdout


def _row(report: Path, code: int, said: str) -> Mapping[str, str]:
    """The one row of its report."""
    if code == 0 and report.exists():
        with report.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                return row
    tail = "\n".join(said.strip().splitlines()[-_TAIL_LINES:])
    raise ServingError(f"perf_analyzer ended with status {code} and no figures. It said:\n{tail}")


def _level(concurrency: int, row: Mapping[str, str], said: str, marks: tuple[str, ...]) -> Level:
    throughput_per_s = _throughput_per_s(concurrency, row)
    requests = sum(map(int, _COUNT.findall(said)))
    latency = _latency(row)
    return Level(
        concurrency=concurrency,
        throughput_per_s=throughput_per_s,
        latency=latency,
        driver=DRIVER,
        requests=requests,
        duration_s=requests / throughput_per_s,
        breakdown=_breakdown(row, latency.mean_s),
        marks=marks,
    )


def _throughput_per_s(concurrency: int, row: Mapping[str, str]) -> float:
    found = float(row["Inferences/Second"])
    if found <= 0:
        raise ServingError(
            f"perf_analyzer counted no answers at concurrency {concurrency}; "
            "look into the server's log, or leave out --gate-load-driver"
        )
    return found


def _latency(row: Mapping[str, str]) -> Latency:
    columns = ("Avg latency", "p50 latency", "p90 latency", "p95 latency", "p99 latency")
    mean_s, p50_s, p90_s, p95_s, p99_s = (_s(row, column) for column in columns)
    return Latency(mean_s, p50_s, p90_s, p95_s, p99_s, max_s=math.nan)


def _breakdown(row: Mapping[str, str], mean_s: float) -> Breakdown | None:
    """None where the server gave no statistics."""
    phases = ("Queue", "Compute Input", "Compute Infer", "Compute Output")
    columns = [f"Server {phase}" for phase in phases]
    if not all(row.get(column) for column in columns):
        return None
    server_s = [_s(row, column) for column in columns]
    client_s = _s(row, "Client Send") + _s(row, "Client Recv")
    return Breakdown.of(mean_s, client_s, server_s)


def _s(row: Mapping[str, str], column: str) -> float:
    return float(row[column]) / 1e6
