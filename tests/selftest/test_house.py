"""The rules of the house are kept, and each is seen to break where its fault is planted."""

import importlib.util
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import enginegate

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch transformers sentence_transformers onnxruntime openvino nncf tensorrt pycuda "
    "tritonclient jinja2 vl_convert jsonschema cattrs"
)
NOT_BELOW = f"{HEAVY} onnx scipy pytest"  # of what lies on a server too, or in another interpreter
FACES = {
    "config": f"{NOT_BELOW} numpy",
    "machine": f"{NOT_BELOW} numpy",
    "models": NOT_BELOW,
    "engines": NOT_BELOW,
    "speed": NOT_BELOW,
    "serving": NOT_BELOW,
    "accuracy": HEAVY,
    "diagnostics": HEAVY,
    "baselines": HEAVY,
    "report": HEAVY,
    "session": HEAVY,
}
PLANTED = {
    "a module in no row": ("attic.py", '"""In no row."""\n', "attic"),
    "a face passed by": (
        "report/past.py",
        '"""Past a face."""\n\nfrom enginegate.speed.timing import Rig  # noqa: F401\n',
        "enginegate.report.past imports enginegate.speed.timing, not",
    ),
    "pytest below": ("speed/asks.py", '"""Asks."""\n\nimport pytest\n', "speed.asks -> pytest"),
    "up the rows": (
        "machine/climbs.py",
        '"""Climbs."""\n\nfrom enginegate.engines import Engine\n',
        "enginegate.machine.climbs -> enginegate.engines",
    ),
    "torch elsewhere": ("report/heavy.py", '"""Heavy."""\n\nimport torch\n', "heavy -> torch"),
}


@pytest.fixture
def house(tmp_path):
    """A copy of the package with its contracts."""
    shutil.copytree(ROOT / "plugin", tmp_path / "plugin", symlinks=False)
    (tmp_path / "tests").mkdir()
    for name in ("pyproject.toml", "tests/contracts.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def contracts(house):
    """What import-linter says of a copy."""
    environment = {**os.environ, "PYTHONPATH": str(house / "plugin"), "COLUMNS": "200"}
    command = Path(sys.executable).with_name("lint-imports")
    said = subprocess.run(
        [command, "--no-cache"],
        cwd=house,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return said.returncode, said.stdout + said.stderr


def test_the_contracts_are_kept(house):
    status, said = contracts(house)
    assert status == 0, said
    assert "5 kept, 0 broken" in said


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_breaks_its_contract(house, fault):
    name, content, named = PLANTED[fault]
    (house / "plugin" / "enginegate" / name).write_text(content)
    status, said = contracts(house)
    assert status == 1, said
    assert re.sub(r"\s+", " ", named) in re.sub(r"\s+", " ", said)


def test_the_root_is_no_longer_than_a_page():
    names = [p for p in (ROOT / "plugin" / "enginegate").iterdir() if p.name != "__pycache__"]
    assert len(names) <= 24, sorted(p.name for p in names)


@pytest.mark.parametrize("room", FACES)
def test_a_face_loads_nothing_heavy(room):
    program = (
        f"import sys, enginegate.{room}\n"
        f"print([name for name in {FACES[room].split()!r} if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.stdout.strip() == "[]", said.stdout + said.stderr


@pytest.mark.parametrize("room", [m.name for m in pkgutil.iter_modules(enginegate.__path__)])
def test_a_face_has_what_it_names(room):
    face = importlib.import_module(f"enginegate.{room}")
    assert [name for name in getattr(face, "__all__", ()) if not hasattr(face, name)] == []


def figures():
    spec = importlib.util.spec_from_file_location("house_figures", ROOT / "benchmarks" / "house.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_of_the_house():
    found = dict(figures().figures(ROOT))
    assert found["import cycle between rooms"] == "none"
    lines, frozen = found["Session"].split(" lines, ")
    assert int(lines) < 120
    assert frozen == "frozen"
    assert float(found["their median length"].split()[0]) <= 6
    assert int(found["their 90th percentile"].split()[0]) <= 15


def test_a_planted_cycle_is_found(house):
    path = house / "plugin" / "enginegate" / "machine" / "climbs.py"
    path.write_text("from enginegate.engines import Engine\n")
    found = dict(figures().figures(house))
    assert set(found["import cycle between rooms"].split(" -> ")) >= {"machine", "engines"}
