"""Every documented workflow, typed in a fresh folder as its reader would; a tiny model stands in.

The commands are those of the pages. What is installed is checked, not installed; a server, and
the plugin's own tests, run in tests of their own.
"""

import configparser
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.selftest.test_docs import (
    ROOT,
    clone,
    in_a_job,
    installs_what_there_is,
    scripts,
    split,
)

from enginegate.cli import main
from enginegate.engines import saved
from enginegate.engines.registry import REGISTERED
from enginegate.report.render.markdown import MARKER

pytestmark = pytest.mark.slow
# A program that does with comments in a file what `gh api` does with those of GitHub, for the one
# expression of jq that the job has.
GH = """
import json, os, re, sys
from pathlib import Path

words, kept = sys.argv[1:], Path(os.environ["KEPT"])
comments = json.loads(kept.read_text())
assert words[0] == "api", words
if "--jq" in words:
    form = (
        r'[.][[][]] [|] select[(][.]user[.]login == "(.+)" and '
        r'[(][.]body [|] startswith[(]"(.+)"[)][)][)] [|] [.]id'
    )
    login, start = re.fullmatch(form, words[words.index("--jq") + 1]).groups()
    for found in comments:
        if found["user"]["login"] == login and found["body"].startswith(start):
            print(found["id"])
else:
    method = words[words.index("--method") + 1]
    (path,) = (word for word in words if word.startswith("repos/"))
    name, body = words[words.index("--field") + 1].split("=@")
    text = Path(body).read_text()
    if method == "POST":
        assert re.fullmatch("repos/[^/]+/[^/]+/issues/[0-9]+/comments", path), path
        comments.append({"id": 10, "user": {"login": "github-actions[bot]"}, name: text})
    else:
        number = re.fullmatch("repos/[^/]+/[^/]+/issues/comments/([0-9]+)", path)[1]
        (found,) = (found for found in comments if found["id"] == int(number))
        found[name] = text
    kept.write_text(json.dumps(comments))
"""
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
            if "\n" in line:
                subprocess.run(["bash", "-e", "-c", line], check=True)
            elif line not in ELSEWHERE:
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

    def _case(self, *words):
        """Only the shell can say: see the test of that line."""

    def _echo(self, *words):
        """Shows what the line before ended with."""


@pytest.fixture
def comments(tmp_path_factory, monkeypatch):
    """The comments on a pull request, which a `gh` on the PATH reads and writes."""
    folder = tmp_path_factory.mktemp("gh")
    program = folder / "gh"
    program.write_text(f"#!{sys.executable}\n{GH}")
    program.chmod(0o755)
    kept = folder / "comments.json"
    kept.write_text("[]")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("KEPT", str(kept))
    return kept


def commenting():
    """The step of the documented job that writes the comment."""
    (job,) = yaml.safe_load(block("docs/ci.md", "yaml"))["jobs"].values()
    (step,) = (step for step in job["steps"] if "COMMENTS" in step.get("env", {}))
    return step


@pytest.fixture
def comment(comments, tmp_path, monkeypatch):
    """Write a report, and run the step with it; the bodies of all comments."""
    step = commenting()
    monkeypatch.setenv("OURS", step["env"]["OURS"])
    monkeypatch.setenv("COMMENTS", "repos/acme/engines/issues/7/comments")

    def run(text):
        (tmp_path / "report.md").write_text(text)
        subprocess.run(["bash", "-e", "-c", step["run"]], check=True, cwd=tmp_path)
        return [found["body"] for found in json.loads(comments.read_text())]

    return run


def test_a_comment_is_written_once_and_then_put_anew(comment, comments):
    first, second = (f"{MARKER}\n### {number} engines" for number in (1, 2))
    assert comment(first) == [first]
    said = json.loads(comments.read_text())
    said += [{"id": 20, "user": {"login": "github-actions[bot]"}, "body": "of another workflow"}]
    comments.write_text(json.dumps(said))
    assert comment(second) == [second, "of another workflow"]


def test_a_comment_of_a_stranger_is_left_alone(comment, comments):
    theirs = {"id": 20, "user": {"login": "stranger"}, "body": f"{MARKER} mine"}
    comments.write_text(json.dumps([theirs]))
    ours = f"{MARKER}\n### 1 engine"
    assert comment(ours) == [theirs["body"], ours]


