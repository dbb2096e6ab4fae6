"""Texts of strangers are shown as what they are in every output, and nothing acts upon them."""

import ast
import dataclasses
import html
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import enginegate
from enginegate.cli import main
from enginegate.files import for_markdown, for_page, for_terminal, log_command, translated
from enginegate.report.output import annotations, run_markdown
from enginegate.report.render.markdown import MARKER
from enginegate.report.text import render_text, summary
from enginegate.verdicts import Verdict

from .kinds import kinds
from .reports import MACHINE, write_report

HOSTILE = (
    " \x1b[31mred\x9b0m\n::error::planted\r\n  ::stop-commands::x\n##[error]y ##vso[task.z]\u202e"
    "<script>alert(1)</script>|`x` @everyone a@b.example @10 www.evil.example https://evil.example"
    " #12 GH-7 [a](http://b) *c*\n- d\u2028\u200b\ud800\x00 ]]> &#64;"
)
CLEAN = (
    "19.2 % slower (+5.7 … +27.3 %), limit 5.0%",
    "recall@10, NDCG@10 0.5; max |delta| < 1e-3 & x_y*z `q` #tag C:\\x",
    "Größe ① 日本語 עברית ⚠️ 👩‍💻 می‌خواهم",
    "-",
    "-0.5",
    "",
)
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200b\u202e\ud800-\udfff]")
RAW_WRITER = re.compile(
    r"print|.*\.write_line|.*\.rewrite|pytest\.(fail|skip|UsageError|fail\.Exception)|.*sections\.append"
)


def commands_in(log):
    """What a CI system would take for a command."""
    found = [line for line in re.split(r"[\n\r]", log) if line.strip().startswith("::")]
    return found + re.findall(r"##\w*\[.*", log)


def read(text):
    """A Markdown text as it is shown."""
    return html.unescape(re.sub(r"\\([^a-z0-9\s])", r"\1", text))


def acted_upon(comment):
    """What GitHub would find in a comment that is shown."""
    shown = re.sub(r"</?(details|summary)>", "", comment.removeprefix(f"{MARKER}\n"))
    assert "<" not in shown
    return re.findall(r"(?<!\w)@\w+|\w@\w+\.\w+|www\.\S+|\w+://\S*|#\d+|GH-\d+", read(shown), re.I)


@pytest.mark.parametrize("text", CLEAN)
def test_a_clean_text_is_shown_as_it_is(text):
    assert for_terminal(text) == for_page(text) == text
    assert read(for_markdown(text)) == text
    assert log_command("error", "x", text.replace("%", "")).endswith(f"::{text.replace('%', '')}")


def test_every_character_of_a_hostile_text_is_still_to_be_seen():
    words = (
        "[31mred",
        "::error::planted",
        "alert(1)",
        "everyone",
        "evil.example",
        r"\x1b",
        r"\ud800",
    )
    for write in (for_page, for_terminal, lambda text: read(for_markdown(text))):
        assert [word for word in words if word not in write(HOSTILE)] == []
    assert "\n  | ::error::planted\n  |   ::stop-commands::x\n  | #\\#[error]" in for_terminal(
        HOSTILE
    )


def test_a_terminal_is_sent_no_control_and_no_command():
    for text in (HOSTILE, "::error::x", "  ::error::x", "###[x", "a\r::error::x"):
        shown = for_terminal(text)
        assert not HIDDEN.search(shown)
        assert commands_in(text)
        assert commands_in(shown) == []
        assert for_terminal(shown) == shown


