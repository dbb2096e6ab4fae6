"""Findings as annotations where the run is a GitHub Actions job."""

import os
from collections.abc import Iterable, Iterator

from enginegate.report.outlets import log_command
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
            yield log_command("error" if failed else "warning", f"enginegate: {verdict}", text)
    yield from (log_command("error", "enginegate", problem) for problem in problems)
