"""What users see, kept as files: any change of it shows as a diff.

To renew the files after a change that is wanted, and to look at what `git diff` says of them:

    ENGINEGATE_RENEW_GOLDEN=1 pytest tests/selftest/test_golden.py
"""

import contextlib
import dataclasses
import difflib
import functools
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enginegate.baselines.calibration import Calibration, calibration_lines
from enginegate.baselines.store import Baselines, Update
from enginegate.cli import command_parser, main
from enginegate.config.options import Options
from enginegate.config.serving import Deployment
from enginegate.gate import ERROR, Gate
from enginegate.report.compose import compose
from enginegate.report.output import annotations, report_files, run_markdown
from enginegate.report.render.html import render_html
from enginegate.report.render.markdown import render_markdown
from enginegate.report.saved_run import parse_run, render_json
from enginegate.report.table import spent_line
from enginegate.report.text import aligned, render_page_text, render_text, summary
from enginegate.session.finish import RunOutput
from enginegate.session.recorder import Recorder
from enginegate.speed.records import Measured
from enginegate.variants import Precision
from enginegate.verdicts import GateLevel, Judgement, Refresh, Verdict, exit_status

from .kinds import kinds
from .reports import (
    CONDITION,
    LOGS,
    MACHINE,
    accuracy,
    context,
    level,
    load,
    renamed,
    result,
    speed,
)
from .test_report_sections import COSTS, ROOFLINE
from .test_roofline import PROFILE

GOLDEN = Path(__file__).parent / "data/golden"
SWEEP = Path(__file__).parent / "data/reference_sweep.csv"
EXAMPLES = Path(__file__).parents[2] / "docs/examples"
EXAMPLE, FIGURES = EXAMPLES / "report.json", EXAMPLES / "reference/figures.json"
RENEW = "ENGINEGATE_RENEW_GOLDEN"
IDENTITY = ("-c", "user.name=tester", "-c", "user.email=tester@example.com")

# All that is hidden from the comparison, and why:
MASKS: tuple[tuple[str, Any], ...] = (
    # the widths of texts in a drawing depend on the fonts of the machine
    (r"<svg\b.*?</svg>", "<svg>a drawing</svg>"),
    # versions of what is installed here, in reports and baselines
    (r'"versions": \{[^}]*\}', '"versions": {\n    "python": "3.11.0"\n  }'),
    # the version of this package, in the foot of a page
    (r"(Made by pytest-enginegate) \S+", r"\1 VERSION"),
    # the day on which a baseline was saved
    (r'("date": )"\d{4}-\d\d-\d\d"', r'\1"2026-01-02"'),
    # the last digits, which differ between processors
    (r"\b\d+\.\d{13,}(e-?\d+)?", lambda found: f"{float(found[0]):.12g}"),
)


def masked(text):
    for pattern, instead in MASKS:
        text = re.sub(pattern, instead, text, flags=re.DOTALL)
    return text


def compare(path, text):
    """Fail with the difference to the golden file; write it instead where that is asked for."""
    now = masked(text)
    if os.environ.get(RENEW):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(now.encode())
        return
    then = path.read_bytes().decode() if path.exists() else ""
    if now != then:
        pytest.fail(f"{path.name} is another now:\n{difference(then, now)}", pytrace=False)


def difference(then, now):
    before, after = (text.splitlines(keepends=True) for text in (then, now))
    return "".join(difflib.unified_diff(before, after, "golden", "now"))


# Saved runs


@functools.cache
def results():
    return tuple(kinds())


def as_json(found):
    """The JSON report of a run, in which no version depends on this machine."""
    return masked(render_json(found, MACHINE, CONDITION, 7, {"p50": 0.05, "p99": 0.1}, {}, {}))


def page(found):
    """The page of a run; costs and rooflines are put in late, for they are shortened ones."""
    run = parse_run(as_json(found), "run", "here")
    late = {"costs": COSTS, "rooflines": {"small": ROOFLINE}}
    return compose(dataclasses.replace(run, whole={**run.whole, **late}), None)


