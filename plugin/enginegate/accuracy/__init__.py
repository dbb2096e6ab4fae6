"""Are the embeddings the same?"""

from enginegate.accuracy.collection import read_collection, read_pairs
from enginegate.accuracy.deltas import Deltas, check_sane
from enginegate.accuracy.judge import Accuracy, EmbeddingJudge
from enginegate.accuracy.limits import Limits, limits_for
from enginegate.accuracy.retrieval import Retrieval, WorstText, shortened
from enginegate.accuracy.stability import Determinism, Invariance, Probe, probe_stability
from enginegate.accuracy.user_texts import UserData, UserTexts

__all__ = [
    "Accuracy", "Deltas", "Determinism", "EmbeddingJudge", "Invariance", "Limits", "Probe",
    "Retrieval", "UserData", "UserTexts", "WorstText", "check_sane", "limits_for",
    "probe_stability", "read_collection", "read_pairs", "shortened",
]  # fmt: skip