def test_an_annotation_is_one_command(monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for command in annotations([(Verdict.FAIL, HOSTILE, True)], [HOSTILE]):
        assert command.startswith("::error title=enginegate")
        assert not HIDDEN.search(command)
        assert len(command.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("recall@10", "recall&#64;10"),
        ("@all", "&#64;&#8203;all"),
        ("me@x.example", "me&#64;&#8203;x.example"),
        ("#12 #a", r"\#&#8203;12 \#a"),
        ("http://a www.b", "http:&#8203;//a www&#8203;.b"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("a\n| b", r"a \| b"),
    ],
)
def test_a_comment_has_nothing_that_markdown_or_github_finds(text, written):
    assert for_markdown(text) == written


@pytest.fixture
def hostile_run(tmp_path, monkeypatch):
    """A saved run that has the hostile text in every text of every kind of result."""
    monkeypatch.chdir(tmp_path)
    schema = Path(enginegate.__file__).parent / "report/report.schema.json"
    words = {*re.findall(r'"([^"]*)"', schema.read_text()), "a" * 64, "b" * 64}
    spoil = lambda text: text if text in words else text + HOSTILE  # noqa: E731
    results = [translated(found, spoil) for found in kinds()]
    assert HOSTILE in results[0].variant.model
    machine = dataclasses.asdict(MACHINE) | {"cpu": HOSTILE}
    return results, write_report(tmp_path / "run\x1b.json", results, machine=machine)


def test_a_hostile_run_is_told_by_every_output(hostile_run, tmp_path, capsys):
    results, saved = hostile_run
    files = ("--html", "x\u202e.html", "--markdown", "x.md")
    assert main(["report", str(saved), *files, "--text"]) == 0
    said = capsys.readouterr().out
    in_file = render_text(results, [HOSTILE])
    in_summary = "\n".join(for_terminal(line.text) for line in summary(results, 120))
    for text in (said, in_file, in_summary):
        assert "::error::planted" in text
        assert not HIDDEN.search(text)
        assert commands_in(text) == []
    page = (tmp_path / "x\u202e.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert not HIDDEN.search(page)
    comment = (tmp_path / "x.md").read_text()
    assert comment == run_markdown(saved.read_text())
    assert "everyone" in comment
    assert not HIDDEN.search(comment)
    assert acted_upon(comment) == []
    tables = re.findall(r"(?:^\|.*\n)+", comment, re.MULTILINE)
    assert tables
    for table in tables:
        columns = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(columns) == 1


def test_acted_upon_finds_what_is_planted():
    assert len(acted_upon(html.escape("@a b@c.d www.x http://y #1 GH-2"))) == 6


def test_a_hostile_error_is_told_by_terminal_junit_and_annotations(project, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    raising = f"raise EngineError({HOSTILE!r})"
    project.write(
        "conftest.py",
        "import pytest\nfrom enginegate.errors import EngineError\n"
        f"@pytest.fixture(scope='session')\ndef exported():\n    {raising}\n",
    )
    run = project.run("--precision=fp32", "--gate-backend=openvino", "--junitxml=junit.xml", "-rA")
    run.assert_outcomes(errors=4)
    for text in (run.stdout.str(), junit_texts(project.path / "junit.xml")):
        assert "::error::planted" in text
        assert r"\x1b[31mred" in text
        assert not HIDDEN.search(text)
        assert commands_in(text) == []


def junit_texts(path):
    elements = ElementTree.parse(path).iter()  # noqa: S314
    return "\n".join(text for e in elements for text in (e.text or "", *e.attrib.values()))


def test_a_hostile_option_is_one_clean_usage_error(project):
    said = project.run(
        "--precision=fp32", f"--gate-model={HOSTILE[:60]}".replace("\0", "")
    ).stderr.str()
    assert "unknown model" in said
    assert not HIDDEN.search(said)
    assert commands_in(said) == []


def raw_writes(source):
    """Calls that write what has not passed an outlet."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and RAW_WRITER.fullmatch(ast.unparse(call.func)):
            given = ast.unparse(call.args[0])
            if not re.match(r"(for_terminal|\([^,]+, for_terminal)\(|'[^']*'$|command$", given):
                yield ast.unparse(call)


def test_whatever_writes_passes_an_outlet():
    package = Path(enginegate.__file__).parent
    for name in ("plugin.py", "gate.py", "cli.py", "fixtures.py"):
        assert list(raw_writes((package / name).read_text())) == []
    rest = [path for path in package.rglob("*.py") if path.parent != package]
    assert [p for p in rest if re.search(r"\bprint\(|write_line\(", p.read_text())] == []


def test_a_raw_write_is_found():
    assert len(list(raw_writes("print(x)\nreport.sections.append(('log', x))"))) == 2
    assert list(raw_writes("pytest.fail(text, pytrace=False)")) == [
        "pytest.fail(text, pytrace=False)"
    ]
    assert list(raw_writes("reporter.write_line(for_terminal(x))")) == []