@functools.cache
def example():
    return parse_run(EXAMPLE.read_text(encoding="utf-8"), "report", "here")


def lines(found):
    return "".join(f"{line}\n" for line in found)


# The reports of a run


def told(found, columns=120):
    return [line.text for line in summary(found, columns)]


def kinds_summary(_place):
    return lines([*told(results()), spent_line(61.3, 12.2)])


def text_report(_place):
    return render_text(results(), ["small: what it costs"]) + "\n"


def json_report(_place):
    """Of a few engines that have every part between them."""
    telling = {
        "words-openvino-fp32",
        "words-openvino-int8",
        "speeds-openvino-bf16",
        "speeds-openvino-fp16",
        "layers-openvino-int8",
        "gpu-openvino-fp16",
        "served-openvino-fp32-served",
        "small-openvino-bf16-served",
    }
    return as_json([found for found in results() if found.variant.id in telling])


def page_text(_place):
    return lines(render_page_text(page(results())))


def example_markdown(_place):
    return run_markdown(EXAMPLE.read_text(encoding="utf-8"))


def figures_html(place):
    return written(place, [FIGURES], "--html")


def figures_markdown(place):
    return written(place, [FIGURES], "--markdown")


def written(place, files, option):
    path = place / "report"
    command("report", *files, option, path)
    return path.read_text(encoding="utf-8")


def compared(place):
    """Runs beside each other: an older one, a slower one, published figures."""
    old = [
        result("fp32"),
        result("bf16", context=context(against="main")),
        *renamed(kinds()[:5], "x"),
    ]
    slower = speed(1, log_ratios={"p50": [log + 0.2 for log in LOGS]})
    new = [result("fp32", speeds=(slower,)), result("bf16")]
    for name, saved in (("old", old), ("new", new)):
        Path(f"{name}.json").write_text(as_json(saved), encoding="utf-8")
    found = report_files(
        [FIGURES, Path("old.json"), Path("new.json")], None, None, place, text=True
    )
    return lines(found)


# What a run does with its verdicts


def options(**changed):
    """Options of a run that judges every precision of two models."""
    given: dict[str, Any] = {field.name: None for field in dataclasses.fields(Options)}
    given |= {
        "precisions": tuple(Precision),
        "models": ("small", "other"),
        "models_narrowed": False,
    }
    given |= {"specs": {}, "batches": (1, 8), "against": "", "against_python": ""}
    given |= {"elsewhere": frozenset()}
    given |= {
        "gate": GateLevel.NORMAL,
        "refresh": Refresh.NONE,
        "rootpath": Path(),
        "selection": (),
    }
    return Options(**(given | changed))


def exits(_place):
    """The exit status of every reason, of every pair of reasons, and of none."""
    reasons = [*map(str, Verdict), ERROR, ""]
    alone = [()] + [(reason,) for reason in reasons]
    pairs = itertools.combinations(reasons, 2)
    return lines(f"{exit_status(f)}  {' + '.join(map(repr, f))}" for f in (*alone, *pairs))


def failing(_place):
    """What fails a test of speed, by verdict and what the options say."""
    ways: dict[str, dict[str, Any]] = {
        "": {},
        "require": {"require_baseline": True},
        "refresh": {"refresh": Refresh.ALL},
        "refresh, require": {"refresh": Refresh.MISSING, "require_baseline": True},
        "refresh, accept": {"refresh": Refresh.ALL, "accept_regressions": True},
        "accept": {"accept_regressions": True},
    }
    rows = [("gate", "options", *Verdict)]
    for gate, (name, way) in itertools.product(GateLevel, ways.items()):
        asked = options(gate=gate, **way)
        fails = ("fails" if asked.fails(verdict) else "-" for verdict in Verdict)
        rows.append((gate, name, *fails))
    return lines(aligned(rows))


def gates(_place):
    """The outcome, message and properties of every test of every result."""
    return lines(line for found in results() for line in outcomes(found, []))


