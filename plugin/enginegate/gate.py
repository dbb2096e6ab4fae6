"""A run in pytest: its hooks, and from what was found to the outcome of a test.

The hooks come with `enginegate.fixtures`, so only to a project that uses them.
"""

import contextlib
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.junitxml import xml_key

from enginegate.errors import EngineGateError, OptionError
from enginegate.files import for_terminal
from enginegate.verdicts import Verdict

if TYPE_CHECKING:
    from enginegate.accuracy import AgainstTruth
    from enginegate.results import Result
    from enginegate.session import Recorder, Session
    from enginegate.speed import Measured, Speed, Unchanged
    from enginegate.variants import Variant

PROPERTY = "enginegate_verdict"
ERROR = "error"
SERVER = "enginegate_server"
LABEL = "workload_sha256"  # of an engine's figures in files of pytest-benchmark
SESSION = pytest.StashKey["Session"]()
_PROGRESS = pytest.StashKey["_Progress"]()

_COLOURS = {"ship": "green", "ship (new)": "green", "hold": "yellow", "block": "red"}
_MODEL, _VARIANT = "enginegate_model", "enginegate_variant"
_EVIDENCE = "enginegate/evidence"
_STOPPED_BY = pytest.StashKey[str]()
_INTERRUPTED = "Ctrl-C, a call of pytest.exit, or errors of the collection"
_NO_SERVER = (
    "no server asked for: pytest --precision fp16 --gate-serve triton (or --gate-serve URL)"
)
_NO_PRECISION = "no precision asked for: pytest --precision fp16 (or fp32, bf16, int8, best, all)"
_NOTHING_LEFT = "nothing is left for this shard: there are fewer engines than shards"
_NO_TESTS = "no tests are here; the ready ones: pytest --pyargs enginegate.suite"


class _Concluding:
    """Turns a verdict into the outcome of a test."""

    def __init__(self, node: pytest.Item, session: "Session") -> None:
        self._node, self._session = node, session

    def _conclude(self, verdict: Verdict, text: str, *, fails: bool, holds: bool = False) -> None:
        """`holds`: a person must look before it ships, so that it fails with `--strict`."""
        self._node.user_properties.append((PROPERTY, str(verdict)))
        strict = holds and self._session.options.strict
        self._session.recorder.notice(verdict, text, fails=fails or strict)
        if fails or strict:
            pytest.fail(for_terminal(text), pytrace=False)
        if verdict is Verdict.FLAGGED:  # also where a report knows no other word than "passed"
            self._node.add_report_section("call", "enginegate", for_terminal(text))


class ModelGate(_Concluding):
    """Turns what was found of a model's reference into the outcome of a test."""

    def __init__(
        self, node: pytest.Item, session: "Session", model: str, truth: "AgainstTruth | None"
    ) -> None:
        super().__init__(node, session)
        self._model, self._truth = model, truth

    def check_reference(self) -> None:
        """Fail if the reference is not the model; skip where it is taken as the model."""
        truth = self._truth
        if truth is None:
            built = self._session.options.save_engines
            why = "engines are only built" if built else "the fixture that gives it says nothing"
            pytest.skip(for_terminal(f"the reference was not compared with the model: {why}"))
        verdict = truth.judgement.verdict
        text = f"{self._model}: {verdict}: {truth.text}"
        if verdict is Verdict.NOT_MEASURED:
            pytest.skip(for_terminal(text))
        self._conclude(verdict, text, fails=verdict is Verdict.FAIL)


