"""Every documented workflow, typed in a fresh folder as its reader would; a tiny model stands in.

The commands are those of the pages. What is installed is checked, not installed; a server, and
the plugin's own tests, run in tests of their own.
"""

import configparser
import os
import re
import shlex
import subprocess

import pytest
import yaml
from tests.selftest.test_docs import ROOT, clone, installs_what_there_is, scripts, split

from enginegate.cli import main
from enginegate.engines.registry import REGISTERED

pytestmark = pytest.mark.slow
ELSEWHERE = {  # lines that are not typed here, and no others
    "python -m pip install tox && tox run -e selftest",
    "tox run -e gate -- --precision fp32,int8 --gate-serve triton --gate-concurrency 1:32",
}


def block(page, language, number=0):
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return found[number]


def typed(page):
    """The lines that the reader of a page types, each once."""
    lines = re.findall(r"^\$ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    return list(dict.fromkeys(lines))


def tox(environment, given):
    """The commands of an environment, the given arguments put in."""
    known = configparser.ConfigParser(interpolation=None)
    known.read(ROOT / "tox.ini")
    lines = known[f"testenv:{environment}"]["commands"].strip().splitlines()
    return [line.replace("{posargs}", shlex.join(given)) for line in lines]


class Reader:
    """Types commands; remembers what was printed."""

    def __init__(self, project):
        self.project, self.said = project, []

    def type(self, *lines):
        for line in lines:
            if line not in ELSEWHERE:
                fine = (0, 13, 15) if "in 13|15)" in line else (0,)  # which that line lets pass
                for words in split(line):
                    ended = self._run(*map(os.path.expandvars, words))
                    assert ended in fine, (line, self.said[-1:])

    def _run(self, program, *words):
        if program == "python":
            assert words[:2] == ("-m", "pip")
            program, words = "pip", words[2:]
        return getattr(self, f"_{program}")(*words) or 0

    def _pip(self, *words):
        installs_what_there_is(words)
        needs_torch = re.search(r"export|minilm", " ".join(words))
        assert not needs_torch or "https://download.pytorch.org/whl/cpu" in words

    def _pytest(self, *words):
        result = self.project.run(*words)
        self.said.append(result.stdout.str() + result.stderr.str())
        assert " passed" in self.said[-1]
        return result.ret

    def _enginegate(self, *words):
        return main(words)

    def _git(self, *words):
        return subprocess.run(["git", *words], check=False).returncode

    def _tox(self, run, _e, environment, _dashes="--", *given):
        self.type(*tox(environment, given))

    def _gh(self, *words):
        assert os.path.getsize(words[words.index("--body-file") + 1])  # noqa: PTH202

    def _case(self, *words):
        """Only the shell can say: see the test of that line."""

    def _echo(self, *words):
        """Shows what the line before ended with."""


@pytest.fixture
def reader(project, monkeypatch):
    """A reader in a git repository of a project that has a model table and nothing else."""
    monkeypatch.setitem(REGISTERED, "openvino", REGISTERED["openvino"])  # put back at the end
    monkeypatch.chdir(project.path)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "reader")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "reader@example.com")
    monkeypatch.setenv("CI_MERGE_REQUEST_TARGET_BRANCH_NAME", "main")
    for name in ("conftest.py", "pyproject.toml"):
        text = (project.path / name).read_text()
        text = text.replace('"faulty", "faulty:Faulty"', '"openvino", "faulty:Everything"')
        text = text.replace('backend = "faulty"\n', "").replace("[1, 4]", "[1]")
        project.write(name, text.replace("tiny]", "minilm]"))
    for name in ("test_accuracy.py", "test_throughput.py"):
        (project.path / name).unlink()
    clone(project.path)
    return Reader(project)


def test_the_first_run(reader):
    lines = typed("docs/first-run.md")
    reader.type(*lines)
    assert (reader.project.path / "report.html").exists()
    first, _, last = reader.said
    assert "no baseline" in first
    assert re.search(r"fp32 .* (slower|faster) \(.*%\)", last)
    assert "no baseline" not in last


def test_baselines(reader):
    reader.type(*typed("docs/baselines.md"))
    kept = subprocess.run(["git", "show", "--stat"], check=True, capture_output=True, text=True)
    assert "minilm.json" in kept.stdout
    assert (reader.project.path / "history.html").exists()


def test_the_readme(reader):
    path = reader.project.path
    reader.project.write("test_engines.py", block("README.md", "python"))
    reader.type("git add .", "git commit -qm tests")
    lines = typed("README.md")
    report = lines.index(next(line for line in lines if line.startswith("enginegate report")))
    reader.type(*lines[:report])
    (path / "before.json").write_bytes((path / "report.json").read_bytes())
    reader.type(*lines[report:])
    assert (path / "compared.html").exists()


@pytest.mark.parametrize("number", [0, 1], ids=["GitHub", "GitLab"])
def test_a_job_for_a_pull_request(reader, number):
    """In a project that has only a model table, and no tests."""
    flow = yaml.safe_load(block("docs/ci.md", "yaml", number))
    reader.type(*scripts(flow))
    (said,) = reader.said
    assert "no baseline" not in said
    assert re.search(r"fp16 .* (slower|faster) \(.*%\)", said)


def test_a_job_that_lets_noise_pass(reader):
    reader.type(*typed("docs/ci.md"))


@pytest.mark.parametrize(("status", "ends"), [(0, 0), (13, 0), (15, 0), (11, 1), (4, 1)])
def test_a_job_lets_noise_pass_and_nothing_else(status, ends):
    """By the shell itself; `pytest` is a function that ends with a status."""
    (line,) = typed("docs/ci.md")
    script = f"pytest() {{ return {status}; }}\n{line}"
    found = subprocess.run(["bash", "-ec", script], check=False, capture_output=True, text=True)
    assert found.returncode == ends
    assert (found.stdout == "too noisy to judge\n") is (status in (13, 15))
