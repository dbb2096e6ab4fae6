"""From JSON reports to the files that are asked for, one path for all; and to a GitHub job."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from enginegate.baselines import Series
from enginegate.errors import EngineGateError, ReportError
from enginegate.files import log_command, reading, write_atomic, writing
from enginegate.report.compare import Source, comparison
from enginegate.report.compose import compose, compose_history
from enginegate.report.figures import MARK, Figures, compose_figures, parse_figures
from enginegate.report.fleet import Fleet, compose_fleet, fleet_json
from enginegate.report.page import Page
from enginegate.report.render.html import render_html
from enginegate.report.render.markdown import render_markdown
from enginegate.report.saved_run import decode_run, parse_run, read_report, shown_commit
from enginegate.report.text import render_page_text
from enginegate.verdicts import Verdict

SUMMARY = "GITHUB_STEP_SUMMARY"
_SILENT = (Verdict.PASS, Verdict.IMPROVED, Verdict.IDENTICAL, Verdict.NOT_MEASURED)
_THIS_RUN = "the report of this run"


def run_html(report: str, baselines: Path) -> str:
    """The page of a run, from the text of its JSON report. Raises ReportError.

    `baselines` is the folder that holds the history.
    """
    return render_html(compose(parse_run(report, "this run", _THIS_RUN), baselines))


def run_markdown(report: str) -> str:
    """The pull-request comment of a run, from the text of its JSON report. Raises ReportError."""
    return render_markdown(compose(parse_run(report, "this run", _THIS_RUN), None))


def read(path: Path) -> Source:
    """A saved run, or published figures. Raises ReportError."""
    whole = read_report(path)
    return parse_figures(whole, path) if MARK in whole else decode_run(whole, path.stem, str(path))


def report_files(
    files: Sequence[Path], html: Path | None, markdown: Path | None, baselines: Path, *, text: bool
) -> Iterator[str]:
    """Render the last of the files beside the others; the lines to print.

    Raises ReportError, once all that can be written is.
    """
    sources = named_apart(files, [read(path) for path in files])
    with _showing(files[-1]):
        page = _page(sources, baselines)
    said = render_page_text(page) if text or not (html or markdown) else ()
    return _written(page, {html: render_html, markdown: render_markdown}, said)


def fleet_files(
    fleet: Fleet, html: Path | None, markdown: Path | None, as_json: Path | None, *, text: bool
) -> Iterator[str]:
    """Render a fleet; the lines to print: what matters most, or with `text` all of it.

    Raises ReportError, once all that can be written is.
    """
    page = compose_fleet(fleet)
    whole = text or not (html or markdown or as_json)
    most = filter(None, (page.headline, page.warning, *page.said))
    makers = {html: render_html, markdown: render_markdown, as_json: lambda _: fleet_json(fleet)}
    return _written(page, makers, render_page_text(page) if whole else most)


def _written(
    page: Page, makers: Mapping[Path | None, Callable[[Page], str]], said: Iterable[str]
) -> Iterator[str]:
    """Write a page in each form that has a path; the lines to print, those that are `said` last.

    Raises ReportError, once all that can be written is.
    """
    problems = []
    for path, render in makers.items():
        if path:
            problem = _problem(path, render, page)
            problems += [problem] if problem else []
            yield from () if problem else (f"wrote {path}",)
    yield from said
    if problems:
        raise ReportError("; ".join(problems))


def named_apart(files: Sequence[Path], sources: Sequence[Source]) -> list[Source]:
    """The sources, those of one name told apart by their commit, else by their folder or path."""
    ways = (
        [source.name for source in sources],
        [_with_commit(source) for source in sources],
        [f"{path.absolute().parent.name}/{path.name}" for path in files],
    )
    names = []
    for number, path in enumerate(files):
        alone = (way[number] for way in ways if way.count(way[number]) == 1)
        names.append(next(alone, str(path)))
    return [replace(source, name=name) for source, name in zip(sources, names, strict=True)]


def _with_commit(source: Source) -> str:
    commit = source.whole.get("origin", {}).get("commit", "")
    return f"{source.name} ({shown_commit(commit)})" if commit else source.name


def _showing(path: Path) -> AbstractContextManager[None]:
    """Turn figures that nothing can be computed with into one error."""
    way_out = "restore the report, or run again; report a fault of enginegate if it is whole"
    return reading(path, "the page of", way_out, ReportError)


def _page(sources: Sequence[Source], baselines: Path) -> Page:
    *older, newest = sources
    page = compose_figures(newest) if isinstance(newest, Figures) else compose(newest, baselines)
    compared = comparison(newest, older)
    return page if compared.is_empty else replace(page, sections=(compared, *page.sections))


def plot_history(model: str, series: Sequence[Series], path: Path) -> None:
    """Write the page of a model's history. Raises ReportError."""
    if path.suffix != ".html":
        raise ReportError(f"a history is drawn on an HTML page: name it {path.stem}.html")
    if problem := _problem(path, render_html, compose_history(model, series)):
        raise ReportError(problem)


def _problem(path: Path, render: Callable[[Page], str], page: Page) -> str:
    """Write a rendered page; what kept it from being written, empty if nothing did."""
    try:
        with _showing(path):
            text = render(page)
        write_atomic(path, text)
    except EngineGateError as error:
        return str(error)
    return ""


def append_summary(make: Callable[[], str]) -> None:
    """Add to the summary of a GitHub job step, where there is one. Raises FileError."""
    if path := os.environ.get(SUMMARY):
        said = make().encode(errors="backslashreplace")
        with writing(Path(path)), Path(path).open("ab") as stream:
            stream.write(said + b"\n")


def annotations(
    notices: Iterable[tuple[Verdict, str, bool]], problems: Iterable[str]
) -> Iterator[str]:
    """Workflow commands: an error for what failed, a warning for what is to be known."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    for verdict, text, failed in notices:
        if failed or verdict not in _SILENT:
            yield log_command("error" if failed else "warning", f"enginegate: {verdict}", text)
    yield from (log_command("error", "enginegate", problem) for problem in problems)
