"""Reports of whole runs: the page, the comment, the summary of a GitHub job."""

import datetime
import json
import subprocess

from tests.selftest.test_docs import clone


def test_a_run_writes_the_page_of_its_own_json(project):
    given = (
        "--gate-report-html=run.html",
        "--gate-report-markdown=run.md",
        "--gate-report-json=run.json",
    )
    assert project.judge(*given).ret == 0
    page = (project.path / "run.html").read_text()
    assert "1 engine: 1 on hold" in page
    assert "no predecessor to compare with" in page
    model = json.loads((project.path / "run.json").read_text())["results"][0]
    assert model["context"]["model_sha256"][:12] in page
    comment = (project.path / "run.md").read_text().splitlines()
    assert comment[:2] == ["<!-- pytest-enginegate -->", "### 1 engine: 1 on hold"]


def test_a_run_notes_when_it_was_and_of_which_commit(project):
    clone(project.path)
    assert project.judge("--gate-report-json=run.json", "--gate-against=HEAD").ret == 0
    origin = json.loads((project.path / "run.json").read_text())["origin"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert origin["commit"] == origin["base"] == head.stdout.strip()
    written = datetime.datetime.fromisoformat(origin["date"])
    assert written.utcoffset() == datetime.timedelta(0)
    assert written <= datetime.datetime.now(datetime.UTC)


def test_a_report_that_cannot_be_written_does_not_keep_the_others(project):
    project.write("file", "")
    result = project.judge("--gate-report-html=file/run.html", "--gate-report-markdown=run.md")
    assert result.ret == 12
    result.stdout.fnmatch_lines(["ERROR: cannot write *file*"])
    assert (project.path / "run.md").exists()


def test_a_missing_library_ends_the_run_before_it_measures(project, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    result = project.judge("--gate-report-html=run.html")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: the HTML report needs vl_convert: pip install *"])


def test_the_summary_of_a_github_step_is_appended_to(project, monkeypatch):
    summary = project.write("summary.md", "what another step said\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    project.judge()
    said = summary.read_text()
    assert said.startswith(
        "what another step said\n<!-- pytest-enginegate -->\n### 1 engine: 1 on hold\n"
    )


def test_a_summary_that_cannot_be_written_is_told(project, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path))
    result = project.judge()
    assert result.ret == 12
    result.stdout.fnmatch_lines(["ERROR: cannot write *: Is a directory; free space*"])
