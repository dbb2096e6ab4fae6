"""What a run tells of its time: how long it takes, what it does, how far it is."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from enginegate.gate import _Progress
from enginegate.session.estimate import Plan, announced, duration, estimate_s
from enginegate.variants import Precision, Variant

SERVED: Any = SimpleNamespace(serve=SimpleNamespace(concurrencies=(1, 2, 4)))
HERE: Any = SimpleNamespace(serve=None)


def plan(models=2, precisions=("fp16", "int8"), batches=(1, 8, 16, 32), **other):
    variants = [
        Variant(f"model{n}", "openvino", Precision(p)) for n in range(models) for p in precisions
    ]
    timed = [batches] * len(variants) if batches else []
    return Plan(variants, timed, **{"replicates": 3, "cell_s": 0.5, "built": True, **other})


def test_the_plan_is_announced_with_a_round_time():
    said = announced(plan(replicates=8, cell_s=1.0), HERE)
    assert said == "about 4 min: 2 models x 2 precisions"
    assert announced(plan(1, ["fp32"]), HERE).endswith(": 1 model x 1 precision")
    longer = announced(plan(replicates=8, cell_s=1.0, more_s=120.0), HERE)
    assert longer == "about 4 min, up to 6 min if a change is hard to tell: 2 models x 2 precisions"


def test_what_is_to_be_built_timed_or_served_takes_longer():
    known = estimate_s(plan(), HERE)
    assert estimate_s(plan(built=False), HERE) > known + 100
    assert estimate_s(plan(batches=()), HERE) < known
    assert estimate_s(plan(), SERVED) > known + 100


@pytest.mark.parametrize(
    ("seconds", "words"), [(1, "10 s"), (44, "40 s"), (89, "90 s"), (100, "2 min"), (290, "5 min")]
)
def test_no_more_digits_than_are_known(seconds, words):
    assert duration(seconds) == words


def lines(result):
    return [line for line in result.stdout.lines if line.startswith("enginegate: ")]


def test_elsewhere_a_long_step_has_a_line_at_its_start_and_at_its_end(project, monkeypatch):
    seconds = SimpleNamespace(monotonic=itertools.count(step=2).__next__)
    monkeypatch.setattr("enginegate.gate.time", seconds)  # every step takes two or more
    ended = project.judge()
    said = lines(ended)
    assert said[0].startswith("enginegate: about ")
    assert said[0].endswith("1 model x 1 precision")
    begins = said.index("enginegate: speed of tiny-faulty-fp32: batch 1, 4")
    assert said[begins + 1].startswith("enginegate: speed of tiny-faulty-fp32: ")
    assert said[begins + 1].endswith(" s")
    assert "enginegate: engine tiny-faulty-fp32: not in the cache, so it is made now" in said
    assert "\r" not in ended.stdout.str()
    again = project.judge()
    assert not any("not in the cache" in line for line in lines(again))


@pytest.mark.parametrize("options", [["-q"], ["--collect-only"], ["-p", "no:terminal"]])
def test_it_is_silent_where_nothing_is_to_be_said(project, options):
    ended = project.judge(*options)
    assert ended.ret == 0
    assert lines(ended) == []


@pytest.mark.parametrize("options", [["-s"], ["--capture=sys"], ["-p", "no:capture"]])
def test_it_is_told_whatever_is_captured(project, options):
    assert any(line.endswith("1 model x 1 precision") for line in lines(project.judge(*options)))


def test_a_project_that_does_not_use_it_hears_nothing(project):
    assert lines(project.run()) == []


class Terminal:
    """A terminal 40 columns wide, as pytest's reporter writes to it."""

    def __init__(self, *, isatty):
        self.isatty, self.written = isatty, []
        self._tw = SimpleNamespace(fullwidth=40, flush=lambda: None)

    def ensure_newline(self):
        self.written.append("\n")

    def write_line(self, line):
        self.written.append(f"{line}\n")

    def rewrite(self, line, *, erase=False):
        self.written.append(f"\r{line}")


def progress_on(terminal, *, verbosity=0):
    manager = SimpleNamespace(get_plugin={"terminalreporter": terminal}.get)
    config: Any = SimpleNamespace(pluginmanager=manager, get_verbosity=lambda: verbosity)
    return _Progress(config)


def test_a_terminal_shows_the_step_and_how_far_it_is_and_is_left_clean():
    terminal = Terminal(isatty=True)
    progress = progress_on(terminal)
    progress.whole = "about 4 min"
    with progress.step("speed"):
        progress.show("replicate 2")
    assert "\renginegate: 0 s of about 4 min: speed" in terminal.written
    assert "\renginegate: 0 s of about 4 min: speed: " in terminal.written
    assert all(len(line) <= 40 for line in terminal.written)
    assert terminal.written[-1] == "\r"


def test_without_a_terminal_nothing_is_rewritten():
    for terminal, verbosity in ((Terminal(isatty=False), 0), (Terminal(isatty=True), -1)):
        with progress_on(terminal, verbosity=verbosity).step("speed"):
            pass
        assert terminal.written == []


def test_a_step_that_fails_leaves_the_terminal_clean():
    terminal = Terminal(isatty=True)
    with pytest.raises(ValueError, match="planted"), progress_on(terminal).step("speed"):
        raise ValueError("planted")
    assert terminal.written[-1] == "\r"