def outcomes(found, notices):
    node: Any = SimpleNamespace(user_properties=[], add_report_section=lambda *_: None)
    session: Any = SimpleNamespace(options=options(), recorder=Recorder(notices=notices))
    gate = Gate(node, session, found)
    yield f"# {found.variant.id}"
    yield outcome("embeddings", gate.check_embeddings)
    yield outcome("invariance", gate.check_invariance)
    for batch in by_batch(found):
        samples: Any = SimpleNamespace(batch=batch)
        measured = Measured(samples, by_batch(found)[batch])
        yield outcome("speed", functools.partial(gate.check_speed, measured))
    if found.load:
        yield outcome("load", functools.partial(gate.check_load, found))
    yield from (f"  {name} = {value}" for name, value in node.user_properties)


def by_batch(found):
    return {speed.batch: speed for speed in found.speeds}


def outcome(name, check):
    try:
        check()
    except (pytest.fail.Exception, pytest.skip.Exception) as end:
        return f"{name}: {type(end).__name__}: {end.msg}"
    return f"{name}: passed"


def github(_place):
    notices: list[Any] = []
    for found in results():
        list(outcomes(found, notices))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GITHUB_ACTIONS", "true")
        return lines(annotations(notices, ["cannot write x:\n100 % full"]))


# The baselines


@functools.cache
def stored_results():
    """What the baselines were written from."""
    deployed = context(deployment="max batch 32")
    served = result("fp32", load=load(), context=deployed, speeds=(speed(1), speed(16)))
    lost = result("fp16", "other", speeds=(speed(1), speed(8), speed(32)))
    others = [result(precision, "other") for precision in ("fp32", "bf16", "int8")]
    return [result("fp32"), result("int8"), served, *others, lost]


def results_now():
    """What is judged against them."""
    served = load(tuple(level(n, 900.0 * n) for n in (1, 2)))
    wrong = accuracy(0.8, Verdict.FAIL, ("cosine_worst 0.8 < 0.9",))
    elsewhere = dataclasses.replace(context(), threads=4)
    return [
        result("fp32"),
        result("int8", accuracy=wrong, speeds=()),
        result("fp32", load=served, context=context(deployment="max batch 8"), speeds=(speed(1),)),
        result("fp32", "other", speeds=(judged(1, 1.3, Verdict.REGRESSED), speed(8))),
        result("bf16", "other", speeds=(judged(1, 0.8, Verdict.IMPROVED), speed(8))),
        dataclasses.replace(result("int8", "other", context=elsewhere), executed={"i8": 3}),
        result("best", "other", speeds=(speed(1, disturbed=("throttled",)),)),
        result("bf16", "new", speeds=(judged(1, 1.0, Verdict.INVALID), speed(8))),
        result("fp32", "new"),
    ]


def judged(batch, ratio, verdict):
    return speed(batch, ratio, judgement=Judgement(verdict, ("the reason",)))


def save(baselines, found):
    """Store results as of a fixed day."""
    for name in dict.fromkeys(x.variant.model for x in found):
        members = [x for x in found if x.variant.model == name]
        path = baselines.save(name, [Update(x, replace=False) for x in members])
        path.write_text(masked(path.read_text(encoding="utf-8")), encoding="utf-8")


def stored():
    baselines = Baselines(Path("baselines"), MACHINE)
    save(baselines, stored_results())
    return baselines


def baseline_file(_place):
    baselines = stored()
    save(baselines, [result("fp32")])  # one session more
    wide = load(deployment=Deployment(8, (4, 8), 500, 2, 4))
    save(baselines, [result("bf16", load=wide, speeds=(speed(1),))])
    return baselines.path("small").read_text(encoding="utf-8")


