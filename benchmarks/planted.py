"""Accuracy faults that real pipelines have made, planted in both shipped models.

`faults(subject)` lists those of a model; `fault.make(subject, folder)` gives the spoiled engine. A
fault of one layer names the node that is wrong by its first output, and has an `edit` of the ONNX
file, so that others may look for the layer:

    subject = subject_of("minilm", cache)
    for fault in faults(subject):
        if fault.layer:
            write_edited(fault.edit, subject.model.onnx, path)
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx_edits import (
    Edit,
    all_ones,
    change_all_weights,
    change_weight,
    flipped_bit,
    nodes_of,
    replace_node,
    rewire,
    set_attribute,
    through_fp16,
    to_bf16,
    weighted,
    with_constant,
)
from planting import (
    MINILM,
    Fault,
    Make,
    Subject,
    calibrated,
    dynamic,
    edited,
    fed,
    retokenised,
    returned,
)

from enginegate.variants import Precision

QUERY, KEY, VALUE, OUT, UP, DOWN = range(6)  # multiplications of a block, in order
DEAD = 100
HEAD = {MINILM: 32, "distilbert-base-cased-96": 64}


class Places:
    """Where things are in a model's graph, by first outputs in order of execution."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.multiplied = [node.output[0] for node in weighted(model)]
        self.norms = [node.output[0] for node in nodes_of(model, "LayerNormalization")]
        self.gelus = [node.output[0] for node in nodes_of(model, "Gelu")]
        adds = nodes_of(model, "Add")
        self.masked = [node.output[0] for node in adds if "where" in node.input]
        self.residuals = [n for n in adds if any(name in self.norms for name in n.input)]
        scores = {n.input[0] for n in adds if "where" in n.input}
        self.scaled = [n.output[0] for n in nodes_of(model, "Mul") if n.output[0] in scores]

    def at(self, block: int, place: int) -> str:
        """A multiplication of a block."""
        return self.multiplied[6 * block + place]


def faults(subject: Subject) -> list[Fault]:
    """Every fault of a model."""
    model = onnx.load(str(subject.model.onnx))
    name, places = subject.model.spec.name, Places(model)
    found = [*_layer_faults(name, places), *_graph_faults(name, places)]
    found += [Fault(what, name, None, make) for what, make in _inputs(name)]
    found += [Fault(what, name, None, make) for what, make in _outputs()]
    found += [Fault(what, name, None, make, Precision.INT8) for what, make in _quantised()]
    return found


def _layer_faults(model: str, places: Places) -> Iterator[Fault]:
    """One layer is wrong."""
    half, width = np.float32(0.5), HEAD[model]
    weights = [
        ("scale of query 0 halved", places.at(0, QUERY), lambda w: w * half),
        ("scale of value 2 halved", places.at(2, VALUE), lambda w: w * half),
        ("scale of output 3 halved", places.at(3, OUT), lambda w: w * half),
        ("scale of up 4 halved", places.at(4, UP), lambda w: w * half),
        ("scale of down 5 halved", places.at(5, DOWN), lambda w: w * half),
        ("key 1 transposed", places.at(1, KEY), lambda w: w.T),
        ("a head of value 3 zero", places.at(3, VALUE), lambda w: _zeroed(w, width)),
        ("a tile of down 2 zero", places.at(2, DOWN), lambda w: _zeroed(w, 64, 64)),
        ("a bit of up 1 flipped", places.at(1, UP), flipped_bit),
        ("output 4 has 4 bits", places.at(4, OUT), lambda w: _rounded(w, 7)),
    ]
    for what, output, change in weights:
        yield _of_layer(what, model, output, change_weight(output, change))
    norm, gelu, masked = places.norms[5], places.gelus[3], places.masked[2]
    eps = set_attribute("LayerNormalization", "epsilon", 1e-2, norm)
    yield _of_layer("epsilon of a LayerNorm 1e-2", model, norm, eps)
    tanh = set_attribute("Gelu", "approximate", "tanh", gelu)
    yield _of_layer("GELU 3 by tanh", model, gelu, tanh)
    unmasked = with_constant("planted_zero", np.float32(0), rewire(masked, 1, "planted_zero"))
    yield _of_layer("attention 2 sees the padding", model, masked, unmasked)
    scaled = places.scaled[4]
    double = change_weight(scaled, lambda scale: scale * np.float32(2))
    yield _of_layer("attention 4 scaled twice", model, scaled, double)
    over = places.at(2, UP)
    yield _of_layer("fp16 overflow in up 2", model, over, through_fp16(over, 1e6))
    residual = places.residuals[6]
    place = next(n for n, value in enumerate(residual.input) if value in places.norms)
    lost = with_constant(
        "planted_nothing", np.float32(0), rewire(residual.output[0], place, "planted_nothing")
    )
    yield _of_layer("a residual of block 3 lost", model, residual.output[0], lost)


def _of_layer(what: str, model: str, output: str, edit: Edit) -> Fault:
    return Fault(what, model, output, edited(edit), edit=edit)


def _graph_faults(model: str, places: Places) -> Iterator[Fault]:
    """The whole graph is another one."""
    noise = np.random.default_rng(1)
    edits = {
        "epsilon of every LayerNorm 1e-5": set_attribute("LayerNormalization", "epsilon", 1e-5),
        "GELU by tanh everywhere": set_attribute("Gelu", "approximate", "tanh"),
        "attention sees the padding": all_ones("_to_copy", "attention_mask", TensorProto.BOOL),
        "weights rounded to bf16": change_all_weights(to_bf16),
        "weights rounded to fp16": change_all_weights(
            lambda w: w.astype(np.float16).astype(np.float32)
        ),
        "a stale engine, weights 1 % off": change_all_weights(
            lambda w: w * noise.normal(1, 0.01, size=w.shape).astype(np.float32)
        ),
        "positions off by one": change_weight(
            "embedding_2" if model == MINILM else "embedding_1", _rolled, 0
        ),
        **(_mean_pooled(places) if model == MINILM else _first_pooled()),
    }
    yield from (Fault(what, model, None, edited(edit), edit=edit) for what, edit in edits.items())


