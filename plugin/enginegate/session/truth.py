"""The reference of a model judged by its truth, and the cause where it is not the model."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from enginegate.accuracy import (
    AgainstTruth,
    against_truth,
    apart,
    check_sane,
    taken_as_model,
    telling_rows,
)
from enginegate.cache import Store
from enginegate.engines import Embeddings
from enginegate.models import (
    Exported,
    ModelSpec,
    Say,
    Truth,
    Workload,
    find_cause,
    ids_and_mask,
    parts_of,
    take,
    truth_of,
)
from enginegate.verdicts import Judgement, Verdict

if TYPE_CHECKING:
    from enginegate.session import Session
    from enginegate.session.preparation import Reference

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
) -> AgainstTruth:
    """The reference's embeddings [texts, dim] beside the truth's. Raises ModelError."""
    with progress(f"truth of {spec.name}"):
        truth = truth_of(spec, store, workload)
    if truth is None:
        return taken_as_model()
    check_sane(truth.embeddings, f"the truth of {spec.name}")
    found = against_truth(reference, truth.embeddings, truth.by, truth.notes)
    if found.judgement.verdict is not Verdict.FAIL:
        return found
    with progress(f"why the reference of {spec.name} is not the model"):
        cause = _cause(spec, store, workload, reference, truth)
    reasons = tuple(f"{reason}: {cause}" for reason in found.judgement.reasons)
    return replace(found, cause=cause, judgement=Judgement(Verdict.FAIL, reasons))


def _cause(
    spec: ModelSpec, store: Store, workload: Workload, reference: Embeddings, truth: Truth
) -> str:
    pipeline = parts_of(spec, store, workload)
    if pipeline is None:
        return "no cause was sought, as the model has no parts that could be done otherwise"
    rows = np.array(telling_rows(reference, truth.embeddings, _TEXTS))
    texts = [workload.texts[row] for row in rows]
    tokens = ids_and_mask(spec, take(workload.evaluation, rows))
    given = (truth.embeddings[rows], reference[rows], apart, tokens)
    return find_cause(pipeline, texts, *given).text
