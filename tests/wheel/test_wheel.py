"""The built wheel in an environment that has nothing else: `tox run -e wheel`."""

import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

import enginegate

ROOT = Path(__file__).parents[2]
OWN = "test_it.py", "def test_it(request): assert 'engine' not in request.fixturenames\n"
WITHOUT = ("-p", "no:enginegate.plugin")
# the duration and the line that names what is installed
PASSING = re.compile(r"in \d+\.\d+s|^plugins: .*$|enginegate-[\d.]+", re.MULTILINE)


@pytest.fixture
def unrelated(tmp_path: Path) -> Path:
    """A project that does not use the plugin."""
    (tmp_path / OWN[0]).write_text(OWN[1])
    return tmp_path


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Status and output of pytest in a folder."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return found.returncode, PASSING.sub("", found.stdout + found.stderr)


def test_it_is_the_wheel_that_is_tested() -> None:
    assert ROOT / "plugin" not in Path(enginegate.__file__).parents


@pytest.mark.parametrize("arguments", ["-v", "--fixtures", "--markers", "--trace-config"])
def test_nothing_is_added_to_an_unrelated_project(unrelated: Path, arguments: str) -> None:
    status, said = run(unrelated, arguments)
    assert status == 0
    if arguments == "--trace-config":  # it names every plugin: ours is one, and no more
        assert set(re.findall(r"enginegate[.\w]*", said)) == {"enginegate", "enginegate.plugin"}
    else:
        assert (status, said) == run(unrelated, arguments, *WITHOUT)


def test_the_suite_comes_with_it(unrelated: Path) -> None:
    assert run(unrelated, "--pyargs", "enginegate.suite", "-q")[1].startswith("sssss")


def test_a_run_without_its_extra_says_what_to_install(unrelated: Path) -> None:
    status, said = run(unrelated, "--pyargs", "enginegate.suite", "--precision", "fp32")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "pip install 'pytest-enginegate[cpu" in said
    assert "Traceback" not in said


def test_its_page_on_an_index_has_no_link_that_leads_nowhere() -> None:
    page = str(distribution("pytest-enginegate").metadata.get_payload())  # type: ignore[attr-defined]
    assert re.findall(r"\]\((?!https://)[^)]*\)", page) == []
    named = re.findall(r"`(docs/[^`]*)`", page)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