def test_the_job_looks_for_the_marker_that_a_comment_begins_with():
    assert f'startswith("{MARKER}")' in commenting()["env"]["OURS"]


@pytest.mark.parametrize("page", ["docs/ci.md", "docs/fleet.md", "action.yml"])
def test_actions_are_pinned_to_a_version(page):
    used = re.findall(r"uses: (\S+)", (ROOT / page).read_text())
    assert len(used) > 1
    assert [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", name)] == []


@pytest.fixture
def built_once(monkeypatch, kept):
    """Every reader's first commit is the same: its engines are built for the first who asks."""
    build = saved._build

    def once(project, engines, command):
        asked = "".join(word for word in command if "/" not in word)
        first = kept / "revisions" / re.sub(r"\W", "-", asked)
        if not first.exists():
            build(project, engines, command)
            shutil.copytree(engines, first)
        shutil.copytree(first, engines, dirs_exist_ok=True)

    monkeypatch.setattr(saved, "_build", once)


@pytest.fixture
def reader(project, monkeypatch, built_once):
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


ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
BRIEF = "--gate-measure-s=0.04 --gate-max-time-per-variant=6"
NOISE = (0, 13, 15)


def test_the_action_is_what_github_reads():
    assert set(ACTION) == {"name", "description", "inputs", "runs"}
    assert all(set(given) == {"description", "default"} for given in ACTION["inputs"].values())
    assert ACTION["runs"]["using"] == "composite"
    for step in ACTION["runs"]["steps"]:
        assert set(step) <= {"uses", "with", "if", "shell", "env", "run"}
        assert ("uses" in step) is not ("run" in step)
        assert ("shell" in step) is ("run" in step)
        assert "${{" not in step.get("run", "")  # nothing given becomes a part of a script


def test_every_input_of_the_action_is_used_and_no_other():
    used = re.findall(r"inputs\.([\w-]+)", json.dumps(ACTION["runs"]))
    assert sorted(used) == sorted(ACTION["inputs"])


def given_to(step, **inputs):
    """The environment of a step of the action."""
    given = {name: found["default"] for name, found in ACTION["inputs"].items()} | inputs
    values = {"${{ github.action_path }}": "."}
    values |= {f"${{{{ inputs.{name} }}}}": value for name, value in given.items()}
    return {name: values[text] for name, text in step["env"].items()}


def run_step(step, **environment):
    command = ["bash", "-e", "-o", "pipefail", "-c", step["run"]]
    return subprocess.run(command, check=False, env={**os.environ, **environment}).returncode


def test_the_action_in_a_fresh_folder(reader, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("bin")
    (folder / "pip").write_text('#!/bin/sh\necho "$@" > "$INSTALLED"\n')
    (folder / "pip").chmod(0o755)
    path = (str(folder), str(Path(sys.executable).parent), os.environ["PATH"])
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    summary, installed = folder / "summary.md", folder / "installed"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    install, gate = (step for step in ACTION["runs"]["steps"] if "run" in step)
    assert run_step(install, INSTALLED=str(installed), **given_to(install)) == 0
    Reader(None)._pip(*installed.read_text().split())
    inputs = {"precision": "fp16", "against": "origin/main", "arguments": BRIEF}
    assert run_step(gate, **given_to(gate, **inputs)) in NOISE
    (upload,) = (step for step in ACTION["runs"]["steps"] if "upload" in step.get("uses", ""))
    for name in upload["with"]["path"].split():
        assert (reader.project.path / name).read_text()
    assert summary.read_text().startswith(f"{MARKER}\n### 1 engine: ")
    report = json.loads((reader.project.path / "enginegate-report.json").read_text())
    assert report["results"][0]["context"]["against"] == "origin/main"


def test_the_action_fails_where_the_gate_fails(reader, monkeypatch):
    path = (str(Path(sys.executable).parent), os.environ["PATH"])
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    _, gate = (step for step in ACTION["runs"]["steps"] if "run" in step)
    assert run_step(gate, **given_to(gate, precision="fp17")) == 4


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
def test_a_job_for_a_pull_request(reader, number, comments, monkeypatch):
    """In a project that has only a model table, and no tests."""
    monkeypatch.setenv("OURS", commenting()["env"]["OURS"])
    monkeypatch.setenv("COMMENTS", "repos/acme/engines/issues/7/comments")
    flow = yaml.safe_load(block("docs/ci.md", "yaml", number))
    reader.type(*scripts(flow))
    (said,) = reader.said
    assert "no baseline" not in said
    assert re.search(r"fp16 .* (slower|faster) \(.*%\)", said)
    bodies = [found["body"].splitlines()[0] for found in json.loads(comments.read_text())]
    assert bodies == ([MARKER] if number == 0 else [])


@pytest.mark.parametrize(("number", "kinds"), [(0, ("x86", "arm")), (1, ("",))])
def test_a_matrix_of_shards_is_one_verdict(reader, number, kinds, monkeypatch):
    """Each job in turn, what it uploads in its place; then the job of the verdict."""
    shard, verdict = matrix_of(number)
    fleet, ended = reader.project.path / "fleet", set()
    for kind, place in itertools.product(kinds, "12"):
        in_a_job(monkeypatch, SHARD=f"{place}/2x2", KIND=kind, CI_NODE_INDEX=place)
        lines = [line for line in scripts(shard) if not line.startswith("mkdir")]
        fleet.mkdir(exist_ok=True)
        reader._pip(*shlex.split(lines[0])[1:])
        given = [os.path.expandvars(word) for word in shlex.split(lines[-1])[1:]]
        ended.add(reader.project.run(*given, *BRIEF.split()).ret)
        if number == 0:
            (fleet / f"fleet-{kind}-{place}").mkdir()
            shutil.move("report.json", fleet / f"fleet-{kind}-{place}")
    assert ended <= set(NOISE)
    install, merge, *_ = scripts(verdict)
    reader._pip(*shlex.split(install)[1:])
    words = [sorted(map(str, Path().glob(word))) or [word] for word in shlex.split(merge)[1:]]
    assert main([name for found in words for name in found]) == exit_status_of(ended)
    told = json.loads((reader.project.path / "fleet.json").read_text())
    assert told["missing"] == told["unjudged"] == []
    assert told["alarm"] == pytest.approx(0.01)
    assert len(told["engines"]) == 2 * len(kinds)


def exit_status_of(ended):
    """The gravest of exit statuses that are 0 or above 9."""
    return min((status for status in ended if status), default=0)


def matrix_of(number):
    """The job of a shard and that of the verdict."""
    flow = yaml.safe_load(block("docs/fleet.md", "yaml", number))
    jobs = flow.get("jobs", flow)
    return jobs["shard"], jobs["verdict"]


def test_the_matrix_has_all_shards_that_it_names():
    shard, _ = matrix_of(0)
    matrix, said = shard["strategy"]["matrix"], shard["env"]["SHARD"]
    found = re.findall(r"\$\{\{ matrix.shard \}\}/(\d+)x(\d+)", said)
    ((count, kinds),) = (map(int, numbers) for numbers in found)
    assert matrix["shard"] == list(range(1, count + 1))
    assert len(matrix["kind"]) == kinds
    assert {row["kind"] for row in matrix["include"]} == set(matrix["kind"])


def test_a_job_that_lets_noise_pass_and_exports_its_report(reader):
    reader.type(*typed("docs/ci.md"))
    for name in ("report.csv", "report.txt", "badge.json"):
        assert (reader.project.path / name).read_text()


@pytest.mark.parametrize(("status", "ends"), [(0, 0), (13, 0), (15, 0), (11, 1), (4, 1)])
def test_a_job_lets_noise_pass_and_nothing_else(status, ends):
    """By the shell itself; `pytest` is a function that ends with a status."""
    line, _ = typed("docs/ci.md")
    script = f"pytest() {{ return {status}; }}\n{line}"
    found = subprocess.run(["bash", "-ec", script], check=False, capture_output=True, text=True)
    assert found.returncode == ends
    assert (found.stdout == "too noisy to judge\n") is (status in (13, 15))
