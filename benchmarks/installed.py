"""Popular plugins beside this one: a project that does not use it, and the gate.

    python benchmarks/installed.py

Makes an environment with the plugins, runs an unrelated project under each, installs this project,
and runs all again: collected tests, their order and their outcomes must be the same, also with
`-p no:enginegate.plugin`. Then the gate runs under each of them: a flagged engine must be told of,
and a slow one must fail. Ends with status 1 if anything is otherwise.
"""

import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
SELFTEST = ROOT / "tests" / "selftest"
PLUGINS = [
    *("asyncio", "codspeed", "cov", "html", "instafail", "mock"),
    *("order", "randomly", "rerunfailures", "sugar", "timeout", "xdist"),
]
UNDER = {
    "all loaded": (),
    "codspeed": ("--codspeed",),
    "cov": ("--cov=.",),
    "html": ("--html=page.html", "--self-contained-html"),
    "instafail": ("--instafail",),
    "randomly": ("--randomly-seed=7",),
    "rerunfailures": ("--reruns=2",),
    "sugar": ("--force-sugar",),
    "timeout": ("--timeout=60",),
    "xdist": ("-n2",),
}
REFUSED = ("codspeed", "xdist")
WITHOUT = ("-p", "no:enginegate.plugin")
CONFTEST = """
import pytest
def pytest_addoption(parser):
    for name in ("model", "threads", "backend", "serve", "gate", "precision", "blame"):
        parser.addoption("--" + name, default="theirs")
@pytest.fixture(params=["a", "b"])
def engine(request): return request.param
@pytest.fixture
def model(): return "their model"
"""
TESTS = """
import asyncio, random
import pytest
tried = []
def test_own(engine, model): assert model == "their model"
def test_option(pytestconfig): assert pytestconfig.getoption("threads") == "theirs"
def test_fails(): assert 0
def test_flaky(): tried.append(1); assert len(tried) > 1
def test_random(): assert random.random() >= 0
def test_bench(benchmark): assert benchmark(lambda: 1) == 1
def test_mocked(mocker): assert mocker.Mock(return_value=1)() == 1
def test_missing(workload): pass
@pytest.mark.skip
def test_skipped(): pass
@pytest.mark.xfail
def test_xfails(): assert 0
@pytest.mark.asyncio
async def test_async(): await asyncio.sleep(0)
@pytest.mark.order(1)
def test_ordered(): pass
@pytest.mark.timeout(30)
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_parameters(batch_size): pass
"""
CLOCK = """
import importlib, time
{clock}
for name in {timed!r}:
    importlib.import_module("enginegate." + name).time = CLOCK
timing = importlib.import_module("enginegate.speed.timing")
timing.SETTLE_S, timing.TURN_S = 0.0, 0.6
"""


def main() -> int:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "env", "bin", "python")
        venv.create(Path(folder, "env"), with_pip=True)
        install(python, *(f"pytest-{name}" for name in PLUGINS))
        project = unrelated(Path(folder, "unrelated"))
        before = {name: found(python, project, *words) for name, words in UNDER.items()}
        install(python, f"{ROOT}[cpu]")
        print(f"{time.strftime('%Y-%m-%d')}, {versions(python)}\n\nan unrelated project:")
        wrong = [name for name in UNDER if not unchanged(python, project, name, before[name])]
        print("\nthe gate:")
        gate = gated(Path(folder, "gate"))
        run(python, gate, "--precision=fp32", "--gate-refresh-baselines", "--randomly-seed=7")
        wrong += [name for name in UNDER if not told(python, gate, name)]
    print(f"\nwrong: {', '.join(wrong) or 'none'}")
    return bool(wrong)


