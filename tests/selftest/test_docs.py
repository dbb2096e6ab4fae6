"""The documentation: every command in it is one that works, every workflow is valid YAML."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from enginegate.cli import command_parser, main
from enginegate.config.arguments import GATE, SERVING

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# programs that are not this project's
OTHERS = {"case", "cp", "docker", "echo", "exit", "gh", "git", "ray", "tail"}
MODELS = ("judged", "mine", "minilm", "distilbert-base-cased-96")


def blocks(language):
    """`(page, text)` of every fenced block in a language."""
    for path in PAGES:
        for found in re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL):
            yield path.name, found


def split(line):
    """The commands of a shell line, each as words."""
    words = shlex.split(line, comments=True)
    parts: list[list[str]] = []
    current: list[str] = []
    for word in words:
        if word in ("&&", "||", ";", "|"):
            parts.append(current)
            current = []
        else:
            current.append(word)
    return [part for part in [*parts, current] if part]


def console():
    for page, text in blocks("console"):
        for line in text.splitlines():
            if line.startswith("$ "):
                yield from ((page, words) for words in split(line[2:]))


def workflows():
    for page, text in blocks("yaml"):
        yield page, yaml.safe_load(text)


def scripts(node):
    """Every `run` and `script` of a workflow, line by line."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("run", "script"):
                yield from [value] if isinstance(value, str) else value
            else:
                yield from scripts(value)
    elif isinstance(node, list):
        for item in node:
            yield from scripts(item)


COMMANDS = list(console())


def arguments_of_pytest():
    """`(page, arguments)` of every pytest run, also by tox and in workflows."""
    in_workflows = [
        (page, words)
        for page, flow in workflows()
        for line in scripts(flow)
        for words in split(line)
    ]
    for page, words in (*COMMANDS, *in_workflows):
        if words[0] == "pytest" and "--require-gpu" not in words:  # that is test_gpu_suite.py's
            yield page, words[1:]
        elif words[:4] == ["tox", "run", "-e", "gate"]:
            yield page, words[5:]


def test_there_are_commands_to_test():
    assert len(COMMANDS) > 25
    assert len(list(arguments_of_pytest())) > 15


@pytest.mark.parametrize(("page", "words"), COMMANDS)
def test_a_command_is_known(page, words):
    program = words[0]
    if program == "python" and words[1:3] == ["-m", "pip"]:
        program, words = "pip", words[2:]
    elif program == "python" and (ROOT / words[1]).is_file():
        return
    known = {"pytest", "enginegate", "tox", "pip", *OTHERS}
    assert program in known, f"{page}: {words}"
    if program == "pip":
        installs_what_there_is(words)
    if program == "tox":
        environment = words[words.index("-e") + 1]
        assert f"[testenv:{environment}]" in (ROOT / "tox.ini").read_text()


def installs_what_there_is(words):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for found in re.findall(r"\[(.*?)\]", " ".join(words)):
        assert set(found.split(",")) <= set(extras["optional-dependencies"])


@pytest.mark.parametrize("words", [words for _, words in COMMANDS if words[0] == "enginegate"])
def test_arguments_of_enginegate_are_right(words):
    command_parser().parse_args(words[1:])


def in_a_job(monkeypatch, **given):
    """Set what a job of a documented matrix sets."""
    values = {"BASE": "origin/main", "CI_MERGE_REQUEST_DIFF_BASE_SHA": "origin/main"}
    values |= {"SHARD": "1/2x2", "KIND": "x86", "CI_NODE_INDEX": "1", "CI_NODE_TOTAL": "2"}
    for name, value in (values | given).items():
        monkeypatch.setenv(name, value)


def test_arguments_of_pytest_are_right(project, load_tiny, fake_gpu, monkeypatch):
    """Each is given to pytest, which collects: options are read, models and values are checked."""
    shown = {" ".join(arguments): arguments for _, arguments in arguments_of_pytest()}
    tables = "".join(
        f'[tool.enginegate.models.{name}]\nonnx = "tiny.onnx"\nvocab_size = 200\nseq_len = 8\n'
        for name in MODELS
    )
    project.write("pyproject.toml", f'[tool.enginegate]\nengine_cache = "cache"\n{tables}')
    project.write(
        "conftest.py",
        'from enginegate.engines import register\nregister("plain", "faulty:Faulty")\n',
    )
    project.write("queries.txt", "".join(f"a text of its own, number {n}\n" for n in range(20)))
    write_own_data(project.path)
    (project.path / "engines").mkdir()
    clone(project.path)
    in_a_job(monkeypatch)
    for text, arguments in shown.items():
        result = project.run("--collect-only", "-q", *map(os.path.expandvars, arguments))
        assert result.ret in (0, 5), text


