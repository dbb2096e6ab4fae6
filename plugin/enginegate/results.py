"""Records of a run: what was asked, what ran, how far off, how fast, and what is said of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from enginegate.accuracy import Accuracy, AgainstTruth
from enginegate.diagnostics import Blamed, Repair
from enginegate.engines import GpuTimes, Kernel, Ranges
from enginegate.models import OutputKind
from enginegate.serving import Load
from enginegate.speed import Speed
from enginegate.variants import Variant
from enginegate.verdicts import Verdict

HASHED = "hashed words"  # a tokenizer that stands for one that was not at hand
FP32_THERE = "fp32 on the same GPU"  # a control
DOUBT = "the reference is in doubt: "  # before notes against it
NOW_UNJUDGED = "and no truth judged it now"  # ends the note on a truth that is lost
_GRAVEST_FIRST = (
    Verdict.INVALID,
    Verdict.REGRESSED,
    Verdict.UNDECIDED,
    Verdict.INCOMPARABLE,
    Verdict.NO_BASELINE,
    Verdict.PASS,
    Verdict.IMPROVED,
    Verdict.IDENTICAL,
)


@dataclass(frozen=True)
class Words:
    """What reports call what a model gives.

    Attributes:
        outputs: all that it gives.
        row: what it gives one for.
        judged, many: what is compared one by one, and several of it.
    """

    outputs: str
    row: str
    judged: str = "text"
    many: str = "texts"


_WORDS = {
    OutputKind.DENSE: Words("embeddings", "text"),
    OutputKind.SPARSE: Words("sparse vectors", "text"),
    OutputKind.MULTI: Words("token vectors", "text"),
    OutputKind.SCORE: Words("scores", "pair", "query", "queries"),
}


@dataclass(frozen=True)
class Context:
    """What every figure of a model goes with.

    Attributes:
        weights: origin; starts with `seeded` if any weight is.
        tokenizer: `tokenizer.json` or `hashed words`.
        workload: name of the texts.
        workload_sha256: hash of the tokens.
        texts: number of evaluation texts.
        seq_len: tokens per text; of buckets those of the longest.
        model_sha256: hash of the ONNX file.
        reference: runtime of the reference.
        threads: threads each engine may use.
        method: how times are taken; figures of two methods are not compared.
        against: what it was measured beside instead of its control; empty for the control.
        control: what engines like this are timed beside; empty for the reference.
        deployment: how a server runs it; empty for an engine in this process.
        limit: tokens that the model itself cuts a text at; None for no limit.
        cut: evaluation texts that were longer than seq_len; None in reports of older versions.
        padding: share of the positions that is padding; None in reports of older versions.
        prompts: what texts begin with, by role: `text`, `query`, `document`.
        overruled: what the model's table says otherwise than its own files do.
        output_kind: what it gives, of OutputKind.
        power_limit: what the driver lets the GPU of the engine draw, `700 W`; empty for engines on
            a processor or a server, where NVML does not tell, and in reports of older versions.
        buckets: where the model's table has `lengths`, tokens of each bucket to the number of its
            texts; empty where all texts have one length.
        timed: batch size to the tokens of the texts that it is timed with; empty as `buckets`.
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
    limit: int | None = None
    cut: int | None = None
    padding: float | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    overruled: tuple[str, ...] = ()
    control: str = ""
    output_kind: str = OutputKind.DENSE
    power_limit: str = ""
    buckets: Mapping[int, int] = field(default_factory=dict)
    timed: Mapping[int, int] = field(default_factory=dict)

    @property
    def timed_beside(self) -> str:
        """What it was timed beside, in words."""
        return self.against or self.control or "the reference"

    @property
    def words(self) -> Words:
        """What reports call what it gives."""
        return _WORDS[OutputKind(self.output_kind)]


@dataclass(frozen=True)
class Provenance:
    """Where an engine comes from.

    Attributes:
        recipe: all that decides what it is but the machine: hash of the model, precision, settings,
            backend, library versions; empty if not all of that is known.
        entry: its name in the cache of the machine that built it.
        sha256: of its files there.
        revision: git commit of the project, `-dirty` at its end where files differed from it; empty
            outside git.
    """

    recipe: Mapping[str, Any]
    entry: str
    sha256: str
    revision: str


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
        flags: why it is not exactly what was asked for, and nobody accepted it.
        accepted: flags that the model's table accepts, each with the reason given there.
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
        provenance: where its engine comes from; None in reports of older versions.
        identical: why it is its baseline's own engine, so that it was not timed; empty if it is
            not, or was timed all the same.
        truth: whether the reference is the model; None in reports of older versions.
        ranges: the model's numbers in fp16; None for an engine that has none in it.
        same_as: precision of an earlier engine of the run whose files it has; empty for none.
        dominated: by which fp32 it is beaten in speed and accuracy, and how far; empty for none.
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
    provenance: Provenance | None = None
    identical: str = ""
    accepted: tuple[str, ...] = ()
    truth: AgainstTruth | None = None
    ranges: Ranges | None = None
    same_as: str = ""
    dominated: str = ""

    @property
    def faults(self) -> tuple[str, ...]:
        """Reasons why its embeddings may not ship: those of its reference, then its own."""
        of_reference = self.truth.faults if self.truth else ()
        return (*of_reference, *(self.accuracy.faults if self.accuracy else ()))

    @property
    def only_beyond_fp16(self) -> bool:
        """Tell if nothing is wrong but numbers that fp16 cannot hold: its embeddings are right."""
        faults = self.accuracy.faults if self.accuracy else ()
        return bool(self.ranges and faults == (self.ranges.fault,))

    @property
    def cell(self) -> str:
        """The key of its speeds: `batch` or `concurrency`."""
        return "concurrency" if self.variant.served else "batch"

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is known against the reference itself, of the notes."""
        return tuple(note for note in self.notes if note.startswith(DOUBT))

    @property
    def embedding_verdict(self) -> Verdict:
        """Verdict on the embeddings, and on whether they depend on their batch."""
        return Verdict.FAIL if self.faults else self.delta_verdict

    @property
    def delta_verdict(self) -> Verdict:
        """Verdict on the embeddings; flagged also where something else ran, or one may doubt.

        FAIL where the reference they are compared with is not the model.
        """
        if self.truth and self.truth.faults:
            return Verdict.FAIL
        if self.accuracy is None:
            return Verdict.NOT_MEASURED
        if self.accuracy.judgement.verdict is Verdict.PASS and (self.flags or self.doubts):
            return Verdict.FLAGGED
        return self.accuracy.judgement.verdict

    @property
    def embeddings_passed(self) -> bool:
        """Tell if its embeddings may ship; only then may it become a baseline."""
        return self.embedding_verdict in (Verdict.PASS, Verdict.FLAGGED)

    @property
    def speed_verdict(self) -> Verdict:
        """The gravest verdict over the batch sizes, or of a served engine over all of its load."""
        found = {speed.verdict for speed in self.speeds}
        if self.identical:
            found.add(Verdict.IDENTICAL)
        if self.load and (not found or self.load.judgement.verdict is not Verdict.PASS):
            found.add(self.load.judgement.verdict)
        return next(
            (verdict for verdict in _GRAVEST_FIRST if verdict in found), Verdict.NOT_MEASURED
        )
