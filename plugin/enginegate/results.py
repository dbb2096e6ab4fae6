"""Records of a run: what was asked, what ran, how far off, how fast, and what is said of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from enginegate.accuracy import Deltas, Limits
from enginegate.stats import Change, Replicate
from enginegate.variants import Variant
from enginegate.verdict import Judgement, Verdict


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


@dataclass(frozen=True)
class Accuracy:
    """Embedding deltas of one variant, judged; no deltas where the embeddings were not sane."""

    deltas: Deltas | None
    limits: Limits
    judgement: Judgement


@dataclass(frozen=True)
class Speed:
    """Timings of one variant at one batch size, judged.

    Attributes:
        batch: texts per call.
        replicates: seconds per call, candidate and reference paired, by replicate.
        p50_s, p99_s: quantiles of one call; p99_s is None under 100 calls.
        texts_per_s: batch / p50_s.
        reference_ratio: time of the reference / time of the engine; above 1 is faster.
        change: against the baseline, or None.
        judgement: verdict on the change.
    """

    batch: int
    replicates: tuple[Replicate, ...]
    p50_s: float
    p99_s: float | None
    texts_per_s: float
    reference_ratio: float
    change: Change | None
    judgement: Judgement


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
        speeds: by batch size.
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

    @property
    def embedding_verdict(self) -> Verdict:
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
        """The gravest verdict over the batch sizes."""
        order = [
            Verdict.REGRESSED,
            Verdict.UNDECIDED,
            Verdict.INCOMPARABLE,
            Verdict.NO_BASELINE,
            Verdict.PASS,
            Verdict.IMPROVED,
        ]
        found = {speed.judgement.verdict for speed in self.speeds}
        return next((verdict for verdict in order if verdict in found), Verdict.NOT_MEASURED)
