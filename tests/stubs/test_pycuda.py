"""The fake pycuda against the source that pycuda's module is compiled from: `tox run -e stubs`.

It is a source distribution that needs CUDA's toolkit to be built, so its bindings are read.
"""

import ast
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

FAKE = Path(__file__).parents[1] / "selftest" / "fake_gpu" / "pycuda" / "driver.py"
USED = Path(__file__).parents[2] / "plugin/enginegate/engines/tensorrt/pycuda_device.py"
VERSION = "2026.1"
_SOURCE = f"pycuda-{VERSION}/src/wrapper/wrap_cudadrv.cpp"
_CLASS = re.compile(r'py::class_<[^;"]*?"(\w+)"(.*?)\n\s*;', re.S)
_CALL = re.compile(
    r'(?:def|add_property)\(\s*"(\w+)"((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)'
    r"|DEF_SIMPLE_(?:METHOD|FUNCTION)\((\w+)\)"
)
_NAMED = re.compile(r"py::args?\(([^()]*)\)")
_ERRORS = re.compile(r"DECLARE_EXC\((\w+),")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pycuda")
    download = ["pip", "download", "--quiet", "--no-deps", "--no-binary", "pycuda"]
    wanted = ["--dest", str(folder), f"pycuda=={VERSION}"]
    subprocess.run([sys.executable, "-m", *download, *wanted], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        member = content.extractfile(_SOURCE)
        assert member
        return member.read().decode()


def named(text):
    """Names of the arguments that a definition states; None if it states none."""
    found = re.findall(r'"(\w+)"', " ".join(_NAMED.findall(text)))
    return [name for name in found if name != "self"] or None


def calls(text):
    """Names of all definitions, and of their arguments."""
    return {own or plain: named(rest) for own, rest, plain in _CALL.findall(text)}


def real(source):
    """The module's functions under "", the methods of its classes, and its errors."""
    classes = {name: calls(inside) for name, inside in _CLASS.findall(source)}
    errors: dict[str, dict[str, list[str] | None]] = {n: {} for n in _ERRORS.findall(source)}
    return {"": calls(_CLASS.sub("", source)), **classes, **errors}


def fake():
    """Public functions and methods of the fake, with their arguments."""
    body = ast.parse(FAKE.read_text(encoding="utf-8")).body
    classes = {n.name: n.body for n in body if isinstance(n, ast.ClassDef)}
    for owner, members in {"": body, **classes}.items():
        for call in members:
            if isinstance(call, ast.FunctionDef) and not call.name.startswith("_"):
                yield owner, call.name, [a.arg for a in call.args.args if a.arg != "self"]


def test_the_fake_has_only_real_calls_with_real_arguments(source):
    known, compared = real(source), list(fake())
    assert len(compared) > 15
    for owner, name, arguments in compared:
        assert name in known[owner], (owner, name)
        assert known[owner][name] in (None, arguments), (owner, name)


def test_the_code_uses_only_real_names(source):
    known = real(source)
    text = USED.read_text(encoding="utf-8")
    used = set(re.findall(r"\bdriver\.(\w+)", text))
    assert len(used) > 9
    assert used <= {*known[""], *known}


def test_a_name_that_pycuda_lacks_is_seen(source):
    known = real(source)
    assert "memcpy_htod_later" not in {*known[""], *known}
    assert "time_since" in known["Event"]
    assert known[""]["memcpy_htod_async"] == ["dest", "src", "stream"]
    assert known["Stream"]["handle"] is None
