"""Findings as annotations where the run is a GitHub Actions job."""

import os
from collections.abc import Iterable, Iterator

from enginegate.verdicts import Verdict

_SILENT = (Verdict.PASS, Verdict.IMPROVED, Verdict.NOT_MEASURED)


def annotations(
    notices: Iterable[tuple[Verdict, str, bool]], problems: Iterable[str]
) -> Iterator[str]:
    """Workflow commands: an error for what failed, a warning for what is to be known."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    for verdict, text, failed in notices:
        if failed or verdict not in _SILENT:
            yield _command("error" if failed else "warning", f"enginegate: {verdict}", text)
    yield from (_command("error", "enginegate", problem) for problem in problems)


def _command(level: str, title: str, text: str) -> str:
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::{level} title={title}::{escaped}"
