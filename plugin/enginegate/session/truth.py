"""The reference of a model judged by its truth, and the cause where it is not the model."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from enginegate.accuracy import (
    AgainstTruth,
    Nearness,
    against_truth,
    apart,
    at_dims,
    multi_cause,
    nearness_for,
    outputs_of,
    score_cause,
    taken_as_model,
    telling_rows,
)
from enginegate.cache import Store
from enginegate.engines import Embeddings
from enginegate.models import (
    POOLINGS,
    Exported,
    ModelSpec,
    Say,
    Truth,
    Workload,
    find_cause,
    find_pooling,
    ids_and_mask,
    parts_of,
    pooling_words,
    states_pooling,
    take,
    truth_key,
    truth_of,
)
from enginegate.variants import Precision
from enginegate.verdicts import Judgement, Verdict

if TYPE_CHECKING:
    from enginegate.session import Session
    from enginegate.session.preparation import Reference

_RECIPE = 1  # raise when a cause or a pooling would be found otherwise
_TEXTS = 16  # a cause is sought by; each of about 50 changes embeds them all


def judged_reference(session: "Session", model: Exported, workload: Workload) -> "Reference":
    """The model's reference; recorded whether it is the model, by which no engine may ship else."""
    found = session.prepare.reference(model, workload)
    session.recorder.judge_reference(model.spec.name, found.truth, found.doubts)
    return found


def judged_by_truth(
    spec: ModelSpec,
    store: Store,
    workload: Workload,
    reference: Embeddings,
    progress: Callable[[str], AbstractContextManager[Say]],
    precision: Precision = Precision.FP32,
) -> AgainstTruth:
    """The reference's embeddings [texts, dim] beside the truth's. Raises ModelError.

    `precision` is that of a ready file, by whose limits it is judged.
    """
    sought = _Sought(spec, store, workload, reference, nearness_for(precision, spec.limits))
    with progress(f"truth of {spec.name}"):
        truth = sought.truth()
    if truth is None:
        return taken_as_model()
    outputs = outputs_of(workload)
    outputs.sane(truth.embeddings, f"the truth of {spec.name}")
    given = (reference, truth.embeddings, truth.by, truth.notes, sought.near)
    found = against_truth(*given, outputs.compare)
    if found.judgement.verdict is not Verdict.FAIL:
        return at_dims(found, reference, truth.embeddings, spec.dims, sought.near)
    with progress(f"why the reference of {spec.name} is not the model"):
        cause = sought.cause(truth)
    reasons = tuple(f"{reason}: {cause}" for reason in found.judgement.reasons)
    return replace(found, cause=cause, judgement=Judgement(Verdict.FAIL, reasons))


@dataclass(frozen=True)
class _Sought:
    """A truth to be found for a reference, or why there is none; both kept in the store."""

    spec: ModelSpec
    store: Store
    workload: Workload
    reference: Embeddings
    near: Nearness

    def truth(self) -> Truth | None:
        """The truth; pooled as the reference is where nothing states how, which it says."""
        if states_pooling(self.spec, self.store):
            return truth_of(self.spec, self.store, self.workload)
        found = self._kept("pooling", self._pooling)
        truth = truth_of(replace(self.spec, **found), self.store, self.workload)
        return truth and replace(truth, notes=(*truth.notes, _pooled(found)))

    def cause(self, truth: Truth) -> str:
        """The cause why the reference is not the truth, in words."""
        return str(self._kept("cause", lambda: {"text": self._cause(truth)})["text"])

    def _kept(self, kind: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `find` finds, found once for the same model, texts, tokens and reference."""
        known = truth_key(self.spec, self.store, self.workload)
        if known is None:
            return find()
        vectors = np.ascontiguousarray(self.reference, "<f4")
        key = {
            "recipe": _RECIPE,
            "truth": known,
            "tokens": self.workload.sha256,
            "reference": hashlib.sha256(vectors.tobytes()).hexdigest(),
            "near": asdict(self.near),
        }
        return dict(self.store.get_or_build(kind, key, lambda _folder: find()).properties)

    def _apart(self, found: Embeddings, truth: Embeddings) -> float:
        return apart(found, truth, self.near)

    def _pooling(self) -> dict[str, Any]:
        pipeline = parts_of(self.spec, self.store, self.workload)
        if pipeline is None:
            return {}
        rows, texts = self._some(self.reference)
        return find_pooling(pipeline, texts, self.reference[rows], self._apart)

    def _cause(self, truth: Truth) -> str:
        if self.spec.scores:
            return score_cause(self.reference, truth.embeddings)
        if self.workload.searched:
            return multi_cause(self.reference, truth.embeddings, self.workload.searched)
        pipeline = parts_of(self.spec, self.store, self.workload)
        if pipeline is None:
            return "no cause was sought, as the model has no parts that could be done otherwise"
        rows, texts = self._some(truth.embeddings)
        tokens = ids_and_mask(self.spec, take(self.workload.evaluation, rows))
        given = (truth.embeddings[rows], self.reference[rows], self._apart, tokens)
        return find_cause(pipeline, texts, *given, exact=self.near.precision is None).text

    def _some(self, truth: Embeddings) -> tuple[npt.NDArray[np.intp], list[str]]:
        """Some of the texts to seek by: their rows, and they themselves."""
        rows = np.array(telling_rows(self.reference, truth, _TEXTS))
        return rows, [self.workload.texts[row] for row in rows]


def _pooled(found: Mapping[str, Any]) -> str:
    """What is to be said of a pooling that nobody states."""
    if not found:
        every = ", ".join(map(pooling_words, POOLINGS))
        return f"how its texts are pooled is not stated, and none of {every} gives the reference"
    way = pooling_words(found["pooling"]) + (", normalised" if found["normalize"] else "")
    return f"pooled by {way}: not stated by its folder, found by trying what gives the reference"