class Gate(_Concluding):
    """Turns what was found of an engine into the outcome of a test."""

    def __init__(self, node: pytest.Item, session: "Session", result: "Result") -> None:
        super().__init__(node, session)
        self._result = result

    def check_embeddings(self) -> None:
        """Fail beyond the limits; flag looser limits, and another type than asked for.

        Looser limits are the rule of int8 and hold nothing, so `--strict` lets them pass.
        """
        result, accuracy, verdict = self._result, self._result.accuracy, self._result.delta_verdict
        fails = verdict is Verdict.FAIL
        of_reference = result.truth.faults if result.truth else ()
        own = accuracy.judgement.reasons if accuracy else ()
        reasons = [*of_reference, *result.flags, *own, *result.doubts]
        unblamed = result.blame is None and not result.only_beyond_fp16
        if fails and not of_reference and unblamed:
            reasons.append("--gate-blame says which layers do it")
        text = f"{result.variant.id}: {verdict}: {'; '.join(reasons)}"
        self._conclude(verdict, text, fails=fails, holds=bool(result.flags or result.doubts))

    def check_invariance(self) -> None:
        """Fail if an embedding depends on its batch; skip where the embeddings are wrong anyway."""
        accuracy, name = self._result.accuracy, self._result.variant.id
        if accuracy is None or accuracy.invariance is None:
            outputs = self._result.context.words.outputs
            pytest.skip(for_terminal(f"{name}: not probed, its {outputs} are wrong"))
        found = accuracy.invariance
        verdict = Verdict.FAIL if found.broken else Verdict.PASS
        doubts = self._result.doubts if found.broken else ()
        reasons = filter(None, [found.broken, *doubts, *found.skipped])
        text = f"{name}: {verdict}: {'; '.join(reasons)}"
        self._conclude(verdict, text, fails=verdict is Verdict.FAIL)

    def check_speed(self, measured: "Measured | Unchanged") -> None:
        """Fail on a regression, and on whatever else the gate is told not to let pass."""
        from enginegate.speed import Unchanged

        if isinstance(measured, Unchanged):
            verdict, (reason,) = measured.judgement.verdict, measured.judgement.reasons
            text = f"{self._result.variant.id}: {verdict}: {reason}"
            return self._conclude(verdict, text, fails=False)
        speed = measured.speed
        verdict = speed.verdict
        judgements = [j for j in (speed.judgement, speed.tail_judgement) if j]
        reasons = "; ".join(r for j in judgements if j.verdict is verdict for r in j.reasons)
        text = f"{self._result.variant.id}, batch {speed.batch}: {verdict}: {reasons}"
        self._node.user_properties += _properties(speed)
        return self._conclude(verdict, text, fails=self._session.options.fails(verdict))

    def check_load(self, result: "Result") -> None:
        """Fail on a new cliff, a lost capacity, or a served engine that became slower."""
        verdict, load = result.speed_verdict, result.load
        judged = [load.judgement] if load else []
        judged += [speed.judgement for speed in result.speeds]
        reasons = "; ".join(r for j in judged if j.verdict is verdict for r in j.reasons)
        self._node.user_properties += _load_properties(result)
        text = f"{result.variant.id}: {verdict}: {reasons}"
        self._conclude(verdict, text, fails=self._session.options.fails(verdict))


def _properties(speed: "Speed") -> list[tuple[str, object]]:
    """The numbers of a batch size, for JUnit's XML and other readers of reports."""
    change = speed.change
    numbers = {"p50_s": speed.p50_s, "texts_per_s": speed.texts_per_s}
    if change is not None:
        numbers |= {"change": change.ratio, "change_low": change.low, "change_high": change.high}
        numbers |= {"visible_slowdown": change.visible, "e_value": change.evidence}
    return [(f"enginegate_{name}", f"{value:.6g}") for name, value in numbers.items()]


def _load_properties(result: "Result") -> list[tuple[str, object]]:
    """What a served engine carries, for JUnit's XML and other readers of reports."""
    if result.load is None:
        return []
    analysis = result.load.analysis
    cliffs = ", ".join(f"{cliff.first}-{cliff.last}" for cliff in analysis.cliffs)
    return [
        ("enginegate_served_texts_per_s", f"{result.load.largest_per_s:.6g}"),
        ("enginegate_saturated_from", analysis.saturated_from or ""),
        ("enginegate_cliffs", cliffs),
    ]


def _refuse_others(config: pytest.Config) -> None:
    """Refuse those plugins beside which nothing could be judged."""
    codspeed = config.getoption("codspeed", None)  # None: it is not installed
    if codspeed or (codspeed is not None and "CODSPEED_ENV" in os.environ):
        raise OptionError("CodSpeed leaves out every test of an engine: run without --codspeed")
    if hasattr(config, "workerinput") or config.getoption("dist", "no") != "no":
        raise OptionError("engines cannot be timed beside each other: run without -n")


