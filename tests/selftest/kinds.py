"""A run that holds every kind of result which a report words in its own way."""

import dataclasses
import math

from enginegate.accuracy.bootstrap import Interval
from enginegate.accuracy.judge import Accuracy
from enginegate.accuracy.labels import NdcgChange, Sts
from enginegate.accuracy.limits import DEFAULT_LIMITS
from enginegate.accuracy.retrieval import FalseNeighbour, Retrieval, WorstText
from enginegate.accuracy.stability import Determinism, Invariance, Offender
from enginegate.accuracy.truth import AgainstTruth
from enginegate.accuracy.views import Viewed
from enginegate.config.serving import Arrivals, Deployment, Slo
from enginegate.diagnostics.layers.repair import Repair, Step
from enginegate.diagnostics.layers.search import Blamed
from enginegate.engines.api import Phases
from enginegate.engines.measure import GpuTimes
from enginegate.engines.profile import Kernel
from enginegate.serving.records import Capacity, Latency, OpenLevel, SearchEnd
from enginegate.variants import Precision
from enginegate.verdicts import Judgement, Verdict

from .reports import PASS, accuracy, change, cliff, context, load, result, run, speed

NOTES = ("best took fp32", "read from the store")
NEAR = Interval(0.98, 0.97, 0.99)
TAIL = {"p99_s": (0.0021, 0.0024, 0.0031), "tail_change": change(1.3)}
SLOWER_TAIL = Judgement(Verdict.REGRESSED, ("30.0 % slower (+27.4 … +32.6 %), limit 10.0%",))
DEPLOYED = "max batch 32, preferred 16, delay 10000 us, instances 1, threads 1"
OTHER_METHOD = Judgement(Verdict.INCOMPARABLE, ("method was blocks, is mirrored blocks",))
IS_MODEL = AgainstTruth(
    Judgement(Verdict.PASS, ("the reference is the model: worst cosine 1.000000, by encode()",)),
    "encode()",
    1.0,
    2e-6,
    notes=("texts cut at 8 tokens by `seq_len`, not at 256",),
)
IS_NOT = dataclasses.replace(
    IS_MODEL,
    judgement=Judgement(Verdict.FAIL, ("the reference is not the model: it pools by mean",)),
    cause="it pools by mean",
)
NO_BASELINE = Judgement(Verdict.NO_BASELINE, ("none is stored on this machine",))
NEW_CLIFF = Judgement(Verdict.REGRESSED, ("new cliff at concurrency 2 to 8 (200 infer/s)",))


def kinds():
    """Results with every verdict and every part that a result may have."""
    return [*run(), *_quality(), *_speeds(), *_layers(), *_served(), _on_gpu()]


def _quality():
    looser = Judgement(Verdict.FLAGGED, ("within its own looser limits", "cosine_p1 0.98 < 0.99"))
    insane = Judgement(Verdict.FAIL, ("2 embeddings are not finite",))
    limits = DEFAULT_LIMITS[Precision.INT8]
    return [
        dataclasses.replace(result("fp32", "words", accuracy=_rich()), notes=NOTES, truth=IS_MODEL),
        result("bf16", "words", accuracy=_rich(relative=0.5), flags=("f32 ran too",)),
        result(
            "fp16", "words", accuracy=accuracy(0.98, Verdict.FLAGGED, looser.reasons), truth=IS_NOT
        ),
        result("int8", "words", accuracy=Accuracy(None, limits, insane), speeds=()),
        result("best", "words", accuracy=None, speeds=()),
    ]


def _rich(relative=5e-4):
    """What is known of embeddings, with every part; 0.5 depends on its batch."""
    return dataclasses.replace(
        accuracy(0.991),
        cosines=(0.991, 0.999, 0.9995, 1.0),
        retrieval=_retrieval(),
        worst_texts=(WorstText(3, "a text that suffers", 7, 0.991, ("near before",), ()),),
        invariance=_invariance(relative),
        determinism=Determinism(bitwise=False, max_abs=1e-6, rebuilds=(2e-5, 0.0)),
        sts=Sts(0.8, 0.79, 0.9875, 0.97, 1.0, 120),
        views=_views(),
    )


def _views():
    """Embeddings cut and stored: within limits, beyond them, and not comparable."""
    short = Judgement(Verdict.FAIL, ("the engine gave all zeros for 1 texts, first: 3",))
    lost = Judgement(Verdict.FAIL, ("recall_at_10 0.98 (0.97 … 0.99) < 0.995",))
    return (
        Viewed("first 8 of 16 dimensions", PASS, accuracy(0.991).deltas, _retrieval()),
        Viewed("first 2 of 16 dimensions", short),
        Viewed("stored as binary", lost, None, _retrieval()),
    )


def _retrieval():
    wrong = FalseNeighbour("a query", "the right text", "another text")
    gained = NdcgChange(0.51, 0.5, Interval(-0.01, -0.02, 0.001))
    return Retrieval(NEAR, NEAR, NEAR, NEAR, 0.9, "a query", 2, (wrong,), 40, 39, gained)


def _invariance(relative):
    settings = {"alone": 1e-3, "padded": 2 * relative}
    offender = Offender("a text that changes", "padded")
    return Invariance(2 * relative, relative, 0.002, offender, settings, ("large: no memory",))


