"""A CI job's life in a fresh clone: refresh, pass, degrade, fail, accept, pass.

    python benchmarks/ci_scenario.py [LOG]

Clones this repository, judges MiniLM (OpenVINO fp32, batch 8) with the commands a job would run,
makes the engine do more work (built from another file, see benchmarks/trials.py) and accepts that.
Prints every command, its exit status and the plugin's own part of its output. Fails if a status is
not as expected.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from enginegate.machine.fingerprint import this_machine

HERE = Path(__file__).parents[1]
GATE = (
    "python -m pytest --precision=fp32 --gate-model=judged --gate-batches=8 --gate-require-baseline"
)
TABLE = """
[tool.enginegate.models.judged]
onnx = "judged.onnx"
vocab_size = 30522
seq_len = 32
"""
SLOWER_ENGINE = """
import dataclasses, pathlib, pytest

@pytest.fixture(scope="session")
def built(enginegate, enginegate_variant, exported, workload, reference):
    slower = dataclasses.replace(exported, onnx=pathlib.Path("slower.onnx"), sha256="slower")
    return enginegate.prepare.build(enginegate_variant, slower, workload, reference)
"""
ACCEPT = "cp -r .enginegate/accept/. baselines"
MORE_WORK = 17


def main(log: Path | None) -> None:
    lines = [f"{time.strftime('%Y-%m-%d')}, {this_machine().cpu}, {this_machine().cores} cores"]
    with tempfile.TemporaryDirectory() as folder:
        for line in scenario(Path(folder) / "clone"):
            print(line, flush=True)
            lines.append(line)
    if log:
        log.write_text("\n".join(lines) + "\n")


def scenario(clone: Path):
    subprocess.run(["git", "clone", "-q", str(HERE), str(clone)], check=True)
    settings = clone / "pyproject.toml"
    settings.write_text(settings.read_text().replace("[tool.pytest", f"{TABLE}\n[tool.pytest", 1))
    write_model(clone / "judged.onnx", 0)
    yield from step(clone, GATE, 14)
    yield from step(clone, GATE.replace("--gate-require-baseline", "--gate-refresh-baselines"), 0)
    yield from step(clone, commit("baselines"), 0)
    yield from step(clone, GATE, 0)
    write_model(clone / "slower.onnx", MORE_WORK)
    with (clone / "conftest.py").open("a") as own:
        own.write(SLOWER_ENGINE)
    yield "(the engine is now built from a model that does more work)"
    yield from step(clone, GATE, 11)
    yield from step(clone, f"{ACCEPT} && {commit('accept the slower model')}", 0)
    yield from step(clone, "enginegate baselines diff HEAD~1", 0)
    yield from step(clone, GATE, 0)


def write_model(path: Path, more: int) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from trials import Bench, add_work

    bench = Bench(Path("~/.cache/enginegate").expanduser())
    add_work(bench.model.onnx, path, more)


def commit(message: str) -> str:
    who = "-c user.name=ci -c user.email=ci@example.com"
    return f"git add baselines && git {who} commit -qm '{message}'"


def step(folder: Path, command: str, expected: int):
    shell = ["bash", "-c", command]
    found = subprocess.run(shell, cwd=folder, capture_output=True, text=True, check=False)
    text = found.stdout[max(0, found.stdout.find("= enginegate =")) :]
    yield f"$ {command}"
    yield from (line for line in text.splitlines() if line)
    yield f"exit status {found.returncode}"
    yield ""
    if found.returncode != expected:
        raise SystemExit(f"expected {expected}:\n{found.stdout}\n{found.stderr}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