def start(config: pytest.Config) -> None:
    """Prepare the session of a run. Raises EngineGateError."""
    _refuse_others(config)
    from enginegate.config import Options
    from enginegate.session import open_session

    options = Options.from_config(config)
    if options.report_html:
        from enginegate.report import check_drawable

        check_drawable()
    cache = getattr(config, "cache", None)
    evidence = cache.get(_EVIDENCE, {}) if cache else {}
    progress = _Progress(config)
    config.stash[_PROGRESS] = progress
    config.stash[SESSION] = open_session(options, progress.step, evidence, progress.show)
    _end_orderly(config)


def start_fleet(config: pytest.Config) -> int:
    """Run the parts of a run on the machines of a fleet; the exit status of the whole.

    Raises EngineGateError.
    """
    _refuse_others(config)
    if not config.getoption("enginegate_precision", None):
        raise OptionError("--gate-fleet without --precision runs nothing: name some, or all")
    from enginegate.config import Options
    from enginegate.session import run_fleet

    options = Options.from_config(config)
    quiet = config.get_verbosity() < 0
    spoken = [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *config.invocation_params.args]
    return run_fleet(options, config.invocation_params.dir, spoken, _show, quiet=quiet)


def _show(line: str) -> None:
    """Print a line of a fleet's run, in which pytest reports nothing."""
    print(for_terminal(line), flush=True)


def _end_orderly(config: pytest.Config) -> None:
    """Let SIGTERM end the run as Ctrl-C does, unless somebody else handles it already."""
    here = threading.current_thread() is threading.main_thread()
    if here and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: _terminated(config))
        config.add_cleanup(_leave_sigterm)


def _leave_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminated(config: pytest.Config) -> None:
    config.stash[_STOPPED_BY] = "SIGTERM"
    signal.signal(signal.SIGTERM, lambda *_: None)  # the reports are being written
    pytest.exit("SIGTERM")


class _Progress:
    """Tells of a run's steps past pytest's capturing; nothing with -q or without a terminal report.

    A line where a step has something to say, and one at the end of what took a second or more; on
    a terminal also a line that changes, with the step, how far it is, and how long the run takes.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config, self._start_s = config, time.monotonic()
        self._steps: list[str] = []
        self._is_live = False
        self.whole = ""

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Callable[[str], None]]:
        """A step; inside, whatever it has to say."""
        start_s = time.monotonic()
        self._steps.append(what)
        self.show("")
        try:
            yield lambda text: self.say(f"{what}: {text}")
        finally:
            self._steps.pop()
            self._clear()
        if (elapsed_s := time.monotonic() - start_s) >= 1:
            self.say(f"{what}: {elapsed_s:.1f} s")

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self._clear()
        with self._reporter() as reporter:
            if reporter:
                reporter.ensure_newline()
                reporter.write_line(for_terminal(f"enginegate: {text}"))

    def show(self, text: str) -> None:
        """Rewrite the line that changes."""
        passed = f"{time.monotonic() - self._start_s:.0f} s" + (self.whole and f" of {self.whole}")
        said = ": ".join(filter(None, ["enginegate", passed, *self._steps[-1:], text]))
        with self._reporter() as reporter:
            if reporter and reporter.isatty:
                if not self._is_live:
                    reporter.ensure_newline()
                width = max(0, reporter._tw.fullwidth - 1)
                reporter.rewrite(for_terminal(said)[:width], erase=True)
                reporter._tw.flush()
                self._is_live = True

    def _clear(self) -> None:
        if self._is_live:
            with self._reporter() as reporter:
                reporter.rewrite("", erase=True)
                reporter.rewrite("")
            self._is_live = False

    @contextlib.contextmanager
    def _reporter(self) -> Iterator[Any]:
        """What writes to the terminal, uncaptured; None where nothing is to be written."""
        manager = self._config.pluginmanager
        capture = manager.get_plugin("capturemanager")
        quiet = self._config.get_verbosity() < 0
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            yield None if quiet else manager.get_plugin("terminalreporter")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of an engine once per variant, engine by engine."""
    if _VARIANT in metafunc.fixturenames:
        _parametrize_variants(metafunc)
    elif _MODEL in metafunc.fixturenames:
        _parametrize_models(metafunc)
    if "batch_size" in metafunc.fixturenames and "measure" in metafunc.fixturenames:
        run = metafunc.config.stash.get(SESSION, None)
        metafunc.parametrize("batch_size", run.options.batches if run else [1])