def clone(folder):
    """Make a folder a clone of a repository on its branch `main`, with all that is in it."""
    identity = ["-c", "user.name=reader", "-c", "user.email=reader@example.com"]
    commands = (["init", "-qb", "main"], ["add", "."], [*identity, "commit", "-qm", "models"])
    for words in (*commands, ["remote", "add", "origin", "."], ["fetch", "-q", "origin", "main"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


def write_own_data(folder):
    """The files of the guide's example, by the command that it gives."""
    command = [sys.executable, str(ROOT / "benchmarks/own_data.py"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def rows_of(page):
    """Default and further cells of the page's table of options, by the option as shown."""
    table = (ROOT / "docs" / page).read_text().partition("\n## Options\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `--")]
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    return {
        first.strip().replace("\\|", "|"): [cell.strip() for cell in rest] for first, *rest in cells
    }


def shown(option):
    """An option and its default as the docs show them; no default where words stand for it."""
    value = f"[={option.metavar}]" if "nargs" in option.argparse else f" {option.metavar}"
    default = option.written if option.default not in (None, ()) else ""
    flag = "--precision" if option.name == "precision" else option.flag
    return f"`{flag}{value.rstrip()}`", default if option.metavar else "off"


def test_the_guide_shows_every_option_as_it_is():
    found = rows_of("guide.md")
    served = found.pop("`--gate-serve triton|URL` and others")
    assert served[:2] == ["off", "`serve`"]
    assert set(found) == {shown(option)[0] for option in GATE}
    for option in GATE:
        name, default = shown(option)
        told, key, _ = found[name]
        assert default in ("", re.split("[:; ]", told.replace("`", ""))[0]), name
        assert key == (f"`{option.name}`" if option.key else ""), name


def test_the_page_on_serving_shows_every_option_as_it_is():
    found = rows_of("serving.md")
    assert list(found) == [shown(option)[0] for option in SERVING]
    for option in SERVING:
        name, default = shown(option)
        told, meaning = found[name]
        assert default in ("", re.split("[:; ]", told.replace("`", ""))[0]), name
        assert meaning.startswith("command line only") is not option.key, name


def test_cheap_commands_run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main(["report", "docs/examples/reference/figures.json"]) == 0
    assert main(["sweep", "docs/examples/reference/sweep.csv"]) == 0
    assert main(["baselines", "list"]) == 0


def test_an_option_that_there_is_not_would_be_found(project):
    assert project.run("--collect-only", "--precision=fp16", "--no-such-option").ret == 4


@pytest.mark.parametrize("name", ["gate", "engines"])
def test_workflows_have_jobs_that_run_the_gate(name):
    flows = [flow for _, flow in workflows()]
    jobs = [job for flow in flows if isinstance(flow, dict) for job in jobs_of(flow)]
    (job,) = [job for key, job in jobs if key == name and isinstance(job, dict)]
    assert any("pytest" in line for line in scripts(job))


def jobs_of(flow):
    return (flow.get("jobs") or flow).items()


def test_the_run_in_the_docs_can_still_be_read(tmp_path):
    """A change of the JSON report goes with docs/examples/report.json: see docs/index.md."""
    found = ROOT / "docs/examples/report.json"
    assert main(["report", str(found), "--markdown", str(tmp_path / "x.md")]) == 0


def test_the_example_in_the_docs_is_what_the_command_writes(tmp_path):
    """The committed page of the reference report is up to date."""
    folder = ROOT / "docs/examples/reference"
    page = tmp_path / "page.html"
    assert main(["report", str(folder / "figures.json"), "--html", str(page)]) == 0
    assert text_of(page) == text_of(folder / "report.html")


def text_of(path):
    """What a page says: pictures may differ in a pixel by the version of what draws them."""
    without = re.sub(r"<(svg|style|footer).*?</\1>", "", path.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without))
