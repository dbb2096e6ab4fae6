"""Reports of several machines and shards as one verdict; every way not to fit is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from enginegate.accuracy.limits import DEFAULT_LIMITS
from enginegate.accuracy.sample import Sample, disagreement, sample_of
from enginegate.cli import main
from enginegate.machine.fingerprint import Machine
from enginegate.results import Provenance
from enginegate.variants import Precision
from enginegate.verdicts import Judgement, Verdict

from .reports import MACHINE, ORIGIN, accuracy, report, result, run, speed

ROOT = Path(__file__).parents[2]
OTHER = Machine("Other CPU 4/5/6", 4, ("neon",), "linux-aarch64")
PRECISIONS = ("fp32", "bf16", "int8")
PLAN = "c" * 64
RECIPE = {"backend": "openvino", "precision": "int8", "model": "b" * 64, "runtime": "2026.4"}
VECTORS = np.random.default_rng(0).standard_normal((256, 16)).astype("f4")


def shard(number, count=3, kinds=1, **other):
    """The record of a shard that has one precision of the model."""
    asked = {"models": ["small"], "precisions": list(PRECISIONS)}
    mine = [["small", PRECISIONS[number - 1]]]
    record = {"number": number, "count": count, "kinds": kinds, "plan": PLAN, "asked": asked}
    return {**record, "variants": mine, **other}


def part(number, machine=MACHINE, kinds=1, **other):
    """The report of a shard, as an object."""
    alarm = 0.01 / 3 / kinds
    results = other.pop("results", [result(PRECISIONS[number - 1])])
    fields = {"origin": ORIGIN, "alarm": alarm, "failures": [], "machine": machine.as_json()}
    return report(results, **{**fields, "shard": shard(number, kinds=kinds), **other})


def whole(results=None, machine=MACHINE, **other):
    """The report of a run that is no shard, as an object."""
    fields = {"origin": ORIGIN, "alarm": 0.01, "failures": [], "machine": machine.as_json()}
    return report(results or [result("fp32")], **{**fields, **other})


@pytest.fixture
def merge(tmp_path, monkeypatch, capsys):
    """Merge reports, given as objects; the status, what was said, and the JSON."""
    monkeypatch.chdir(tmp_path)

    def merge(*reports, arguments=()):
        names = []
        for number, found in enumerate(reports):
            names.append(f"{'abcdefghi'[number]}.json")
            Path(names[-1]).write_text(json.dumps(found))
        Path("fleet.json").unlink(missing_ok=True)
        status = main(["merge", *names, "--json", "fleet.json", *arguments])
        said = capsys.readouterr()
        found = json.loads(Path("fleet.json").read_text()) if Path("fleet.json").exists() else None
        return status, said.out + said.err, found

    return merge


def test_all_shards_of_a_fleet_are_one_verdict(merge):
    status, said, found = merge(part(3), part(1), part(2))
    assert status == found["status"] == 0
    assert "3 engines: 3 may ship" in said
    assert "alarm error of the whole fleet: 1.00%\n" in said
    decisions = [(e["model"], e["precision"], e["decision"]) for e in found["engines"]]
    assert decisions == [("small", precision, "ship") for precision in PRECISIONS]
    assert found["missing"] == found["unjudged"] == []


def test_the_json_is_what_its_schema_says(merge):
    schema = json.loads((ROOT / "docs/fleet.schema.json").read_text())
    for reports in ((part(1), part(2), part(3)), (whole(), whole(machine=OTHER))):
        jsonschema.validate(merge(*reports)[2], schema)
    sampled = (engine(), engine(machine=OTHER))
    jsonschema.validate(merge(*sampled)[2], schema)


def test_the_page_the_comment_and_the_text(merge, tmp_path):
    slow = [result("bf16", speeds=(speed(1, 1.19, judgement=SLOWER),))]
    files = ("--html", "fleet.html", "--markdown", "fleet.md", "--text")
    reports = (part(1), part(2, results=slow, failures=["regressed"]))
    status, said, _ = merge(*reports, arguments=files)
    assert status == 11
    page, comment = ((tmp_path / f"fleet.{kind}").read_text() for kind in ("html", "md"))
    for text in (page, comment, said):
        assert "2 engines: 1 may ship and 1 blocked; 1 part missing" in text
        assert "missing: shard 3 of 3: small int8" in text
    assert "| small bf16 |" in comment
    assert "19.2 % slower" in said


SLOWER = Judgement(Verdict.REGRESSED, ("19.2 % slower (+5.7 … +27.3 %), limit 5.0%",))


def test_decisions_are_those_of_each_run(merge):
    """The same as `enginegate report` gives for that run alone."""
    status, _, found = merge(whole(run(), failures=["fail", "regressed"]))
    assert status == 10
    assert {(e["model"], e["precision"]): e["decision"] for e in found["engines"]} == {
        ("small", "fp32"): "ship",
        ("small", "bf16"): "hold",
        ("small", "int8"): "block",
        ("other", "fp32"): "block",
        ("other", "bf16"): "hold",
    }


@pytest.mark.parametrize(
    ("failures", "status"),
    [
        ((["regressed"], []), 11),
        ((["regressed"], ["fail"]), 10),
        ((["undecided"], ["error"]), 12),
        (([""], ["fail"]), 1),
    ],
)
def test_the_status_is_the_gravest_of_the_runs(merge, failures, status):
    reports = [part(n, failures=f) for n, f in zip((1, 2, 3), (*failures, []), strict=True)]
    assert merge(*reports)[0] == status


def test_a_missing_shard_is_named_and_fails(merge):
    status, said, found = merge(part(1), part(3))
    assert status == 12
    assert found["missing"] == ["missing: shard 2 of 3: small bf16"]
    assert found["missing"][0] in said
    assert found["alarm"] == pytest.approx(0.01)


def test_a_missing_kind_of_machine_is_counted(merge):
    status, _, found = merge(*(part(n, kinds=2) for n in (1, 2, 3)))
    assert status == 12
    assert found["missing"] == ["missing: all shards of 1 of 2 kinds of machines"]


def test_an_engine_that_its_shard_did_not_judge_is_named(merge):
    _, said, found = merge(part(1), part(2, results=[]), part(3))
    assert found["unjudged"] == ["not judged: small bf16 of shard 2 of 3"]
    assert "not judged: small bf16" in said


def test_a_stopped_shard_holds_its_engines_and_is_no_success(merge):
    stopped = part(2, interrupted="SIGTERM")
    status, said, found = merge(part(1), stopped, part(3))
    assert status == 2
    assert "INTERRUPTED: b.json (SIGTERM)" in said
    assert [e["decision"] for e in found["engines"]] == ["ship", "hold", "ship"]


def test_a_decision_per_kind_of_machine(merge):
    slow = [result("fp32", speeds=(speed(1, 1.19, judgement=SLOWER),))]
    there = [part(n, OTHER, kinds=2, kind="arm") for n in (2, 3)]
    there.append(part(1, OTHER, 2, kind="arm", results=slow, failures=["regressed"]))
    here = [part(n, kinds=2, kind="x86") for n in (1, 2, 3)]
    status, _, found = merge(*here, *there)
    assert status == 11
    assert found["alarm"] == pytest.approx(0.01)
    decisions = {(e["kind"], e["precision"]): e["decision"] for e in found["engines"]}
    assert decisions["arm", "fp32"] == "block"
    assert decisions["x86", "fp32"] == "ship"
    assert len(decisions) == 6


@pytest.mark.parametrize("shares", [1, 2])
def test_an_error_that_was_not_shared_is_told(merge, shares):
    """Two kinds of machines, and the shards were told of so many."""
    reports = [
        part(n, machine, shares, kind=kind)
        for machine, kind in ((MACHINE, "x86"), (OTHER, "arm"))
        for n in (1, 2, 3)
    ]
    _, said, found = merge(*reports)
    assert found["alarm"] == pytest.approx(0.02 / shares)
    assert ("did not share it" in said) is (shares == 1)


def test_whole_runs_of_two_machines_say_what_error_they_make(merge):
    status, said, found = merge(whole(), whole(machine=OTHER))
    assert status == 0
    assert found["alarm"] == 0.02
    assert "2.00%, more than the 1% of one run" in said


def test_a_report_given_twice_counts_once(merge):
    status, _, found = merge(part(1), part(2), part(2), part(3))
    assert status == 0
    assert len(found["reports"]) == 3


OTHER_PLAN = {"models": ["small"], "precisions": ["fp32"]}
SLOW = [result("bf16", speeds=(speed(1, 1.01),))]
REFUSED = {
    "another commit": (
        part(2, origin={**ORIGIN, "commit": "d" * 40}),
        "the commit was c0ffee0000, is dddddddddd",
    ),
    "another base": (
        part(2, origin={**ORIGIN, "base": "d" * 40}),
        "the base was ba5e000000, is dddddddddd",
    ),
    "other limits": (
        part(2, allowed={"p50": 0.5, "p99": 0.1}),
        "the limits were p50 0.05, p99 0.1, are p50 0.5, p99 0.1",
    ),
    "another plan": (
        part(2, shard=shard(2, plan="d" * 64, asked=OTHER_PLAN)),
        "another plan: precisions was fp32,bf16,int8, is fp32",
    ),
    "another split": (
        part(2, shard=shard(2, plan="d" * 64)),
        "another plan: its hash was cccccccccc, is dddddddddd",
    ),
    "another number of shards": (part(2, shard=shard(2, 4)), "count was 3, is 4"),
    "another number of kinds": (part(2, shard=shard(2, kinds=2)), "kinds was 1, is 2"),
    "a whole run": (whole([result("bf16")]), "one is a shard, the other a whole run"),
    "the same shard with other results": (
        part(1, results=[result("fp32", speeds=(speed(1, 1.01),))]),
        "shard 1 of 3 is in a.json and in b.json, with other results: give one of them",
    ),
    "an engine of another shard": (
        part(2, results=[result("fp32")]),
        "small fp32 is in a.json and in b.json, with other results",
    ),
    "another schema": (part(2, schema=3), "b.json has schema 3, of an older version"),
    "a newer schema": (part(2, schema=5), "b.json has schema 5, this version reads 4"),
    "no end": (
        {k: v for k, v in part(2).items() if k != "failures"},
        "b.json does not say how its run ended",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_does_not_fit_is_refused_with_one_sentence(merge, fault):
    spoiled, why = REFUSED[fault]
    status, said, found = merge(part(1), spoiled, part(3))
    assert status == 1
    assert found is None
    assert why in said
    assert len(said.splitlines()) == 1


def test_the_same_machine_twice_with_other_results_is_refused(merge):
    status, said, _ = merge(whole(), whole([result("fp32", speeds=(speed(1, 1.01),))]))
    assert status == 1
    assert f"small fp32 on {MACHINE.id} is in a.json and in b.json" in said


# Embeddings between machines


def engine(vectors=VECTORS, machine=MACHINE, recipe=RECIPE, precision="int8", **other):
    judged = replace(
        accuracy(), sample=sample_of(vectors), limits=DEFAULT_LIMITS[Precision(precision)]
    )
    made = Provenance(recipe, "entry", "d" * 64, "")
    return whole([result(precision, accuracy=judged, provenance=made)], machine, **other)


def turned(vectors, amount):
    rng = np.random.default_rng(1)
    return vectors + amount * rng.standard_normal(vectors.shape).astype("f4")


def test_the_same_embeddings_on_two_machines(merge):
    status, said, found = merge(engine(), engine(turned(VECTORS, 1e-3), OTHER))
    assert status == 0
    (pair,) = found["machines"]
    assert pair["broken"] == []
    assert pair["cosine_worst"] > 0.9999
    assert "other embeddings" not in said


@pytest.mark.parametrize(
    ("vectors", "names"),
    [
        (turned(VECTORS, 0.7), "cosine_worst"),
        (1.1 * VECTORS, "gain_error"),
        (VECTORS[::-1], "cosine_worst"),
    ],
)
def test_embeddings_that_differ_between_machines_are_named_and_hold(merge, vectors, names):
    status, said, found = merge(engine(), engine(vectors, OTHER))
    assert status == 10
    assert re.search(rf"small int8: .* and .* give other embeddings: .*{names}", said)
    assert [e["decision"] for e in found["engines"]] == ["hold", "hold"]
    assert {e["reason"] for e in found["engines"]} == {"its embeddings differ between machines"}


def test_each_precision_has_its_own_limit(merge):
    apart = turned(VECTORS, 3e-3)
    for precision, status in (("fp32", 10), ("bf16", 0), ("int8", 0)):
        recipe = {**RECIPE, "precision": precision}
        reports = (
            engine(recipe=recipe, precision=precision),
            engine(apart, OTHER, recipe, precision),
        )
        assert merge(*reports)[0] == status, precision


@pytest.mark.parametrize("other", [{**RECIPE, "runtime": "2025.1"}, {}])
def test_engines_of_other_recipes_are_not_compared(merge, other):
    status, _, found = merge(engine(), engine(-VECTORS, OTHER, other))
    assert status == 0
    assert found["machines"] == []


def test_a_damaged_sample_is_refused(merge):
    spoiled = engine(machine=OTHER)
    spoiled["kind"] = "~"
    spoiled["results"][0]["accuracy"]["sample"]["float32"] = "AAAA"
    status, said, _ = merge(engine(), spoiled)
    assert status == 1
    assert "the embeddings of small int8 in a.json and b.json cannot be compared" in said


@pytest.mark.parametrize(("dims", "texts"), [(4, 8), (1024, 8), (4096, 2), (100_000, 2)])
def test_a_sample_is_small_and_exact(dims, texts):
    vectors = np.random.default_rng(0).standard_normal((256, dims)).astype("f4")
    sample = sample_of(vectors)
    assert len(sample.texts) == texts
    assert (sample.texts[0], sample.texts[-1]) == (0, 255)
    deltas, broken = disagreement(sample, sample, DEFAULT_LIMITS[Precision.FP32])
    assert deltas.max_abs == 0
    assert broken == ()


def test_a_sample_of_few_texts_has_each_once():
    assert sample_of(VECTORS[:3]).texts == (0, 1, 2)
    assert isinstance(sample_of(VECTORS[:1]), Sample)
