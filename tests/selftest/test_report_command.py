"""Saved runs rendered without running anything; what is no report is one clear error."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from enginegate.cli import main
from enginegate.verdicts import Judgement, Verdict

from .reports import ORIGIN, accuracy, renamed, report, result, run, speed, write_report

HOSTILE = "<script>alert(1)</script>|`x` @everyone [a](http://b) *c*"


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_report(tmp_path / "run.json")


def render(saved, *arguments):
    assert main(["report", str(saved), *arguments]) == 0


def test_the_page_says_what_to_do_and_why(saved, tmp_path):
    render(saved, "--html", "run.html")
    page = (tmp_path / "run.html").read_text()
    assert "5 engines: 1 may ship, 2 on hold and 2 blocked" in page
    for reason in (
        "embeddings within their limits",
        "not exactly what was requested ran",
        "its embeddings are wrong",
        "slower than its baseline",
        "the measurement could not decide",
    ):
        assert reason in page
    assert len(page) < 3e6


def test_the_page_loads_nothing_and_runs_nothing(saved, tmp_path):
    render(saved, "--html", "run.html")
    page = (tmp_path / "run.html").read_text()
    assert "<script" not in page
    assert "src=" not in page
    links = [part.partition('"')[0] for part in page.split('href="')[1:]]
    assert all(link.startswith("#") for link in links)


def test_the_comment_has_changed_rows_only_the_rest_is_folded(saved, tmp_path):
    render(saved, "--markdown", "run.md")
    comment = (tmp_path / "run.md").read_text()
    shown = comment.partition("<details>")[0]
    rows = [line.split(" | ")[0] for line in shown.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["| small bf16", "| small int8", "| other fp32", "| other bf16"]
    assert "As before, and may ship: small fp32." in shown
    assert comment.count("<details>") == comment.count("</details>") == 2


def test_a_comment_of_a_run_without_changes_says_so(tmp_path):
    saved = write_report(tmp_path / "run.json", [result("fp32")])
    render(saved, "--markdown", str(tmp_path / "run.md"))
    marker, headline, *rest = (tmp_path / "run.md").read_text().splitlines()
    assert (marker, headline) == ("<!-- pytest-enginegate -->", "### 1 engine: 1 may ship")
    assert rest[-1] == "As before, and may ship: small fp32."
    assert not any(line.startswith("|") for line in rest)


def rendered(comment):
    """The elements of a comment as a CommonMark renderer with tables makes them."""
    from markdown_it import MarkdownIt

    page = MarkdownIt("commonmark").enable("table").render(comment)
    return ElementTree.fromstring(f"<body>{page}</body>")  # noqa: S314 - of our own making


def ten():
    """Ten engines of four models, of each kind of decision some."""
    others = [renamed([found], f"{found.variant.model}-with-a-longer-name") for found in run()]
    return [*run(), *(found for (found,) in others)]


def test_a_comment_is_rendered_as_one_heading_one_table_and_folded_parts(tmp_path):
    saved = write_report(tmp_path / "run.json", origin=ORIGIN)
    render(saved, "--markdown", str(tmp_path / "run.md"))
    body = rendered((tmp_path / "run.md").read_text())
    assert [found.text for found in body.iter("h3")] == [
        "5 engines: 1 may ship, 2 on hold and 2 blocked"
    ]
    (table,) = body.iter("table")
    assert {len(row) for row in table.iter("tr")} == {6}
    assert next(table.iter("th")).text == "engine"
    assert len(list(body.iter("details"))) == 2
    assert "pytest-enginegate -->" not in "".join(body.itertext())  # the marker is not seen
    assert [link.get("href") for link in body.iter("a")] == [
        f"{ORIGIN['commits_url']}{ORIGIN[name]}" for name in ("commit", "base")
    ]


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)//commit/", "https://x.org/a>)[b](https://y.org/commit/", ""]
)
def test_an_address_that_is_none_of_a_commit_is_no_link(tmp_path, address):
    saved = write_report(tmp_path / "run.json", origin={**ORIGIN, "commits_url": address})
    render(saved, "--markdown", str(tmp_path / "run.md"))
    body = rendered((tmp_path / "run.md").read_text())
    assert not list(body.iter("a"))
    assert "c0ffee0000" in [found.text for found in body.iter("code")]


def test_a_comment_on_ten_engines_is_short(tmp_path):
    results = ten()
    wrong = accuracy(0.8, Verdict.FAIL, tuple(f"{'too far ' * 9}{n}" for n in range(9)))
    results[2] = replace(results[2], accuracy=wrong)
    saved = write_report(tmp_path / "run.json", results, origin=ORIGIN)
    render(saved, "--markdown", str(tmp_path / "run.md"))
    comment = (tmp_path / "run.md").read_bytes()
    assert comment.startswith(b"<!-- pytest-enginegate -->\n### 10 engines: ")
    assert len(comment) < 5_000
    assert b"No room here, but in the reports: " in comment


def test_a_comment_is_never_longer_than_github_takes(tmp_path):
    many = [found for n in range(90) for found in renamed(run(), f"model-{n}-{'x' * 200}")]
    saved = write_report(tmp_path / "run.json", many)
    render(saved, "--markdown", str(tmp_path / "run.md"))
    comment = (tmp_path / "run.md").read_text()
    assert len(comment) < 65_536
    assert "\n\nNo room here, but in the reports: what changed, " in comment
    assert comment.count("<details>") == comment.count("</details>")


def test_text_is_printed_where_no_file_is_asked_for(saved, capsys):
    render(saved)
    said = capsys.readouterr().out
    assert "other fp32: block: slower than its baseline" in said
    assert "19.2 % slower" in said


def test_hostile_text_stays_text(tmp_path):
    reasons = Judgement(Verdict.REGRESSED, (HOSTILE,))
    spoiled = renamed([*run(), result("fp16", speeds=(speed(1, judgement=reasons),))], HOSTILE)
    saved = write_report(tmp_path / "run.json", spoiled)
    render(saved, "--html", str(tmp_path / "x.html"), "--markdown", str(tmp_path / "x.md"))
    page, comment = ((tmp_path / name).read_text() for name in ("x.html", "x.md"))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in comment
    assert "@everyone" not in comment
    assert "](http" not in comment


def test_fields_that_a_run_lacks_are_left_out(tmp_path):
    bare = result("fp32", accuracy=None, speeds=())
    saved = write_report(tmp_path / "run.json", [bare])
    render(saved, "--html", str(tmp_path / "x.html"))
    assert "its embeddings were not compared" in (tmp_path / "x.html").read_text()


def test_a_run_without_results_is_said_to_have_judged_nothing(tmp_path, capsys):
    render(write_report(tmp_path / "run.json", []), "--html", str(tmp_path / "x.html"), "--text")
    assert capsys.readouterr().out.splitlines()[1] == "Nothing was judged"


def test_numbers_that_json_cannot_say_are_dashes(tmp_path, capsys):
    whole = report([result("fp32", accuracy=accuracy())])
    for found in whole["results"][0]["speeds"]:
        found["change"] |= {"high": None, "visible": None}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(whole))
    render(path)
    said = capsys.readouterr().out
    assert "too noisy to tell" in said
    assert not re.search(r"\b(inf|nan)\b", said)


def test_characters_that_no_page_can_hold_are_shown_as_escapes(tmp_path):
    saved = write_report(tmp_path / "run.json", renamed(run(), "a\x00b\ud800c"))
    render(saved, "--html", str(tmp_path / "x.html"), "--markdown", str(tmp_path / "x.md"))
    assert r"a\x00b\ud800c" in (tmp_path / "x.html").read_text()
    assert r"a\\x00b\\ud800c" in (tmp_path / "x.md").read_text()


def test_latencies_that_are_not_known_are_left_out(tmp_path):
    whole = report()
    for found in whole["results"]:
        for level in (found["load"] or {"levels": []})["levels"]:
            level["latency"] = dict.fromkeys(level["latency"])
    path = tmp_path / "run.json"
    path.write_text(json.dumps(whole))
    render(path, "--html", str(tmp_path / "x.html"))
    assert not re.search(r"\bnan\b", (tmp_path / "x.html").read_text(), re.IGNORECASE)


def spoiled_result(**other):
    whole = report()
    whole["results"][0] |= other
    return whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the report"),
        ("no json", "is not JSON"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[1]", "is not a report: list instead of an object"),
        ("{}", "is not a report of a run: give a file that --gate-report-json wrote"),
        ({"schema": 99}, "has schema 99, this version reads"),
        ({"schema": 1}, "has schema 1, of an older version"),
        ({**report(), "results": "x"}, "is damaged at results: 'x' is not of type 'array'"),
        (spoiled_result(size_bytes=-1), "is damaged at results/0/size_bytes"),
        (spoiled_result(speeds=[{}]), "is damaged at results/0/speeds/0"),
    ],
)
def test_what_is_no_report_is_one_clear_error(tmp_path, capsys, content, message):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert main(["report", str(path), "--html", str(tmp_path / "x.html")]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "x.html").exists()


def test_a_file_that_cannot_be_written_does_not_keep_the_others(saved, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    given = ["--html", "file/run.html", "--markdown", "run.md"]
    assert main(["report", str(saved), *given]) == 1
    assert "cannot write file/run.html: " in capsys.readouterr().err
    assert (tmp_path / "run.md").read_text().startswith("<!-- pytest-enginegate -->\n### 5 engines")


def test_a_missing_library_is_named_with_what_installs_it(saved, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    assert main(["report", str(saved), "--html", "run.html", "--markdown", "run.md"]) == 1
    said = capsys.readouterr().err
    assert "the HTML report needs vl_convert: pip install 'pytest-enginegate[report]'" in said


def test_a_reader_that_has_enough_sees_no_traceback(saved):
    program = "import sys; from enginegate.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "report", str(saved)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.close()
        assert not running.stderr.read()