def _parametrize_variants(metafunc: pytest.Metafunc) -> None:
    run = metafunc.config.stash.get(SESSION, None)
    if run is None or not run.options.variants:
        cases = [_skipped(run, "", None)]
    else:
        lacks_server = SERVER in metafunc.fixturenames and run.options.serve is None
        marks = [pytest.mark.skip(reason=_NO_SERVER)] if lacks_server else []
        cases = [pytest.param(v.model, v, id=v.id, marks=marks) for v in run.options.variants]
    metafunc.parametrize((_MODEL, _VARIANT), cases, indirect=True, scope="session")


def _parametrize_models(metafunc: pytest.Metafunc) -> None:
    run = metafunc.config.stash.get(SESSION, None)
    if run is None or not run.options.variants:
        cases = [_skipped(run, "")]
    else:
        names = dict.fromkeys(variant.model for variant in run.options.variants)
        cases = [pytest.param(name, id=name or "model") for name in names]
    metafunc.parametrize(_MODEL, cases, indirect=True, scope="session")


def _skipped(run: "Session | None", *values: Any) -> Any:
    """The one case of a test that there is no engine for."""
    reason, name = (_NOTHING_LEFT, "nothing-left") if run else (_NO_PRECISION, "no-precision")
    return pytest.param(*values, id=name, marks=pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the plugin's own errors as one message, and remember why tests failed."""
    run = item.config.stash.get(SESSION, None)
    if run and call.when == "setup":
        run.recorder.begin(item.nodeid)
    if call.excinfo is not None and isinstance(call.excinfo.value, EngineGateError):
        error = call.excinfo.value
        plain = pytest.fail.Exception(for_terminal(str(error)), pytrace=False)
        item.user_properties.append((PROPERTY, ERROR))
        call.excinfo = pytest.ExceptionInfo.from_exception(
            plain.with_traceback(error.__traceback__)
        )
    report = yield
    if run and report.failed:
        run.recorder.fail(str(dict(item.user_properties).get(PROPERTY, "")), item.nodeid)
        fixtures = getattr(item, "fixturenames", ())
        if SERVER in fixtures and run.server and (log := run.server.log_tail()):
            report.sections.append(("server's log", for_terminal(log)))
    return report


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, Any] | None:
    """Mark a flagged test in the progress line and in the closing count."""
    if report.when == "call" and report.passed and (PROPERTY, "flagged") in report.user_properties:
        return "flagged", "!", ("FLAGGED", {"yellow": True})
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Served engines last of each variant, whoever shuffles the tests and however.

    Nothing is timed in this process beside a server. Pytest itself keeps a variant together.
    """
    yield
    places: dict[Any, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(_params(item).get(_VARIANT), []).append(place)
    places.pop(None, None)
    for mine in places.values():
        ordered = sorted((items[place] for place in mine), key=_is_served)
        for place, item in zip(mine, ordered, strict=True):
            items[place] = item
    _put_models_first(items)


def _put_models_first(items: list[pytest.Item]) -> None:
    """Each test of a model right before those of its engines, so that it is prepared once."""
    alone = [item for item in items if {_MODEL, _VARIANT} & _params(item).keys() == {_MODEL}]
    items[:] = [item for item in items if item not in alone]
    for item in reversed(alone):
        models = [_params(other).get(_MODEL) for other in items]
        mine = _params(item)[_MODEL]
        items.insert(models.index(mine) if mine in models else len(items), item)


def _params(item: pytest.Item) -> dict[str, Any]:
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}


def _is_served(item: pytest.Item) -> bool:
    return SERVER in getattr(item, "fixturenames", ())


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note which batch sizes of each variant will be timed, to time them in one go."""
    run = session.config.stash.get(SESSION, None)
    if run is not None:
        found = [_params(item) for item in session.items]
        run.recorder.plan(found)
        variants = dict.fromkeys(p[_VARIANT] for p in found if p.get(_VARIANT))
        if variants and not session.config.option.collectonly:
            _announce(run, session.config.stash[_PROGRESS], list(variants))


def _announce(run: "Session", progress: _Progress, variants: "list[Variant]") -> None:
    from enginegate.session import announced, plan_of

    said = announced(plan_of(run, variants), run.options)
    progress.whole = said.partition(":")[0]
    progress.say(said)