def _mean_pooled(places: Places) -> dict[str, Edit]:
    last = places.norms[-1]
    first = helper.make_node("Gather", [last, "planted_first"], ["div"], axis=1)
    largest = helper.make_node("ReduceMax", ["mul_732", "planted_axis"], ["div"], keepdims=0)
    same = helper.make_node("Identity", ["div"], ["sentence_embedding"])
    axis = np.array([1])
    return {
        "first token instead of the mean": with_constant(
            "planted_first", np.array(0), replace_node("div", first)
        ),
        "maximum instead of the mean": with_constant(
            "planted_axis", axis, replace_node("div", largest)
        ),
        "mean over the padding too": all_ones("_to_copy_1", "unsqueeze_12", TensorProto.FLOAT),
        "not normalised": replace_node("sentence_embedding", same),
        "token types 1 for 0": change_weight("embedding_1", lambda w: w[::-1], 0),
    }


def _first_pooled() -> dict[str, Edit]:
    def mean(axis: str) -> onnx.NodeProto:
        return helper.make_node("ReduceMean", ["layer_norm_12", axis], ["select"], keepdims=0)

    second = helper.make_node("Gather", ["layer_norm_12", "planted_one"], ["select"], axis=1)
    last = helper.make_node("Gather", ["layer_norm_12", "planted_last"], ["select"], axis=1)
    return {
        "mean instead of the first token": with_constant(
            "planted_axis", np.array([1]), replace_node("select", mean("planted_axis"))
        ),
        "second token instead of the first": with_constant(
            "planted_one", np.array(1), replace_node("select", second)
        ),
        "last token instead of the first": with_constant(
            "planted_last", np.array(-1), replace_node("select", last)
        ),
        "head off by 1 %": change_weight("sentence_embedding", lambda w: w * np.float32(1.01)),
    }


def _inputs(model: str) -> Iterator[tuple[str, Make]]:
    """The engine is right, and is given the wrong tokens."""
    yield "truncation at 8 tokens", fed(lambda b: {name: v[:, :8] for name, v in b.items()})
    yield "mask one token short", fed(_masked_short)
    yield "mask one token long", fed(_masked_long)
    yield (
        "token ids off by one",
        fed(lambda b: b | {"input_ids": np.maximum(b["input_ids"] - 1, 0)}),
    )
    yield "tokens in reverse", fed(_reversed)
    if model == MINILM:
        yield "capitals kept by the tokenizer", retokenised(str, _keeps_capitals)
        yield "no special tokens", retokenised(str, _without_special_tokens)
    else:
        yield "lowercase tokenizer", retokenised(str.lower)


def _outputs() -> Iterator[tuple[str, Make]]:
    """The embeddings are right, and get lost on the way."""
    yield "two rows swapped", returned(_swapped)
    yield "one dead row in 256", returned(_dead)
    yield "one row is that of another text", returned(_stuck)
    yield "two components swapped", returned(lambda found, _: _columns_swapped(found))


def _quantised() -> Iterator[tuple[str, Make]]:
    """int8, its ranges from the wrong texts."""
    yield "int8 calibrated on zeros", calibrated(_zeros)
    yield (
        "int8 calibrated on one text",
        calibrated(lambda b: {name: np.repeat(v[:1], len(v), axis=0) for name, v in b.items()}),
    )
    yield "int8 calibrated on shuffled tokens", calibrated(_shuffled)
    yield "dynamic int8", dynamic


def _zeroed(weight: np.ndarray, columns: int, rows: int | None = None) -> np.ndarray:
    weight[:rows, :columns] = 0
    return weight


def _rounded(weight: np.ndarray, steps: int) -> np.ndarray:
    step = np.abs(weight).max() / steps
    return np.round(weight / step) * step


def _rolled(table: np.ndarray) -> np.ndarray:
    return np.roll(table, -1, axis=0)


def _masked_short(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    mask = batch["attention_mask"]
    mask[np.arange(len(mask)), mask.sum(axis=1) - 1] = 0
    return batch


def _masked_long(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    mask = batch["attention_mask"]
    mask[np.arange(len(mask)), np.minimum(mask.sum(axis=1), mask.shape[1] - 1)] = 1
    return batch


def _reversed(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids[: mask.sum()] = ids[: mask.sum()][::-1].copy()
    return batch


def _keeps_capitals(tokenizer) -> None:
    from tokenizers.normalizers import BertNormalizer

    tokenizer.normalizer = BertNormalizer(lowercase=False)


def _without_special_tokens(tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])


def _swapped(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
    places = np.flatnonzero(np.isin(rows, (4, 5)))
    found[places] = found[places[::-1]]
    return found


def _dead(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
    found[rows == DEAD] = 0
    return found


def _stuck(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
    for place in np.flatnonzero(rows == DEAD):
        found[place] = found[place - 1]
    return found


def _columns_swapped(found: np.ndarray) -> np.ndarray:
    found[:, [7, 8]] = found[:, [8, 7]]
    return found


def _zeros(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    blank = {name: np.zeros_like(values) for name, values in batch.items()}
    blank["attention_mask"][:, 0] = 1
    return blank


def _shuffled(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    ids = batch["input_ids"]
    batch["input_ids"] = rng.permuted(ids.ravel()).reshape(ids.shape)
    return batch
