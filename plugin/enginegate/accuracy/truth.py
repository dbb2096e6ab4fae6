"""Is the reference the model? Its embeddings beside those that the model's own authors compute."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from enginegate.accuracy.deltas import Array, Deltas, compare, cosines_of
from enginegate.accuracy.limits import limits_for
from enginegate.accuracy.views import first_numbers, has_unit_length
from enginegate.errors import EmbeddingError
from enginegate.models import TABLE_SAYS
from enginegate.variants import Precision
from enginegate.verdicts import Judgement, Verdict

NO_TRUTH = "the file is taken as the model: no `truth` in its table"

# Both are fp32, of the same weights and texts; they differ by runtime, kernels of attention, and
# padding. Reached: 0.9999998 and 3.1e-6 of the largest value. An export is compared with torch by
# the same 1e-4.
COSINE_WORST = 0.99999
MAX_ABS_RELATIVE = 1e-4


@dataclass(frozen=True)
class Nearness:
    """How near a reference must be to its truth.

    Attributes:
        cosine_worst: smallest allowed cosine of a text's two vectors.
        max_abs_relative: largest allowed difference, as a share of the truth's largest value.
        precision: that of a file which is rounded already, whose limits these are; None for fp32.
    """

    cosine_worst: float = COSINE_WORST
    max_abs_relative: float = MAX_ABS_RELATIVE
    precision: Precision | None = None

    @property
    def words(self) -> str:
        """Whose limits they are; empty for those of two runtimes in fp32."""
        return f", by the limits of {self.precision}, as the file is" if self.precision else ""


_FP32 = Nearness()
Compare = Callable[[Array, Array], Deltas]


def nearness_for(precision: Precision, own: Mapping[str, Mapping[str, float]]) -> Nearness:
    """How near a file of this precision must be; `own` are the limits of the model's table."""
    if precision is Precision.FP32:
        return _FP32
    limits = limits_for(precision, own)
    return Nearness(limits.cosine_worst, limits.max_abs_relative, precision)


@dataclass(frozen=True)
class AgainstTruth:
    """The reference of a model beside its truth.

    Attributes:
        judgement: `not measured` where the file is taken as the model.
        by: the way the truth was computed; empty without one.
        cosine_worst: smallest cosine of a text's two vectors; None where they have other widths.
        max_abs_relative: largest difference, as a share of the truth's largest value; likewise.
        cause: why it is not the model, found by trying; empty for none.
        notes: where the table of the model overrules its own files, and what they do not state.
    """

    judgement: Judgement
    by: str = ""
    cosine_worst: float | None = None
    max_abs_relative: float | None = None
    cause: str = ""
    notes: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[str, ...]:
        """Reasons why no engine of the model may ship; empty if there is none."""
        return self.judgement.reasons if self.judgement.verdict is Verdict.FAIL else ()

    @property
    def text(self) -> str:
        """All of it in a line."""
        return self.beside(())

    def beside(self, overruled: Collection[str]) -> str:
        """All of it in a line, but for what is told elsewhere of what the table overrules."""
        notes = (n for n in self.notes if n.removeprefix(TABLE_SAYS) not in overruled)
        return "; ".join((*self.judgement.reasons, *notes))


def taken_as_model() -> AgainstTruth:
    """What is said of an `.onnx` file without a truth."""
    return AgainstTruth(Judgement(Verdict.NOT_MEASURED, (NO_TRUTH,)))


def apart(found: Array, truth: Array, near: Nearness = _FP32, compared: Compare = compare) -> float:
    """How far embeddings of the same texts are apart: 0 for the same, at most 1 within `near`.

    The largest difference and the worst cosine, each as a multiple of its limit, whichever is
    more; infinite where they cannot be compared.
    """
    try:
        deltas = compared(found, truth)
    except EmbeddingError:
        return float("inf")
    turned = (1 - deltas.cosine_worst) / (1 - near.cosine_worst)
    return max(deltas.max_abs_relative / near.max_abs_relative, turned)


def against_truth(
    reference: Array,
    truth: Array,
    by: str,
    notes: Sequence[str] = (),
    near: Nearness = _FP32,
    compared: Compare = compare,
) -> AgainstTruth:
    """Judge the reference's embeddings by the truth's, both [texts, dim] of the same texts.

    `compared` gives the deltas of the first to the second.
    """
    if reference.shape != truth.shape:
        found, wanted = reference.shape[-1], truth.shape[-1]
        said = f"the reference is not the model: {found} dimensions instead of {wanted}, by {by}"
        return AgainstTruth(Judgement(Verdict.FAIL, (said,)), by, notes=tuple(notes))
    deltas = compared(reference, truth)
    passed = apart(reference, truth, near, compared) <= 1
    figures = f"worst cosine {deltas.cosine_worst:.6f}, by {by}{near.words}"
    if not passed:
        figures += (
            f", largest difference {deltas.max_abs_relative:.2g} of the largest value "
            f"(limits {near.cosine_worst:g} and {near.max_abs_relative:g})"
        )
    verdict, word = (Verdict.PASS, "is") if passed else (Verdict.FAIL, "is not")
    return AgainstTruth(
        judgement=Judgement(verdict, (f"the reference {word} the model: {figures}",)),
        by=by,
        cosine_worst=deltas.cosine_worst,
        max_abs_relative=deltas.max_abs_relative,
        notes=tuple(notes),
    )


def at_dims(
    found: AgainstTruth,
    reference: Array,
    truth: Array,
    dims: Sequence[int],
    near: Nearness = _FP32,
) -> AgainstTruth:
    """The same, FAIL where the reference is not the model in its first numbers.

    `found` passed; both are [texts, dim].
    """
    unit = has_unit_length(truth)
    for dim in dims:
        first = first_numbers(reference, dim, unit=unit)
        own = first_numbers(truth, dim, unit=unit)
        judged = against_truth(first, own, found.by, near=near).judgement
        if judged.verdict is Verdict.FAIL:
            said = tuple(f"in its first {dim} dimensions {reason}" for reason in judged.reasons)
            return replace(found, judgement=Judgement(Verdict.FAIL, said))
    also = f", also in its first {', '.join(map(str, dims))} dimensions" if dims else ""
    said = tuple(reason + also for reason in found.judgement.reasons)
    return replace(found, judgement=replace(found.judgement, reasons=said))


def telling_rows(reference: Array, truth: Array, count: int) -> Sequence[int]:
    """Texts to look for a cause by: half of them those that differ most, half from all over."""
    every = len(truth)
    spread = np.linspace(0, every - 1, min(count // 2, every)).astype(int)
    worst = np.arange(0)
    if reference.shape == truth.shape:
        worst = np.argsort(cosines_of(reference, truth))[: count // 2]
    return sorted({*map(int, spread), *map(int, worst)})
