"""Are the embeddings the same?"""

from enginegate.accuracy.collection import read_collection, read_pairs
from enginegate.accuracy.deltas import Deltas
from enginegate.accuracy.judge import Accuracy, EmbeddingJudge, with_ranges
from enginegate.accuracy.lengths import AtLength, worst_length
from enginegate.accuracy.limits import Limits, limits_for
from enginegate.accuracy.multi import multi_cause
from enginegate.accuracy.onset import Onset
from enginegate.accuracy.outputs import outputs_of
from enginegate.accuracy.retrieval import Retrieval, WorstText, shortened
from enginegate.accuracy.sample import Sample, disagreement
from enginegate.accuracy.scores import score_cause
from enginegate.accuracy.stability import Determinism, Invariance, probe_of_engine, probe_stability
from enginegate.accuracy.truth import (
    AgainstTruth,
    Nearness,
    against_truth,
    apart,
    at_dims,
    nearness_for,
    taken_as_model,
    telling_rows,
)
from enginegate.accuracy.user_texts import UserData, UserTexts, refuse_labels, refuse_pairs
from enginegate.accuracy.views import View, Viewed, check_dims, views_of

__all__ = [
    "Accuracy", "AgainstTruth", "AtLength", "Deltas", "Determinism", "EmbeddingJudge", "Invariance",
    "Limits", "Nearness", "Onset", "Retrieval", "Sample", "UserData", "UserTexts", "View", "Viewed",
    "WorstText", "against_truth", "apart", "at_dims", "check_dims", "disagreement", "limits_for",
    "multi_cause", "nearness_for", "outputs_of", "probe_of_engine", "probe_stability",
    "read_collection", "read_pairs", "refuse_labels", "refuse_pairs", "score_cause", "shortened",
    "taken_as_model", "telling_rows", "views_of", "with_ranges", "worst_length",
]  # fmt: skip