@pytest.hookimpl(tryfirst=True, optionalhook=True)  # a hook of pytest-benchmark
def pytest_benchmark_group_stats(config: pytest.Config, benchmarks: list[Any]) -> None:
    """Leave engines out of pytest-benchmark's table, unless one of its options was given."""
    if not _benchmark_options(config):
        benchmarks[:] = [one for one in benchmarks if LABEL not in one.get("extra_info", ())]


def _benchmark_options(config: pytest.Config) -> bool:
    given = [*config.invocation_params.args, *config.getini("addopts")]
    words = [*map(str, given), *shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))]
    return any(word.startswith("--benchmark-") for word in words)


@pytest.hookimpl(tryfirst=True)  # before pytest writes JUnit's XML
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write baselines and reports; tell by the exit status what went wrong."""
    run = session.config.stash.get(SESSION, None)
    if run is None or session.config.option.collectonly:
        return
    from enginegate.session import finish_run

    stopped = _stopped_by(session, exitstatus)
    finish_run(run, interrupted=stopped, narrowed=_narrowed(session.config))
    if xml := session.config.stash.get(xml_key, None):
        _tell_junit(xml, run.recorder)
    if cache := getattr(session.config, "cache", None):
        cache.set(_EVIDENCE, run.recorder.evidence)
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        status = run.recorder.exit_status()
        session.exitstatus = status or (pytest.ExitCode.INTERRUPTED if stopped else status)


def _tell_junit(xml: Any, run: "Recorder") -> None:
    """A property of the suite per engine: its decision, and why."""
    from enginegate.report import decided

    for name, result in run.results.items():
        found = decided(result, run.interrupted)
        xml.add_global_property(f"enginegate_decision:{name}", f"{found.decision}: {found.reason}")


def _stopped_by(session: pytest.Session, exitstatus: int) -> str:
    """By what the run was stopped before its end; empty if it was not."""
    if exitstatus == pytest.ExitCode.INTERRUPTED:
        return session.config.stash.get(_STOPPED_BY, _INTERRUPTED)
    if exitstatus == pytest.ExitCode.INTERNAL_ERROR:
        return "an internal error"
    return " ".join(str(session.shouldfail or session.shouldstop or "").split())


def _narrowed(config: pytest.Config) -> str:
    """By what the run was narrowed to some of its tests; empty if it was not."""
    option = config.option
    ways = {
        "-k": option.keyword,
        "-m": option.markexpr,
        "--deselect": option.deselect,
        "--lf": getattr(option, "lf", False),
        "a test id": any("::" in argument for argument in config.args),
    }
    return ", ".join(way for way, used in ways.items() if used)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """Print the table, what was refreshed, and what could not be written."""
    run = config.stash.get(SESSION, None)
    if run and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not _narrowed(config):
        asked = ",".join(config.option.enginegate_precision)
        terminalreporter.write_line(for_terminal(f"{_NO_TESTS} --precision {asked}"))
    found = run.recorder if run else None
    if found and (found.results or found.lines or found.problems):
        _write_summary(terminalreporter, found)


def _write_wrapped(terminalreporter: Any, text: str) -> None:
    """Write a text, in lines at words on a terminal; elsewhere, where it is searched, in one."""
    from enginegate.report import wrapped

    safe, columns = for_terminal(text), terminalreporter._tw.fullwidth
    for line in wrapped(safe, columns) if terminalreporter.isatty else [safe]:
        terminalreporter.write_line(for_terminal(line))


def _write_summary(terminalreporter: Any, run: "Recorder") -> None:
    from enginegate.report import annotations, summary

    terminalreporter.section("enginegate")
    columns = terminalreporter._tw.fullwidth
    for line in summary(run.results.values(), columns, run.interrupted):
        if line.decision:
            terminalreporter.write_line(for_terminal(line.text), **{_COLOURS[line.decision]: True})
        else:
            _write_wrapped(terminalreporter, line.text)
    for text in run.lines:
        _write_wrapped(terminalreporter, text)
    for problem in run.problems:
        terminalreporter.write_line(for_terminal(f"ERROR: {problem}"), red=True)
    for command in annotations(run.notices, run.problems):
        terminalreporter.write_line(command)
