"""The fake cuda-bindings against the real wheels of CUDA 12 and 13: `tox run -e stubs`.

They import without a driver, and say in their docstrings what each call takes.
"""

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FAKE = Path(__file__).parents[1] / "selftest" / "fake_gpu" / "cuda" / "bindings" / "driver.py"
VERSIONS = ("12.9.4", "13.5.0")
_TELL = """
import json
from cuda.bindings import driver
calls = {name: getattr(driver, name).__doc__ or "" for name in dir(driver) if name.startswith("cu")}
kinds = {k: [e.name for e in getattr(driver, k)] for k in ("CUresult", "CUstreamCaptureMode")}
print(json.dumps([calls, kinds]))
"""


@pytest.fixture(scope="module", params=VERSIONS)
def real(request, tmp_path_factory):
    """Docstrings of the calls and members of the enumerations."""
    folder = tmp_path_factory.mktemp("cuda")
    for wheel in (f"cuda-bindings=={request.param}", "cuda-pathfinder"):
        download = ["pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wheel]
        subprocess.run([sys.executable, "-m", *download], check=True)
    for path in folder.glob("*.whl"):
        with zipfile.ZipFile(path) as content:
            content.extractall(folder)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", _TELL]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(told.stdout)


def fake():
    tree = ast.parse(FAKE.read_text(encoding="utf-8"))
    calls = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("cu")]
    kinds = [n for n in tree.body if isinstance(n, ast.ClassDef)]
    return calls, kinds


def test_the_fake_has_only_real_calls_with_real_arguments(real):
    docstrings, _ = real
    calls, _ = fake()
    assert len(calls) > 25
    for call in calls:
        said = docstrings[call.name].partition("\n")[0]
        assert said.startswith(f"{call.name}("), call.name
        inside = said.partition("(")[2].rpartition(")")[0]
        wanted = [part.partition(":")[0].split()[-1] for part in inside.split(",") if part.strip()]
        assert [argument.arg for argument in call.args.args] == wanted, said


def test_the_fake_has_only_real_names_of_results(real):
    _, members = real
    for kind in fake()[1]:
        assigned = [n.targets[0] for n in kind.body if isinstance(n, ast.Assign)]
        names = [target.id for target in assigned if isinstance(target, ast.Name)]
        assert set(names) <= set(members[kind.name]), kind.name