def kept_files(_place):
    """`enginegate baselines` and what it says of changes since a revision."""
    baselines = stored()
    for arguments in (("init", "-q"), ("add", "."), ("commit", "-qm", "baselines")):
        subprocess.run(["git", *IDENTITY, *arguments], check=True, capture_output=True)
    save(baselines, [result("fp32", speeds=(speed(1, log_ratios={"p50": (-0.3, -0.31)}),))])
    save(baselines, [result("best"), *renamed([result("fp32")], "new")])
    asked = (("list",), ("show", "small"), ("show", "other"), ("show", "none"), ("diff",))
    said = [command("baselines", *words) for words in asked]
    said.append(command("baselines", "prune"))
    said.append(command("baselines", "prune", "--model", "small"))
    return "\n".join(said)


def history(_place):
    note = {"variant": "openvino-fp32", "batch": 8, "p50_s": 0.01, "reference": "r"}
    logs = [-0.5, -0.51, -0.5, -0.49, -0.5, -0.3, -0.31, -0.3, -0.29, -0.3]
    notes = [
        {"date": f"2026-01-{day:02}T00:00:00+00:00", "commit": f"c{day}", "log_ratio": log, **note}
        for day, log in enumerate(logs, start=1)
    ]
    folder = Path("baselines/history", MACHINE.id)
    folder.mkdir(parents=True)
    (folder / "small.jsonl").write_text(lines(map(json.dumps, notes)))
    return command("history", "small") + command("history", "none")


def endings(_place):
    """The lines that a run adds below its table, by what it was asked for."""
    asked: dict[str, dict[str, Any]] = {
        "a run": {},
        "strict": {"gate": GateLevel.STRICT, "require_baseline": True, "serve": True},
        "off": {"gate": GateLevel.OFF},
        "narrowed": {},
        "interrupted": {"refresh": Refresh.ALL},
        "dry run": {"refresh": Refresh.ALL, "dry_run": True},
        "missing": {"refresh": Refresh.MISSING},
        "refresh": {"refresh": Refresh.ALL},
        "accept": {"refresh": Refresh.ALL, "accept_regressions": True},
        "damaged": {},
    }
    return "\n".join(ending(name, **changed) for name, changed in asked.items())


def ending(name, **changed):
    shutil.rmtree("baselines", ignore_errors=True)
    baselines = stored()
    if name == "damaged":
        baselines.path("small").write_text("<<<<<<< ours\n")
    end = Recorder()
    output = RunOutput(options(**changed), baselines, end)
    found = results_now()
    output.look_for_missing(found, "-k" if name == "narrowed" else "")
    output.settle_baselines(found, lambda _: [], interrupted=name == "interrupted")
    problems = [f"ERROR: {problem}" for problem in end.problems]
    reasons = [why for _, why in end.failures]
    failures = f"fails by {reasons}, exit status {exit_status(reasons)}"
    return lines([f"# {name}", *end.lines, *problems, failures])


def calibration(_place):
    found = Calibration("2026-01-02", 24, 0.001, 0.012, 0.003, 0.0712)
    blind = dataclasses.replace(found, visible=None)
    return lines(calibration_lines({"small-openvino-fp32, batch 1": found, "batch 8": blind}))


# The commands


def command(*arguments):
    """What `enginegate` says, its status last."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main([str(argument) for argument in arguments])
    return f"{said.getvalue()}exit status {status}\n"


def roofline(place):
    from .tiny import write_tiny_onnx

    write_tiny_onnx(Path("tiny.onnx"))
    Path("device.json").write_text(json.dumps(PROFILE))
    return command("roofline", "tiny.onnx", "--device-profile", "device.json")


def command_help(_place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        return "\n".join(map(help_of, ((), ("baselines",), ("report",), ("roofline",))))


def help_of(words):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        command_parser().parse_args([*words, "--help"])
    return said.getvalue()


def pytest_help(place):
    """The plugin's two groups of options, as `pytest --help` shows them."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    told = {**kept, "COLUMNS": "100", "NO_COLOR": "1"}
    asked = [sys.executable, "-m", "pytest", "--help"]
    found = subprocess.run(asked, cwd=place, env=told, capture_output=True, text=True, check=True)
    groups = re.split(r"^(?=\S.*:$)", found.stdout, flags=re.MULTILINE)
    return "".join(group for group in groups if group.startswith("enginegate: "))


