"""The `enginegate` command: what lies in the baselines, how it developed, what a sweep says."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from enginegate import __version__
from enginegate.baselines import (
    describe_history,
    diff_rows,
    list_rows,
    prune,
    read_history,
    show_rows,
)
from enginegate.cache import Store
from enginegate.config import number
from enginegate.diagnostics import (
    ELEMENT_BYTES,
    Device,
    Roofline,
    Setting,
    Traffic,
    cost_of,
    measured_device,
    read_profile,
)
from enginegate.engines import HEADER, advice, findings, get_backend, resolve
from enginegate.errors import EngineGateError, OptionError
from enginegate.files import default_cache, for_terminal
from enginegate.report import (
    CSV_COLUMNS,
    TRAFFIC,
    aligned,
    analysis_lines,
    compare_engines,
    cost_line,
    device_line,
    export_files,
    fleet_files,
    marked_lines,
    merged,
    plot_history,
    read_sweeps,
    report_files,
    roofline_rows,
)
from enginegate.serving import analyse

_BATCHES = "1,8,32,128"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, of a merge the exit status of the fleet, or 1 if something is wrong."""
    given = command_parser().parse_args(arguments)
    try:
        for line in given.run(given):
            print(for_terminal(line))
    except EngineGateError as error:
        print(for_terminal(f"enginegate: {error}"), file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the lines has enough of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return int(given.status)


def command_parser() -> argparse.ArgumentParser:
    """All commands with their arguments."""
    parser = argparse.ArgumentParser(prog="enginegate", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(status=0)
    parser.add_argument("--root", type=Path, default=Path("baselines"), help="default: baselines")
    commands = parser.add_subparsers(required=True)
    actions = commands.add_parser("baselines", help="stored measurements").add_subparsers(
        required=True
    )
    listed = actions.add_parser("list", help="a line per variant")
    listed.set_defaults(run=lambda given: aligned(list_rows(given.root)))
    show = actions.add_parser("show", help="the figures of a model")
    show.add_argument("model")
    show.set_defaults(run=lambda given: aligned(show_rows(given.root, given.model)))
    diff = actions.add_parser("diff", help="what changed since a git revision")
    diff.add_argument("revision", nargs="?", default="HEAD")
    diff.set_defaults(run=lambda given: aligned(diff_rows(given.root, given.revision)))
    remove = actions.add_parser("prune", help="remove machines, models or variants")
    for name in ("machine", "model", "variant"):
        remove.add_argument(f"--{name}", default="", help="only of this one")
    remove.add_argument("--dry-run", action="store_true", help="say what would be removed")
    remove.set_defaults(run=_prune)
    history = commands.add_parser("history", help="change points of the runs that were noted")
    history.add_argument("model")
    history.add_argument("--plot", type=Path, metavar="FILE", help="draw it on this HTML page")
    history.set_defaults(run=_history)
    sweep = commands.add_parser("sweep", help="cliffs and saturation in sweeps measured elsewhere")
    sweep.add_argument(
        "files",
        type=Path,
        nargs="+",
        help=f"CSV of {','.join(CSV_COLUMNS)} or of perf_analyzer; JSON of AIPerf or genai-perf",
    )
    sweep.set_defaults(run=_sweep)
    _add_report(commands)
    _add_merge(commands)
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
        help="what --gate-report-json wrote; the last is shown, beside those before it",
    )
    report.add_argument("--html", type=Path, help="write a page to look at")
    report.add_argument("--markdown", type=Path, help="write a pull-request comment")
    report.add_argument("--text", action="store_true", help="print it, also beside files")
    report.set_defaults(run=_report)
    export = commands.add_parser("export", help="a saved run for other programs")
    export.add_argument("file", type=Path, help="what --gate-report-json wrote")
    export.add_argument("--csv", type=Path, metavar="FILE", help="a line per batch size")
    export.add_argument("--openmetrics", type=Path, metavar="FILE", help="gauges for Prometheus")
    export.add_argument("--badge", type=Path, metavar="FILE", help="endpoint JSON for shields.io")
    export.set_defaults(run=_export)


def _add_merge(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    merge = commands.add_parser("merge", help="the reports of a fleet as one verdict")
    merge.add_argument("files", type=Path, nargs="+", help="what --gate-report-json wrote")
    merge.add_argument("--html", type=Path, help="write a page to look at")
    merge.add_argument("--markdown", type=Path, help="write a pull-request comment")
    merge.add_argument("--json", type=Path, help="write decisions, status and what is missing")
    merge.add_argument("--text", action="store_true", help="print it whole, also beside files")
    merge.set_defaults(run=_merge)


def _prune(given: argparse.Namespace) -> Iterator[str]:
    wanted = (given.machine, given.model, given.variant)
    return prune(given.root, *wanted, dry_run=given.dry_run)


def _sweep(given: argparse.Namespace) -> Iterator[str]:
    sweeps = read_sweeps(given.files)
    for engine, levels in sweeps.items():
        yield from (f"{engine}: {line}" for line in marked_lines(levels))
        yield from (f"{engine}: {line}" for line in analysis_lines(analyse(levels, None), levels))
    yield from compare_engines(sweeps)


def _doctor(_given: argparse.Namespace) -> Iterator[str]:
    yield from aligned([HEADER, *findings()])
    yield from advice()


def _report(given: argparse.Namespace) -> Iterator[str]:
    return report_files(given.files, given.html, given.markdown, given.root, text=given.text)


def _merge(given: argparse.Namespace) -> Iterator[str]:
    fleet = merged(given.files)
    given.status = int(fleet.status)
    yield from fleet_files(fleet, given.html, given.markdown, given.json, text=given.text)


def _export(given: argparse.Namespace) -> Iterator[str]:
    return export_files(given.file, given.csv, given.openmetrics, given.badge)


def _history(given: argparse.Namespace) -> Iterator[str]:
    series = read_history(given.root, given.model)
    yield from describe_history(series)
    if given.plot:
        plot_history(given.model, series, given.plot)
        yield f"drew {given.plot}"


def add_roofline(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    command = commands.add_parser("roofline", help="what a model costs and a device allows")
    add = command.add_argument
    add("model", type=Path, help="an ONNX file; its axes 0 and 1 are batch and sequence")
    add("--device-profile", type=Path, metavar="FILE", help="JSON or TOML; default: this machine")
    add("--precision", default="", help="comma-separated; default: all that the device has")
    add("--batches", default=_BATCHES, help=f"default: {_BATCHES}")
    add("--seq-len", type=int, default=32, metavar="N", help="tokens of a text (default 32)")
    add("--output", default="", help="the output that is the embedding (default: the first)")
    add("--traffic", choices=list(Traffic), default=Traffic.FUSED, help="default: fused")
    add("--threads", type=int, default=1, metavar="N", help="of this machine (default 1)")
    command.set_defaults(run=roofline_lines)


def roofline_lines(given: argparse.Namespace) -> Iterator[str]:
    """The lines that the command prints. Raises OptionError, ModelError or EngineError."""
    batches = [number("--batches", word, int) for word in given.batches.split(",")]
    cost = cost_of(given.model, given.output)
    yield cost_line(given.model.name, cost, number("--seq-len", given.seq_len, int))
    device = read_profile(given.device_profile) if given.device_profile else _here(given)
    yield device_line(device)
    traffic = Traffic(given.traffic)
    yield f"traffic: {TRAFFIC[traffic]}; elements of {_sizes(device)} bytes"
    rows = [("", "part", "limited", "ridge", *(f"batch {batch}" for batch in batches))]
    for precision in _wanted(given.precision) or device.peaks_per_s:
        device.peak_per_s(precision)
        setting = Setting(device, precision, ELEMENT_BYTES[precision], traffic, given.seq_len)
        rows += roofline_rows(Roofline(cost, setting), batches)
    yield from aligned(rows)


def _here(given: argparse.Namespace) -> Device:
    """This machine, in what its default backend builds itself."""
    name, _ = resolve("auto")
    backend = get_backend(name)
    built = [p for p in backend.offers if backend.stand_in(p) is None]
    wanted = _wanted(given.precision) or built
    engines = {str(p): (name, p) for p in built if p in wanted}
    return measured_device(Store(default_cache()), engines, number("--threads", given.threads, int))


def _wanted(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if unknown := [word for word in words if word not in ELEMENT_BYTES]:
        raise OptionError(f"--precision {unknown} is none of {', '.join(ELEMENT_BYTES)}")
    return words


def _sizes(device: Device) -> str:
    return ", ".join(f"{ELEMENT_BYTES[name]} ({name})" for name in device.peaks_per_s)
