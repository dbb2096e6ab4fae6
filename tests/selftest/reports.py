"""Results as a run records them, without running anything, and their JSON report."""

import dataclasses
import json
import math

from enginegate.accuracy.deltas import Deltas
from enginegate.accuracy.judge import Accuracy
from enginegate.accuracy.limits import DEFAULT_LIMITS
from enginegate.config.serving import Deployment
from enginegate.machine.fingerprint import Machine
from enginegate.report.saved_run import render_json
from enginegate.results import Context, Result
from enginegate.serving.analysis.cliffs import analyse
from enginegate.serving.records import Breakdown, Latency, Level, Load
from enginegate.speed.records import Speed
from enginegate.speed.stats import Change
from enginegate.variants import Precision, Variant
from enginegate.verdicts import Judgement, Verdict

MACHINE = Machine("Test CPU 1/2/3", 2, ("avx2",), "linux-x86_64")
CONDITION = {
    "load_1min": 0.1,
    "memory_pressure": None,
    "frequency_khz": None,
    "governor": None,
    "affinity": [0, 1],
}
ORIGIN = {
    "date": "2026-01-02T03:04:05+00:00",
    "enginegate": "0.1.0",
    "commit": "c0ffee" + 34 * "0",
    "branch": "faster-int8",
    "changed": False,
    "base": "ba5e" + 36 * "0",
    "commits_url": "https://github.com/acme/engines/commit/",
}
PASS = Judgement(Verdict.PASS)
LOGS = (-0.5, -0.52, -0.49, -0.51)


def context(**other):
    fields = {
        "weights": "from model.onnx",
        "tokenizer": "tokenizer.json",
        "workload": "python documentation",
        "workload_sha256": "a" * 64,
        "texts": 256,
        "seq_len": 8,
        "model_sha256": "b" * 64,
        "reference": "onnxruntime 1.32.0 fp32",
        "threads": 1,
        "method": "mirrored blocks",
        "against": "",
    }
    return Context(**{**fields, **other})


def change(ratio=1.0, **other):
    ends = {"low": 0.98 * ratio, "high": 1.02 * ratio, "evidence": 1.0, "visible": 0.07}
    return Change(ratio, **{**ends, **other})


def speed(batch, ratio=1.0, **other):
    fields = {"change": change(ratio), "judgement": PASS, "log_ratios": {"p50": LOGS}}
    fields |= {"p99_s": None, "disturbed": ()}
    return Speed(
        batch=batch,
        calls=500,
        p50_s=1e-3 * batch,
        texts_per_s=1e3,
        yardstick_p50_s=1.6e-3 * batch,
        blocks=4,
        **{**fields, **other},
    )


def accuracy(cosine=0.9999, verdict=Verdict.PASS, reasons=()):
    deltas = Deltas(1e-2, 1e-3, 2.0, cosine, cosine, 1.0, 3)
    limits = DEFAULT_LIMITS[Precision.BF16]
    return Accuracy(deltas, limits, Judgement(verdict, reasons))


def result(precision="fp32", model="small", **other):
    served = "load" in other
    fields = {"accuracy": accuracy(), "speeds": () if served else (speed(1), speed(8))}
    return Result(
        variant=Variant(model, "openvino", Precision(precision), served),
        context=other.pop("context", context()),
        backend="openvino 2026.4.1",
        chosen=precision if precision != "best" else "bf16",
        executed={"f32": 4},
        ran="f32",
        flags=other.pop("flags", ()),
        notes=(),
        size_bytes=40_348,
        **{**fields, **other},
    )


def level(concurrency, per_s, queue_s=1e-4, delay=1.0):
    mean_s = concurrency / per_s
    parts = Breakdown(1e-4, queue_s, 1e-5, max(1e-5, mean_s - queue_s - 2.2e-4), 1e-5)
    latency = Latency(mean_s, mean_s, 1.1 * mean_s, 1.2 * mean_s, 1.5 * mean_s, 2 * mean_s)
    return Level(concurrency, per_s, latency, "own", 500, 2.0, parts, {1: 500}, 0.2, 0.9, 1.05)


def load(levels=None, deployment=Deployment()):  # noqa: B008 - frozen
    found = levels or tuple(level(n, 1000 * n / (1 + 0.2 * n)) for n in (1, 2, 4, 8, 16))
    analysis = analyse(found, deployment)
    return Load("triton", deployment, "own", 0.0, found, analysis, (), None, PASS)


def cliff():
    """A sweep whose requests wait for a delay of 10 ms between 2 and 8."""
    waiting = tuple(level(n, 100.0 * n, queue_s=9.2e-3) for n in (2, 4, 8))
    levels = (level(1, 900.0), *waiting, level(16, 5000.0), level(32, 5200.0))
    return load(levels, Deployment(32, (16,), 10_000))


def run():
    """A run with every kind of decision, served and in process, two models."""
    wrong = accuracy(0.8, Verdict.FAIL, ("cosine_worst 0.8 < 0.9",))
    slower = Judgement(Verdict.REGRESSED, ("19.2 % slower (+5.7 … +27.3 %), limit 5.0%",))
    endless = change(1.1, high=math.inf, visible=math.inf)
    unsure = Judgement(Verdict.UNDECIDED, ("holds the limit",))
    return [
        result("fp32"),
        result("bf16", accuracy=accuracy(0.999), flags=("f32 ran too",)),
        result("int8", accuracy=wrong, speeds=()),
        result("fp32", load=load(), context=context(deployment="max batch 32")),
        result("bf16", load=cliff(), context=context(deployment="max batch 32, delay 10000 us")),
        result("fp32", "other", speeds=(speed(1, 1.19, judgement=slower),)),
        result("bf16", "other", speeds=(speed(1, change=endless, judgement=unsure),)),
    ]


def report(results=None, **other):
    """The JSON report, as an object."""
    found = run() if results is None else results
    text = render_json(found, MACHINE, CONDITION, 7, {"p50": 0.05, "p99": 0.1}, {}, {})
    return {**json.loads(text), **other}


def write_report(path, results=None, **other):
    path.write_text(json.dumps(report(results, **other)))
    return path


def renamed(found, model):
    """The same results of a model of another name."""
    return [
        dataclasses.replace(x, variant=dataclasses.replace(x.variant, model=model)) for x in found
    ]