def _speeds():
    def judged(verdict, ratio=1.0, **other):
        return speed(1, ratio, judgement=Judgement(verdict, ("the reason for it",)), **other)

    disturbed = judged(Verdict.INVALID, disturbed=("load", "frequency, load"))
    endless = speed(1, change=change(1.1, low=0.0, high=math.inf, visible=math.inf))
    regressed_tail = speed(8, **TAIL, tail_judgement=SLOWER_TAIL)
    fair_tail = speed(1, **TAIL, tail_judgement=Judgement(Verdict.PASS))
    none = speed(1, change=None, judgement=NO_BASELINE)
    other = speed(1, change=None, judgement=OTHER_METHOD)
    return [
        result("fp32", "speeds", speeds=(judged(Verdict.IMPROVED, 0.8), speed(8, 0.9))),
        result("bf16", "speeds", speeds=(judged(Verdict.UNDECIDED, 1.06), endless)),
        result("fp16", "speeds", speeds=(fair_tail, regressed_tail)),
        result("int8", "speeds", speeds=(disturbed,)),
        result("fp32", "new", speeds=(none,)),
        result("bf16", "new", speeds=(other,)),
        result("fp16", "new", speeds=(), flags=("int8 asked for", "f32 ran too")),
        result("fp32", "beside", context=context(against="main")),
    ]


def _layers():
    shares = {"time_share": {"i8": 0.9, "f32": 0.08, "f16": 0.01}, "states": {"amx": "on"}}
    kernels = (Kernel("encoder/layer.0/attention", "MatMul", "i8", "brgemm_amx", 0.6),)
    wrong = accuracy(0.8, Verdict.FAIL, ("cosine_worst 0.8 < 0.9",))
    return [
        result("int8", "layers", blame=_blamed(12), repair=_repair(), kernels=kernels, **shares),
        result("bf16", "layers", accuracy=wrong, blame=_blamed(2), repair=_no_repair()),
    ]


def _blamed(count):
    kind = ("MatMul", "Gemm")
    return tuple(
        Blamed(f"encoder/layer.{i}", kind[i % 2], i, 1e-3 / (i + 1), 0.6 - 0.07 * i)
        for i in range(count)
    )


def _repair():
    kept = ("encoder/layer.0", "encoder/layer.1")
    tried = (Step((), 0.0, 3.0, enough=False), Step(kept, 0.9, 2.5, enough=True))
    lines = f'[tool.enginegate.models.layers.keep]\nint8 = ["{kept[0]}", "{kept[1]}"]'
    return Repair(kept, 0.9, 3.0, 2.5, lines, tried)


def _no_repair():
    return Repair((), 0.0, 3.0, 3.0, "", (Step((), 0.0, 3.0, enough=False),))


def _served():
    held, lost = _open_level(500.0, 0.008), _open_level(800.0, 0.03, ("client-bound",))
    slo = Slo("p99", 0.02)
    found = Capacity(slo, SearchEnd.FOUND, 500.0, 800.0, (held, lost))
    endless = Capacity(slo, SearchEnd.CLIENT, 800.0, None, (held,))
    marked = dataclasses.replace(load().levels[0], marks=("unsteady: 1.4",))
    carried = dataclasses.replace(load(), capacity=found, open_levels=(held, lost))
    broken = dataclasses.replace(cliff(), judgement=NEW_CLIFF, capacity=endless)
    unsteady = dataclasses.replace(load(), levels=(marked, *load().levels[1:]))
    plain, waiting = context(deployment="max batch 32"), context(deployment=DEPLOYED)
    return [
        result("fp32", "served", load=carried, context=plain, speeds=(speed(1), speed(16, 0.7))),
        result("bf16", "served", load=_tried(broken), context=waiting, flags=("f32 ran too",)),
        result("int8", "served", load=unsteady, context=plain),
        result("best", "served", load=load(deployment=Deployment(8, (4, 8), 500, 2, 4))),
    ]


def _tried(found):
    """The same load; the advice on its cliffs was tried."""
    cliffs = [
        dataclasses.replace(c, tried_per_s=dict.fromkeys(c.promised_per_s, 1900.0))
        for c in found.analysis.cliffs
    ]
    analysis = dataclasses.replace(found.analysis, cliffs=tuple(cliffs))
    return dataclasses.replace(found, analysis=analysis)


def _open_level(rate_per_s, p99_s, marks=()):
    scheduled = Latency(0.4 * p99_s, 0.3 * p99_s, 0.6 * p99_s, 0.8 * p99_s, p99_s, 2 * p99_s)
    sent = Latency(*(0.5 * value for value in dataclasses.astuple(scheduled)))
    fields = (rate_per_s, Arrivals.POISSON, 0.99 * rate_per_s, scheduled, sent, 900, 2.0)
    return OpenLevel(*fields, client_share=0.3, marks=marks)


def _on_gpu():
    times = GpuTimes(
        "transfers included, CUDA graph on, spinning",
        {8: Phases(2e-5, 8e-4, 1e-5, 5e-5), 1: Phases(1e-5, 3e-4, 1e-5, 4e-5)},
    )
    return result("fp16", "gpu", gpu=times, states={"tf32": "off"})
