"""Ship, ship (new), hold or block: what follows from what was found, and what to do next."""

import dataclasses
import json

import pytest

from enginegate.accuracy import AgainstTruth, with_ranges
from enginegate.diagnostics import Repair
from enginegate.engines import OutOfRange, Ranges
from enginegate.report.decision import decide
from enginegate.report.page import Decision
from enginegate.report.text import summary
from enginegate.results import DOUBT
from enginegate.verdicts import Judgement, Verdict

from .reports import accuracy, context, result, speed

NOT_SLOWER = "embeddings within their limits, not slower than its baseline"


def judged(verdict, reason=""):
    return (speed(8, judgement=Judgement(verdict, (reason,))),)


NOT_THE_MODEL = AgainstTruth(Judgement(Verdict.FAIL, ("it pools by mean",)))
REPAIR = Repair(("block 1/attention",), 0.9, 1.4, 1.3, "[keep]", ())


@pytest.mark.parametrize(
    ("found", "decision", "reason", "step"),
    [
        ({}, Decision.SHIP, NOT_SLOWER, ""),
        (
            {"accepted": ("f32 ran too; accepted: fine on AVX2",)},
            Decision.SHIP,
            "embeddings within their limits, accepted, not slower than its baseline",
            "",
        ),
        (
            {"speeds": (), "identical": "same recipe"},
            Decision.SHIP,
            "embeddings within their limits",
            "",
        ),
        (
            {"speeds": judged(Verdict.NO_BASELINE)},
            Decision.NEW,
            "embeddings within their limits, no predecessor to compare with",
            "--gate-refresh-baselines",
        ),
        ({"flags": ("f32 ran",)}, Decision.HOLD, "not exactly what was requested", "accept.fp32"),
        ({"speeds": judged(Verdict.UNDECIDED)}, Decision.HOLD, "could not decide", "idle machine"),
        ({"speeds": judged(Verdict.INVALID)}, Decision.HOLD, "refutes itself", "idle machine"),
        (
            {"speeds": judged(Verdict.INCOMPARABLE)},
            Decision.HOLD,
            "cannot be compared",
            "--gate-against",
        ),
        ({"repair": REPAIR}, Decision.HOLD, "repaired in this run", "`keep`"),
        ({"speeds": ()}, Decision.HOLD, "not measured", "test_not_slower"),
        ({"accuracy": None}, Decision.HOLD, "not compared", "test_same_embeddings"),
        (
            {"context": context(weights="seeded (backbone)")},
            Decision.HOLD,
            "weights are not the model's",
            "[tool.enginegate.models.small]",
        ),
        (
            {"context": context(tokenizer="hashed words")},
            Decision.HOLD,
            "tokens are not the model's",
            "`tokenizer`",
        ),
        ({"notes": (f"{DOUBT}it changes with its batch",)}, Decision.HOLD, "in doubt", "file"),
        ({"truth": NOT_THE_MODEL}, Decision.BLOCK, "the reference is not the model", "cause"),
        ({"speeds": judged(Verdict.REGRESSED)}, Decision.BLOCK, "slower", "--gate-refresh"),
        (
            {"accuracy": accuracy(0.8, Verdict.FAIL, ("cosine_worst 0.8 < 0.9",)), "speeds": ()},
            Decision.BLOCK,
            "its embeddings are wrong",
            "--gate-blame",
        ),
    ],
)
def test_each_finding_leads_to_a_decision_and_its_next_step(found, decision, reason, step):
    decided = decide([dataclasses.replace(result(), **found)])
    assert decided.decision == decision
    assert reason in decided.reason
    assert step in decided.next
    assert bool(decided.next) == (decision is not Decision.SHIP)


def test_embeddings_within_limits_are_not_said_to_be_beyond_them():
    decided = decide([dataclasses.replace(result(), truth=NOT_THE_MODEL)])
    assert not any("beyond" in detail for detail in decided.details)


