"""What is deployed."""

from enginegate.models.causes import find_cause, find_pooling, pooling_words
from enginegate.models.export import Say, export_model, tokenize_with
from enginegate.models.late import Kept, used
from enginegate.models.layers import Layer, grouped, matching, nodes_of, read_layers
from enginegate.models.lengths import (
    AUTO,
    Batch,
    Bucketed,
    Tokens,
    for_all,
    together,
    widths_of,
    with_inputs,
)
from enginegate.models.onnx_file import (
    Weight,
    beside,
    is_large_file,
    opset_of,
    parts_of_weight,
    read_graph_of,
    save_onnx,
    save_with_weights,
    stored_weights,
    typed,
    values_of,
)
from enginegate.models.pairs import Pairs, split
from enginegate.models.spec import (
    BINARY,
    DROPPED,
    INT8,
    OWN_CODE,
    POOLINGS,
    Exported,
    Kind,
    ModelSpec,
    OutputKind,
    specs_from,
)
from enginegate.models.tokens import DOCUMENT, QUERY, ROLES, TEXT, speller
from enginegate.models.truth import (
    TABLE_SAYS,
    Truth,
    ids_and_mask,
    parts_of,
    states_pooling,
    truth_key,
    truth_of,
)
from enginegate.models.workload import (
    Searched,
    Workload,
    chunks,
    hash_of,
    make_batch,
    make_pairs_workload,
    make_searched_workload,
    make_workload,
    probe_of,
    read_texts,
    take,
    token_counts,
)

__all__ = [
    "AUTO", "BINARY", "DOCUMENT", "DROPPED", "INT8", "OWN_CODE", "POOLINGS", "QUERY", "ROLES",
    "TABLE_SAYS", "TEXT", "Batch", "Bucketed", "Exported", "Kept", "Kind", "Layer", "ModelSpec",
    "OutputKind", "Pairs", "Say", "Searched", "Tokens", "Truth", "Weight", "Workload", "beside",
    "chunks", "export_model", "find_cause", "find_pooling", "for_all", "grouped", "hash_of",
    "ids_and_mask", "is_large_file", "make_batch", "make_pairs_workload", "make_searched_workload",
    "make_workload", "matching", "nodes_of", "opset_of", "parts_of", "parts_of_weight",
    "pooling_words", "probe_of", "read_graph_of", "read_layers", "read_texts", "save_onnx",
    "save_with_weights", "specs_from", "speller", "split", "states_pooling", "stored_weights",
    "take", "together", "token_counts", "tokenize_with", "truth_key", "truth_of", "typed", "used",
    "values_of", "widths_of", "with_inputs",
]  # fmt: skip
