"""Records of a run: what was asked, what ran, how far off, how fast, and what is said of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from enginegate.accuracy import Deltas, Limits
from enginegate.blame.search import Blamed, Repair
from enginegate.cliffs import Analysis
from enginegate.gpu.phases import GpuTimes
from enginegate.levels import Capacity, Deployment, Level, OpenLevel
from enginegate.profiles import Kernel
from enginegate.quality.retrieval import Retrieval
from enginegate.quality.stability import Determinism, Invariance
from enginegate.quality.sts import Sts
from enginegate.quality.worst import WorstText
from enginegate.stats import Change
from enginegate.variants import Variant
from enginegate.verdict import Judgement
from enginegate.words import Verdict

_COMPARED = (Verdict.PASS, Verdict.IMPROVED, Verdict.UNDECIDED, Verdict.REGRESSED)


@dataclass(frozen=True)
class Context:
    """What every figure of a model goes with.

    Attributes:
        weights: origin; starts with `seeded` if any weight is.
        tokenizer: `tokenizer.json` or `hashed words`.
        workload: name of the texts.
        workload_sha256: hash of the tokens.
        texts: number of evaluation texts.
        seq_len: tokens per text.
        model_sha256: hash of the ONNX file.
        reference: runtime of the reference.
        threads: threads each engine may use.
        method: how times are taken; figures of two methods are not compared.
        against: what it was measured beside instead of the reference; empty for the reference.
        deployment: how a server runs it; empty for an engine in this process.
    """

    weights: str
    tokenizer: str
    workload: str
    workload_sha256: str
    texts: int
    seq_len: int
    model_sha256: str
    reference: str
    threads: int
    method: str
    against: str
    deployment: str = ""


@dataclass(frozen=True)
class Accuracy:
    """What is known of the embeddings of one variant.

    Attributes:
        deltas: None where the embeddings were not sane; nothing else is known then.
        limits: how far they may be off.
        judgement: on the deltas and the rankings.
        cosines: of each text's two vectors, in the order of the texts.
        retrieval: what a search finds by them.
        worst_texts: the texts that lost most.
        sts: agreement with labelled pairs; None without --sts, and of a served engine.
        invariance: whether an embedding depends on its batch; None for a served engine.
        determinism: whether the same input gives the same; None for a served engine.
    """

    deltas: Deltas | None
    limits: Limits
    judgement: Judgement
    cosines: tuple[float, ...] = ()
    retrieval: Retrieval | None = None
    worst_texts: tuple[WorstText, ...] = ()
    invariance: Invariance | None = None
    determinism: Determinism | None = None
    sts: Sts | None = None

    @property
    def faults(self) -> tuple[str, ...]:
        """Why it may not ship; empty if it may."""
        judged = self.judgement.reasons if self.judgement.verdict is Verdict.FAIL else ()
        unstable = self.invariance.broken if self.invariance else ""
        return (*judged, unstable) if unstable else judged


@dataclass(frozen=True)
class Load:
    """What a served engine carries, judged.

    Attributes:
        server: what served it.
        deployment: how.
        driver: what made the load.
        difference: largest difference of a served embedding to the one in this process.
        levels: of the closed loop, by concurrency.
        analysis: where they break and where they are saturated.
        open_levels: of the open loop.
        capacity: None where none was sought.
        judgement: on cliffs and capacity against the baseline.
    """

    server: str
    deployment: Deployment
    driver: str
    difference: float
    levels: tuple[Level, ...]
    analysis: Analysis
    open_levels: tuple[OpenLevel, ...]
    capacity: Capacity | None
    judgement: Judgement

    @property
    def largest_per_s(self) -> float:
        """Largest throughput of its levels, texts per second."""
        return max(level.throughput_per_s for level in self.levels)


@dataclass(frozen=True)
class Speed:
    """Timings of one variant at one batch size, judged.

    Attributes:
        batch: texts per call; of a served engine the requests outstanding, one text each.
        calls: timed calls of the engine.
        p50_s: median of one call.
        p99_s: lower end, estimate and upper end of the 99th percentile; None under 459 calls.
        texts_per_s: batch / p50_s; of a served engine batch / mean, by Little's law.
        yardstick_p50_s: median call of what it was timed beside.
        log_ratios: log(engine / yardstick) of each replicate, by metric.
        blocks, disturbed: mirrored blocks, and by what each disturbed one was disturbed.
        change, judgement: of the median against the baseline.
        tail_change, tail_judgement: of the p99.
    """

    batch: int
    calls: int
    p50_s: float
    p99_s: tuple[float, float, float] | None
    texts_per_s: float
    yardstick_p50_s: float
    log_ratios: Mapping[str, Sequence[float]]
    blocks: int
    disturbed: tuple[str, ...]
    change: Change | None
    judgement: Judgement
    tail_change: Change | None = None
    tail_judgement: Judgement | None = None

    @property
    def yardstick_ratio(self) -> float:
        """Time of the yardstick / time of the engine; above 1 is faster."""
        return self.yardstick_p50_s / self.p50_s

    @property
    def verdict(self) -> Verdict:
        """That of the median, unless the p99 regressed."""
        tail = self.tail_judgement
        if tail and tail.verdict is Verdict.REGRESSED and self.judgement.verdict in _COMPARED:
            return Verdict.REGRESSED
        return self.judgement.verdict


@dataclass(frozen=True)
class Result:
    """All that is known of one variant after the run.

    Attributes:
        variant: what was asked for.
        context: what its figures go with.
        backend: runtime and version that ran it.
        chosen: the precision that `best` took; else the one asked for.
        executed: matrix multiplications by the element type they ran in.
        ran: the same in words.
        flags: why it is not exactly what was asked for.
        notes: what else to say about how it came to be.
        size_bytes: size of the engine's files.
        accuracy: None until compared.
        speeds: by batch size, of a served engine by concurrency.
        load: what a served engine carries; None until loaded.
        blame: layers by what repairing each gives back; None where that was not sought.
        repair: layers kept in fp32 so that it is within its limits; None where none were sought.
        time_share: of its time by the element type computed in, largest first; None if not known.
        states: what else decides what it computes: providers, denormals, TF32, AMX.
        kernels: the operations that take most of its time.
        gpu: phases of its calls on a GPU; None for an engine elsewhere.
    """

    variant: Variant
    context: Context
    backend: str
    chosen: str
    executed: Mapping[str, int]
    ran: str
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    size_bytes: int
    accuracy: Accuracy | None = None
    speeds: tuple[Speed, ...] = ()
    load: Load | None = None
    blame: tuple[Blamed, ...] | None = None
    repair: Repair | None = None
    time_share: Mapping[str, float] | None = None
    states: Mapping[str, str] = field(default_factory=dict)
    kernels: tuple[Kernel, ...] = ()
    gpu: GpuTimes | None = None

    @property
    def cell(self) -> str:
        """What its speeds are by: `batch` or `concurrency`."""
        return "concurrency" if self.variant.served else "batch"

    @property
    def embedding_verdict(self) -> Verdict:
        """Verdict on the embeddings, and on whether they depend on their batch."""
        return Verdict.FAIL if self.accuracy and self.accuracy.faults else self.delta_verdict

    @property
    def delta_verdict(self) -> Verdict:
        """Verdict on the embeddings; flagged also where something else ran than was asked for."""
        if self.accuracy is None:
            return Verdict.NOT_MEASURED
        if self.accuracy.judgement.verdict is Verdict.PASS and self.flags:
            return Verdict.FLAGGED
        return self.accuracy.judgement.verdict

    @property
    def embeddings_passed(self) -> bool:
        """Whether its embeddings may ship; only then may it become a baseline."""
        return self.embedding_verdict in (Verdict.PASS, Verdict.FLAGGED)

    @property
    def speed_verdict(self) -> Verdict:
        """The gravest verdict over the batch sizes, or of a served engine over all of its load."""
        order = [
            Verdict.INVALID,
            Verdict.REGRESSED,
            Verdict.UNDECIDED,
            Verdict.INCOMPARABLE,
            Verdict.NO_BASELINE,
            Verdict.PASS,
            Verdict.IMPROVED,
        ]
        found = {speed.verdict for speed in self.speeds}
        if self.load and (not found or self.load.judgement.verdict is not Verdict.PASS):
            found.add(self.load.judgement.verdict)
        return next((verdict for verdict in order if verdict in found), Verdict.NOT_MEASURED)