def test_a_range_alone_is_not_called_wrong_embeddings():
    beyond = OutOfRange("add", "Add", "stream", 70_000.0, 0.0)
    ranges = Ranges(10, 70_000.0, "stream", (beyond,))
    found = result("fp16", accuracy=with_ranges(accuracy(), ranges), ranges=ranges)
    decided = decide([found])
    assert (decided.decision, decided.reason) == (
        Decision.BLOCK,
        "fp16 cannot hold the model's numbers",
    )
    assert "`keep.fp16`" in decided.next
    int8 = result("int8", accuracy=found.accuracy, ranges=ranges)
    assert decide([int8]).next == "ship another precision"


def test_the_gravest_of_several_engines_counts():
    new = result(speeds=judged(Verdict.NO_BASELINE))
    slow = result(speeds=judged(Verdict.REGRESSED, "19 % slower"))
    assert decide([result(), new]).decision == Decision.NEW
    found = decide([result(), new, slow])
    assert found.decision == Decision.BLOCK
    assert "slower than its baseline: fp32: 19 % slower" in found.details


def test_the_table_begins_with_the_decision_and_fits_the_terminal():
    found = [result(), result("bf16", flags=("f32 ran too",)), result("int8", speeds=())]
    for columns in (120, 80):
        lines = summary(found, columns)
        table = [line.text for line in lines if line.decision] + [lines[2].text]
        assert max(map(len, table)) < columns
        assert [str(line.decision) for line in lines if line.decision] == ["ship", "hold", "hold"]
    text = "\n".join(line.text for line in lines)
    assert "bf16: hold: not exactly what was requested ran; next: look at it" in text
    assert "fp32: ship" not in text


def test_nothing_ships_by_a_run_that_was_interrupted():
    (row,) = [line for line in summary([result()], 120, "SIGTERM") if line.decision]
    assert row.decision is Decision.HOLD


ACCEPT = '\n[tool.enginegate.models.tiny.accept]\nfp32 = {{ executed = "{}" }}\n'


def test_a_flag_is_accepted_with_a_reason_and_shown(project):
    project.plant("another type")
    held = project.judge("--gate-report-json=held.json", "-k", "same_embeddings")
    held.stdout.fnmatch_lines(["hold *fp32 *", "fp32: flagged: *"])
    table = project.path / "pyproject.toml"
    table.write_text(table.read_text() + ACCEPT.format("fine on this processor"))
    strict = project.judge("--gate-report-json=ok.json", "-k", "same_embeddings", "--strict")
    assert strict.ret == 0
    (found,) = json.loads((project.path / "ok.json").read_text())["results"]
    assert found["flags"] == []
    assert found["accepted"][0].endswith("; accepted: fine on this processor")
    strict.stdout.fnmatch_lines(["fp32: fp32 requested, * ran*; accepted: fine on this processor"])


def test_what_is_nothing_to_accept_is_said(project):
    table = project.path / "pyproject.toml"
    table.write_text(table.read_text() + ACCEPT.format("was fine"))
    clean = project.judge("-k", "same_embeddings")
    clean.stdout.fnmatch_lines(["fp32: nothing to accept here, what was requested ran: was fine"])


@pytest.mark.parametrize("line", ["fp32 = 3", "fp32 = { speed = 'x' }", "fp32 = { executed = '' }"])
def test_what_cannot_be_accepted_is_one_error(project, line):
    table = project.path / "pyproject.toml"
    table.write_text(table.read_text() + f"\n[tool.enginegate.models.tiny.accept]\n{line}\n")
    refused = project.judge()
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*: accept = *is not a table of executed, dominated with why*"])


def test_junit_has_the_decision_of_each_engine(project):
    project.judge("--junitxml=junit.xml", "-k", "same_embeddings")
    said = (project.path / "junit.xml").read_text()
    assert 'name="enginegate_decision:tiny-faulty-fp32" value="hold: its tokens are' in said
