"""The `enginegate` command: what lies in the baselines, how it developed, what a sweep says."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from enginegate.cliffs import analyse
from enginegate.cost.command import add_roofline
from enginegate.doctor import HEADER, advice, findings
from enginegate.errors import EngineGateError
from enginegate.history import describe_history, read_history
from enginegate.library import diff_rows, list_rows, prune, show_rows
from enginegate.render import aligned
from enginegate.report.output import report_files
from enginegate.sweep_text import CSV_COLUMNS, analysis_lines, compare_engines, read_sweep_csv


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 1 with one message if something is wrong."""
    given = command_parser().parse_args(arguments)
    try:
        for line in given.run(given):
            print(line)
    except EngineGateError as error:
        print(f"enginegate: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the lines has enough of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def command_parser() -> argparse.ArgumentParser:
    """All commands with their arguments."""
    parser = argparse.ArgumentParser(prog="enginegate", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("baselines"), help="default: baselines")
    commands = parser.add_subparsers(required=True)
    actions = commands.add_parser("baselines", help="stored measurements").add_subparsers(
        required=True
    )
    actions.add_parser("list", help="a line per variant").set_defaults(run=_list)
    show = actions.add_parser("show", help="the figures of a model")
    show.add_argument("model")
    show.set_defaults(run=_show)
    diff = actions.add_parser("diff", help="what changed since a git revision")
    diff.add_argument("revision", nargs="?", default="HEAD")
    diff.set_defaults(run=_diff)
    remove = actions.add_parser("prune", help="remove machines, models or variants")
    for name in ("machine", "model", "variant"):
        remove.add_argument(f"--{name}", default="", help="only of this one")
    remove.add_argument("--dry-run", action="store_true", help="say what would be removed")
    remove.set_defaults(run=_prune)
    history = commands.add_parser("history", help="change points of what --history noted")
    history.add_argument("model")
    history.add_argument("--plot", type=Path, help="draw it into this .png or .svg")
    history.set_defaults(run=_history)
    sweep = commands.add_parser("sweep", help="cliffs and saturation in a CSV file of sweeps")
    sweep.add_argument("file", type=Path, help=f"columns {','.join(CSV_COLUMNS)}")
    sweep.set_defaults(run=_sweep)
    _add_report(commands)
    add_roofline(commands)
    doctor = commands.add_parser("doctor", help="what is installed, and what to install")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    report = commands.add_parser("report", help="render saved runs without running anything")
    report.add_argument(
        "files",
        type=Path,
        nargs="+",
        help="what --report-json wrote; the last is shown, beside those before it",
    )
    report.add_argument("--html", type=Path, help="write a page to look at")
    report.add_argument("--markdown", type=Path, help="write a pull-request comment")
    report.add_argument("--text", action="store_true", help="print it, also beside files")
    report.set_defaults(run=_report)


def _list(given: argparse.Namespace) -> Iterator[str]:
    return aligned(list_rows(given.root))


def _show(given: argparse.Namespace) -> Iterator[str]:
    return aligned(show_rows(given.root, given.model))


def _diff(given: argparse.Namespace) -> Iterator[str]:
    return aligned(diff_rows(given.root, given.revision))


def _prune(given: argparse.Namespace) -> Iterator[str]:
    wanted = (given.machine, given.model, given.variant)
    return prune(given.root, *wanted, dry_run=given.dry_run)


def _sweep(given: argparse.Namespace) -> Iterator[str]:
    sweeps = read_sweep_csv(given.file)
    for engine, levels in sweeps.items():
        yield from (f"{engine}: {line}" for line in analysis_lines(analyse(levels, None)))
    yield from compare_engines(sweeps)


def _doctor(_given: argparse.Namespace) -> Iterator[str]:
    yield from aligned([HEADER, *(finding.row for finding in findings())])
    yield from advice()


def _report(given: argparse.Namespace) -> Iterator[str]:
    return report_files(given.files, given.html, given.markdown, given.root, text=given.text)


def _history(given: argparse.Namespace) -> Iterator[str]:
    series = read_history(given.root, given.model)
    yield from describe_history(series)
    if given.plot:
        from enginegate.plots import plot_history

        plot_history(series, given.plot)
        yield f"drew {given.plot}"