def install(python: Path, *names: str) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *names]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def versions(python: Path) -> str:
    command = [python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return ", ".join(line for line in listed if line.startswith("pytest"))


def run(python: Path, folder: Path, *words: str, fault: str = "") -> tuple[int, str]:
    """Exit status and output of pytest."""
    environment = {**os.environ, "ENGINEGATE_PLANTED_FAULT": fault, "PYTHONWARNINGS": "ignore"}
    for name in ("PYTHONPATH", "CODSPEED_ENV"):
        environment.pop(name, None)
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", *words]
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return ended.returncode, ended.stdout + ended.stderr


def unrelated(folder: Path) -> Path:
    folder.mkdir()
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS)
    return folder


def found(python: Path, folder: Path, *words: str) -> tuple[list[str], dict[str, list[str]]]:
    """The collected tests in their order, and the outcome of each."""
    seed = () if "--randomly-seed=7" in words else ("-p", "no:randomly")
    _, listed = run(python, folder, "--collect-only", "-q", *seed, *words)
    run(python, folder, "--junitxml=junit.xml", *seed, *words)
    cases = ElementTree.parse(folder / "junit.xml").iter("testcase")  # noqa: S314 - our own file
    outcomes = {case.get("name", ""): sorted(part.tag for part in case) for case in cases}
    return [line for line in listed.splitlines() if "::" in line], outcomes


def unchanged(python: Path, folder: Path, name: str, before: object) -> bool:
    """Print a line; False if the installation changed something."""
    after = found(python, folder, *UNDER[name])
    blocked = found(python, folder, *UNDER[name], *WITHOUT)
    failed = sum(bool({"failure", "error"} & {*tags}) for tags in after[1].values())
    count = f"{len(after[0])} collected, {len(after[1])} ran, {failed} failed"
    same = before == after == blocked
    print(f"{name:14} {count:38} {'unchanged' if same else f'{before} {after} {blocked}'}")
    return same


def gated(folder: Path) -> Path:
    """The selftests' project, whose planted work takes no real time."""
    folder.mkdir()
    selftest = load("conftest")
    source = f"{inspect.getsource(selftest.Clock)}\nCLOCK = Clock()"
    clock = CLOCK.format(clock=source, timed=selftest.TIMED)
    (folder / "conftest.py").write_text(selftest.CONFTEST + clock)
    (folder / "pyproject.toml").write_text(selftest.PYPROJECT)
    load("tiny").write_tiny_onnx(folder / "tiny.onnx")
    shutil.copy(SELFTEST / "faulty.py", folder)
    for name in ("accuracy", "throughput"):
        shutil.copy(ROOT / "tests" / f"test_{name}.py", folder)
    return folder


def load(name: str) -> ModuleType:
    """A module of the selftests."""
    spec = importlib.util.spec_from_file_location(f"selftest_{name}", SELFTEST / f"{name}.py")
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told(python: Path, folder: Path, name: str) -> bool:
    """Print two lines; False if a flag was hidden or a regression passed."""
    words = UNDER[name] or ("-p", "no:randomly")
    status, said = run(python, folder, "--precision=int8", "-k", "same_embeddings", *words)
    where = {"count": " 1 flagged" in said, "table": "embeddings flagged" in said}
    where["page"] = name == "html" and "int8: flagged: " in (folder / "page.html").read_text()
    shown = ", ".join(place for place, is_there in where.items() if is_there) or last(said)
    print(
        f"{name:14} flagged: status {status}, in {shown}" if status != 4 else f"{name:14} {shown}"
    )
    slow, said = run(python, folder, "--precision=fp32", *words, fault="slow")
    if name in REFUSED:
        return status == slow == 4
    print(f"{'':14} slow: status {slow}, {tally(said)}")
    return status == 0 and where["table"] and where["page"] == (name == "html") and slow == 11


def last(said: str) -> str:
    return said.strip().splitlines()[-1].strip("= ")


def tally(said: str) -> str:
    """How many tests ended in which way."""
    return ", ".join(re.findall(r"\d+ (?:failed|passed|rerun)\b", said)[-3:])


if __name__ == "__main__":
    sys.exit(main())
