"""A tiny model that takes long texts, with faults that begin at a length. Built in a ms."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto

HIDDEN = 32
POSITIONS = 1024


@dataclass(frozen=True)
class Fault:
    """What to spoil, each from a length on; nothing by default.

    Attributes:
        cut: tokens behind so many are not seen.
        last: all positions behind it are that one.
        window: tokens are seen up to this far, and not up to `WINDOW`.
        coarse: positions are rounded to bfloat16, which tells them apart up to 256.
        lost: the vectors of positions from here on are zeros.
        broken: the vector of that position is not a number.
    """

    cut: int | None = None
    last: int | None = None
    window: int | None = None
    coarse: bool = False
    lost: int | None = None
    broken: int | None = None


WINDOW = 400
_WHOLE: dict[str, object] = {
    "split": [0, 0, 2, HIDDEN // 2],
    "whole": [0, 0, HIDDEN],
    "0": 0,
    "1": 1,
    "axis": [1],
    "last": [2],
    "axes": [1, 2],
    "row": [0],
}


def write_long(tiny, path: Path, fault: Fault | None = None, *, seed: int = 7) -> Path:
    """[batch, seq] ids and mask to [batch, 32]: one layer with rotated and learned positions.

    `tiny` is the module tiny.py. A token sees those that are less than WINDOW away.
    """
    fault, g = fault or Fault(), tiny._Graph(seed)
    for name, value in _WHOLE.items():
        g.constant(name, value, np.int64)
    table = g.constant("table", g.rng.normal(size=(tiny.VOCABULARY, HIDDEN)))
    length = g.add("Gather", "length", g.add("Shape", "shape", "input_ids"), "1")
    places = g.add("Range", "places", "0", length, "1")
    taken, mask = _mask(g, places, fault)
    words = g.add("Gather", "words", table, "input_ids")
    placed = g.add("Add", "placed", words, _positions(g, places, fault))
    x = tiny._attend(g, "layer", g.norm("norm", placed, HIDDEN), mask, HIDDEN, 2, "split", "whole")
    weights = g.add("Unsqueeze", "weights", taken, "last")
    total = g.add("ReduceSum", "total", g.add("Mul", "masked", x, weights), "axis", keepdims=0)
    count = g.add("ReduceSum", "count", weights, "axis", keepdims=0)
    g.add("Div", "sentence_embedding", total, count)
    tiny._save(path, g, HIDDEN)
    return path


def _mask(g, places: str, fault: Fault) -> tuple[str, str]:
    """What is pooled, and what each token does not see."""
    taken = g.add("Cast", "taken", "attention_mask", to=TensorProto.FLOAT)
    if fault.cut is not None:
        seen = g.add("Less", "seen", places, g.constant("cut", fault.cut, np.int64))
        kept = g.add("Cast", "kept", seen, to=TensorProto.FLOAT)
        taken = g.add("Mul", "left_over", taken, kept)
    left = g.add("Sub", "left", g.constant("one", 1), taken)
    lowest = g.constant("lowest", -1e9)
    far = g.add("Unsqueeze", "hidden", g.add("Mul", "far", left, lowest), "axes")
    rows, columns = (g.add("Unsqueeze", f"by{a}", places, a) for a in ("axis", "row"))
    apart = g.add("Abs", "apart", g.add("Sub", "way", rows, columns))
    window = g.constant("window", fault.window or WINDOW, np.int64)
    near = g.add("Less", "near", apart, window)
    outside = g.add("Where", "outside", near, g.constant("nothing", 0), lowest)
    return taken, g.add("Add", "mask", far, outside)


def _positions(g, places: str, fault: Fault) -> str:
    """A learned vector of each position, and waves of it."""
    if fault.last is not None:
        places = g.add("Min", "held", places, g.constant("highest", fault.last, np.int64))
    learned = g.rng.normal(size=(POSITIONS, HIDDEN))
    if fault.lost is not None:
        learned[fault.lost :] = 0
    if fault.broken is not None:
        learned[fault.broken] = np.nan
    vectors = g.add("Gather", "learned", g.constant("positions", learned), places)
    exact = g.add("Cast", "exact", places, to=TensorProto.FLOAT)
    if fault.coarse:
        coarse = g.add("Cast", "coarse", exact, to=TensorProto.BFLOAT16)
        exact = g.add("Cast", "again", coarse, to=TensorProto.FLOAT)
    waves = g.constant("waves", 1e4 ** -(np.arange(HIDDEN // 2) / (HIDDEN // 2))[None])
    angles = g.add("Mul", "angles", g.add("Unsqueeze", "column", exact, "axis"), waves)
    parts = g.add("Sin", "sine", angles), g.add("Cos", "cosine", angles)
    turned = g.add("Concat", "turned", *parts, axis=-1)
    return g.add("Add", "where", vectors, turned)
