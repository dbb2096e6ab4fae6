"""The screens of a first day, as a terminal of 80 and of 120 columns shows them.

Somebody who knows pytest only must see in each what to do next. Renewed as other golden files are
(`test_golden.py`); read what has changed.
"""

import dataclasses
import functools

import pytest

from enginegate.config.options import _models
from enginegate.engines import registry
from enginegate.errors import OptionError
from enginegate.files import for_terminal
from enginegate.models.spec import SHIPPED
from enginegate.report.table import interrupted_line, spent_line
from enginegate.report.text import summary, wrapped
from enginegate.session.brief import BRIEFLY
from enginegate.session.worth import weighed
from enginegate.verdicts import Judgement, Verdict

from .kinds import _repair
from .reports import change, result, speed
from .test_golden import GOLDEN, compare
from .test_worth import ALL, FAST, NEW, SLOW, engine

PLACE = GOLDEN.parent / "first_day"
NONE_YET = "none in baselines/test-cpu/small.json; write it with --gate-refresh-baselines"
OTHER = "baselines are of another-cpu-8c-1f2e3d4c, this is another"
LAYER_FLAG = "int8 requested, ran as u8 88% f32 12% (6 of 48 matrix multiplications elsewhere)"
RAN = {"int8": "u8", "bf16": "bf16", "best": "bf16", "fp32": "f32"}


def judged(verdict, reason, **other):
    return tuple(speed(b, judgement=Judgement(verdict, (reason,)), **other) for b in (1, 8))


def new(precision, log=FAST, **other):
    """An engine measured shortly, with nothing to compare it with."""
    missing = dataclasses.replace(NEW, reasons=(NONE_YET,))
    found = engine(precision, log, **{"recall": ALL, **other})
    speeds = tuple(dataclasses.replace(s, judgement=missing) for s in found.speeds)
    return dataclasses.replace(found, speeds=speeds, notes=(BRIEFLY,), ran=RAN[precision])


def screen(results, columns, *, interrupted=""):
    for line in summary(results, columns, interrupted):
        text = for_terminal(line.text)
        yield from [text] if line.decision else wrapped(text, columns)
    last = [interrupted_line(interrupted)] if interrupted else []
    for told_last in (*last, spent_line(31.4, 22.6)):
        yield from wrapped(told_last, columns)


def no_baseline():
    return [new("fp32"), new("int8", 1.5 * FAST)]


def repaired_engine():
    return [dataclasses.replace(new("int8"), repair=_repair())]


def accepted_flag():
    why = "fine on AVX2"
    return [dataclasses.replace(new("int8"), accepted=(f"{LAYER_FLAG}; accepted: {why}",))]


def flag():
    return [dataclasses.replace(new("int8"), flags=(LAYER_FLAG,))]


def dominated_int8():
    slow = dataclasses.replace(new("int8", SLOW), accuracy=engine("int8", SLOW).accuracy)
    return list(weighed([new("fp32", 0.0), slow], {}))


def identical_engine():
    same = "same model, settings and libraries as the baseline of 2026-01-02"
    found = result("fp32", speeds=(), identical=same)
    return [found, new("bf16"), dataclasses.replace(new("best"), same_as="bf16")]


def too_noisy():
    noise = change(1.2, low=0.6, high=12.5, visible=3.0)
    verdict = Verdict.UNDECIDED
    reason = "too noisy to tell (cannot detect less than 100 %)"
    quiet = "more time will not help; run on a quieter machine"
    speeds = tuple(
        dataclasses.replace(s, judgement=Judgement(verdict, (reason, quiet)))
        for s in judged(verdict, reason, change=noise)
    )
    return [result("fp32", speeds=speeds)]


def other_machine():
    return [result("fp32", speeds=judged(Verdict.INCOMPARABLE, OTHER, change=None))]


SCREENS = {
    made.__name__: made
    for made in (
        no_baseline, repaired_engine, accepted_flag, flag, dominated_int8, identical_engine,
        too_noisy, other_machine,
    )
}  # fmt: skip


def told(lines):
    return "".join(f"{line}\n" for line in lines)


@functools.cache
def lines_of(name, columns):
    if name == "interrupted":
        return tuple(screen([new("fp32")], columns, interrupted="SIGTERM"))
    return tuple(screen(SCREENS[name](), columns))


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", [*SCREENS, "interrupted"])
def test_the_screen_is_as_it_was(name, columns):
    compare(PLACE / f"{name}_{columns}.txt", told(lines_of(name, columns)))


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", [*SCREENS, "interrupted"])
def test_no_line_is_broken_by_the_terminal(name, columns):
    assert [line for line in lines_of(name, columns) if len(line) > columns] == []


@pytest.mark.parametrize("name", [*SCREENS, "interrupted"])
def test_what_does_not_simply_ship_says_what_to_do_next(name):
    said = " ".join(lines_of(name, 120))
    holds = [line for line in lines_of(name, 120) if line.startswith(("hold ", "ship (new) "))]
    assert not holds or "next: " in said


def refused(call):
    with pytest.raises(OptionError) as error:
        call()
    return f"ERROR: {for_terminal(str(error.value))}"


@pytest.mark.parametrize("columns", [80, 120])
def test_the_screen_of_a_wrong_model(columns):
    said = refused(lambda: _models(("minlm",), SHIPPED, ()))
    compare(PLACE / f"wrong_model_{columns}.txt", told(wrapped(said, columns)))


@pytest.mark.parametrize("columns", [80, 120])
def test_the_screen_of_a_missing_extra(columns, monkeypatch):
    monkeypatch.setattr(registry, "_is_there", lambda package: package != "openvino")
    said = refused(lambda: registry.check_runnable("openvino"))
    compare(PLACE / f"missing_extra_{columns}.txt", told(wrapped(said, columns)))


def test_every_screen_that_is_kept_is_compared():
    shown = [*SCREENS, "interrupted", "wrong_model", "missing_extra"]
    wanted = {f"{name}_{columns}.txt" for name in shown for columns in (80, 120)}
    assert {path.name for path in PLACE.iterdir()} == wanted