CASES = {
    "annotations.txt": github,
    "baseline.json": baseline_file,
    "baselines.txt": kept_files,
    "calibration.txt": calibration,
    "command_help.txt": command_help,
    "compared.txt": compared,
    "endings.txt": endings,
    "example.md": example_markdown,
    "example_page.txt": lambda _: lines(render_page_text(compose(example(), None))),
    "example_summary.txt": lambda _: lines(told(example().results)),
    "example_summary_narrow.txt": lambda _: lines(told(example().results, 80)),
    "exit_status.txt": exits,
    "failing.txt": failing,
    "figures.html": figures_html,
    "figures.md": figures_markdown,
    "figures_page.txt": lambda _: command("report", FIGURES),
    "gates.txt": gates,
    "history.txt": history,
    "kinds.html": lambda _: render_html(page(results())),
    "kinds.json": json_report,
    "kinds.md": lambda _: render_markdown(page(results())),
    "kinds_page.txt": page_text,
    "kinds_summary.txt": kinds_summary,
    "kinds_text.txt": text_report,
    "pytest_help.txt": pytest_help,
    "roofline.txt": roofline,
    "sweep.txt": lambda _: command("sweep", SWEEP),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current folder, so that messages name files without it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_what_users_see_is_as_it_was(place, name):
    compare(GOLDEN / name, CASES[name](place))


def test_there_is_no_golden_file_that_nothing_is_compared_with():
    assert {path.name for path in GOLDEN.iterdir()} == set(CASES)


def test_the_example_comes_back_from_its_records_with_every_figure():
    run, whole = example(), example().whole
    rest = (whole[name] for name in ("condition", "seed", "allowed", "costs", "rooflines"))
    again = json.loads(render_json(run.results, run.machine, *rest))
    assert holds(again["results"], whole["results"])


def holds(found, wanted):
    """Whether everything wanted is there; a run of today may say more."""
    if isinstance(wanted, dict):
        return all(key in found and holds(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(holds, found, wanted))
    return found == wanted


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ("19.2 % slower\n", "19.3 % slower\n"),
        ("same\n", "same"),
        ("a\n", "a\nb\n"),
        ("a\n", "a \n"),
    ],
)
def test_a_planted_change_is_caught_and_shown(tmp_path, monkeypatch, then, now):
    monkeypatch.delenv(RENEW, raising=False)
    (tmp_path / "x.txt").write_bytes(then.encode())
    compare(tmp_path / "x.txt", then)
    with pytest.raises(pytest.fail.Exception, match=r"x\.txt is another now:\n--- golden"):
        compare(tmp_path / "x.txt", now)


def test_a_missing_file_is_caught(tmp_path, monkeypatch):
    monkeypatch.delenv(RENEW, raising=False)
    with pytest.raises(pytest.fail.Exception, match=r"\+text"):
        compare(tmp_path / "x.txt", "text\n")


def test_another_rule_shows_in_the_files(place, monkeypatch):
    monkeypatch.delenv(RENEW, raising=False)
    monkeypatch.setattr(Options, "fails", lambda *_: False)
    with pytest.raises(pytest.fail.Exception, match=r"\n-strict .*\n"):
        compare(GOLDEN / "failing.txt", failing(place))


def test_renewing_writes_what_is_then_found_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv(RENEW, "1")
    compare(tmp_path / "deep/x.txt", "Größe\n")
    monkeypatch.delenv(RENEW)
    compare(tmp_path / "deep/x.txt", "Größe\n")


def test_only_what_is_named_is_masked():
    text = 'Made by pytest-enginegate 0.1.0 <p><svg width="3">\n</svg> 0.25 2026-01-05'
    shown = "Made by pytest-enginegate VERSION <p><svg>a drawing</svg> 0.25 2026-01-05"
    assert masked(text) == shown
