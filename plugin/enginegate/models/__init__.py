"""What is deployed."""

from enginegate.models.export import export_model, tokenize_with
from enginegate.models.layers import Layer, grouped, matching, nodes_of, read_layers
from enginegate.models.spec import OWN_CODE, Exported, Kind, ModelSpec, specs_from
from enginegate.models.tokens import DOCUMENT, QUERY, ROLES, TEXT, Tokens
from enginegate.models.workload import (
    Batch,
    Workload,
    chunks,
    hash_of,
    make_batch,
    make_workload,
    probe_of,
    read_texts,
    take,
    token_counts,
)

__all__ = [
    "DOCUMENT", "OWN_CODE", "QUERY", "ROLES", "TEXT", "Batch", "Exported", "Kind", "Layer",
    "ModelSpec", "Tokens", "Workload", "chunks", "export_model", "grouped", "hash_of", "make_batch",
    "make_workload", "matching", "nodes_of", "probe_of", "read_layers", "read_texts", "specs_from",
    "take", "token_counts", "tokenize_with",
]  # fmt: skip
