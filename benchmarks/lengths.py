"""Throughput over texts of 9 to 1,738 tokens, measured and predicted from cells of batch x bucket.

    python benchmarks/lengths.py FOLDER --build          # the model and its engines, once
    python benchmarks/lengths.py FOLDER > results/lengths.txt

A seeded BERT (4 layers, 256 wide, 2,048 positions), one thread. The mix are evaluation texts of the
default corpus with pages, sorted by length, in batches of up to 32 (8 of 1,024 tokens, 2 of 2,048),
each padded to its longest text, as a server does it. A cell is a call of a full batch of one
bucket. What a batch of the mix takes is predicted as its rows times the seconds of a text of its
width, which are interpolated between the cells' (straight lines of the logarithms). In each round
every cell and the whole mix run once, in random order. `one cell` predicts by the tokens per second
of the bucket of 32 alone, as a run with `seq_len = 32` would.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from user_project import heading

from enginegate.cache import Store
from enginegate.engines import Built, Engine, build_engine, call_s, run_reference
from enginegate.models import (
    Batch,
    Bucketed,
    Exported,
    Kind,
    ModelSpec,
    Workload,
    export_model,
    make_workload,
    read_texts,
    take,
    token_counts,
    tokenize_with,
)
from enginegate.models.lengths import rows_at_once, widths_of
from enginegate.variants import Precision, Variant

SHORTEST, LONGEST, POSITIONS = 9, 1738, 2048
TEXTS, AT_ONCE, ROUNDS, THREADS = 128, 32, 7, 1
PRECISIONS = (Precision.FP32, Precision.INT8)
NEAR = 0.1


def write_model(folder: Path) -> None:
    """A folder of transformers, with a tokenizer of its own."""
    import torch
    from transformers import BertConfig, BertModel

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests/selftest/cases"))
    import shapes

    vocabulary = shapes.write_tokenizer(folder, limit=POSITIONS)
    torch.manual_seed(11)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=POSITIONS,
    )
    BertModel(config, add_pooling_layer=False).eval().save_pretrained(folder)


def exported(folder: Path) -> tuple[Store, Exported, Workload]:
    """The model's file, from the store where it is there, and its texts."""
    if not (folder / "model").exists():
        write_model(folder / "model")
    store, spec = Store(folder / "cache"), str(folder / "model")
    model = export_model(
        ModelSpec("long", Kind.TRANSFORMERS, spec, pooling="mean", lengths="auto"),
        store,
        run_reference,
    )
    name, texts = read_texts(None, documents=True)
    return store, model, make_workload(name, texts, tokenize_with(model), model.inputs, model.int32)


def built(store: Store, model: Exported, workload: Workload, precision: Precision) -> Built:
    """The engine of OpenVINO, from the store where it is there."""
    return build_engine(store, Variant("long", "openvino", precision), model, workload)


def mix_of(workload: Workload) -> tuple[Batch, np.ndarray]:
    """Texts of the mix, shortest first, as wide as they are, and their tokens.

    The longest text is cut to LONGEST, so that the range is what it is said to be.
    """
    counts = np.array(token_counts(workload.evaluation, workload.mask))
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] >= SHORTEST]
    able = order[counts[order] < LONGEST]
    chosen = able[np.linspace(0, len(able) - 1, TEXTS - 1).round().astype(int)]
    rows = np.append(chosen, order[-1])
    tokens = np.minimum(counts[rows], LONGEST)
    wide = {name: values[rows] for name, values in workload.evaluation.items()}
    wide[str(workload.mask)] *= np.arange(workload.shape[1]) < tokens[:, None]
    return Bucketed(wide, tuple(tokens), left=False), tokens


def served(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of each batch: as many as fit, of texts that are sorted by length."""
    rows: list[int] = []
    for row, width in enumerate(tokens):
        if rows and len(rows) >= rows_at_once(int(width), AT_ONCE):
            yield np.array(rows)
            rows = []
        rows.append(row)
    yield np.array(rows)


@dataclass(frozen=True)
class Cells:
    """Full batches of one bucket: tokens of it to what is run."""

    inputs: dict[int, Batch]

    @classmethod
    def of(cls, workload: Workload) -> "Cells":
        """One for every bucket."""
        found, widths = {}, widths_of(workload.evaluation)
        for tokens in workload.buckets:
            count = rows_at_once(tokens, AT_ONCE)
            rows = np.resize(np.flatnonzero(widths == tokens), count)
            found[tokens] = take(workload.evaluation, rows)
        return cls(found)

    def per_text_s(self, tokens: int, seconds: float) -> float:
        """Seconds of one of its texts."""
        return seconds / rows_at_once(tokens, AT_ONCE)


def predicted_s(per_text_s: dict[int, float], batches: Sequence[tuple[int, int]]) -> float:
    """Seconds of batches (rows, width), by the seconds of a text of each bucket."""
    known = sorted(per_text_s)
    taken = np.log([per_text_s[tokens] for tokens in known])
    widths = np.log([width for _, width in batches])
    return float(sum(np.exp(np.interp(widths, np.log(known), taken)) * [r for r, _ in batches]))


@dataclass(frozen=True)
class Round:
    """Seconds of every cell, and of the whole mix."""

    cells: dict[int, float]
    mix_s: float


def run_round(engine: Engine, cells: Cells, mix: Sequence[Batch], rng: random.Random) -> Round:
    """Everything once, in random order."""
    jobs: list[int] = [*cells.inputs, 0]
    rng.shuffle(jobs)
    found: dict[int, float] = {}
    for job in jobs:
        inputs = [cells.inputs[job]] if job else mix
        found[job] = sum(call_s(engine, batch) for batch in inputs)
    return Round({tokens: found[tokens] for tokens in cells.inputs}, found[0])


def rounds_of(engine: Engine, cells: Cells, mix: Sequence[Batch]) -> list[Round]:
    """After one that is not counted."""
    rng = random.Random(5)
    return [run_round(engine, cells, mix, rng) for _ in range(ROUNDS + 1)][1:]


def report(precision: Precision, rounds: Sequence[Round], cells: Cells, tokens: np.ndarray) -> bool:
    """Print what was measured and predicted; whether they are near."""
    batches = [(len(rows), int(tokens[rows].max())) for rows in served(tokens)]
    found, one_cell, ratios = [], [], []
    for each in rounds:
        per_text = {t: cells.per_text_s(t, s) for t, s in each.cells.items()}
        predicted = predicted_s(per_text, batches)
        found.append(predicted)
        one_cell.append(per_text[32] / 32 * tokens.sum())
        ratios.append(each.mix_s / predicted)
    measured, middle = (float(np.median(x)) for x in ([r.mix_s for r in rounds], found))
    off = float(np.median(ratios)) - 1
    for what, seconds in (("measured", measured), ("predicted", middle)):
        said = f"{len(tokens) / seconds:7.1f} texts/s {tokens.sum() / seconds:9.0f} tokens/s"
        print(f"{precision} {what:10s}{said}")
    spread = f"{min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%} over {len(rounds)} rounds"
    alone = measured / float(np.median(one_cell)) - 1
    near = abs(off) <= NEAR
    said = f"{off:+.1%} ({spread}): {'near' if near else 'FAR'}"
    print(f"{precision} measured time beside predicted time: {said}")
    print(f"{precision} measured time beside what one cell predicts: {alone:+.0%}")
    per_text = {t: np.median([r.cells[t] for r in rounds]) for t in cells.inputs}
    told = (f"{rows_at_once(t, AT_ONCE)} x {t}: {1000 * s:.1f}" for t, s in per_text.items())
    print(f"{precision} cells, ms: {', '.join(told)}")
    return near


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build", action="store_true")
    given = parser.parse_args()
    store, model, workload = exported(given.folder)
    engines = {p: built(store, model, workload, p) for p in PRECISIONS}
    if given.build:
        return 0
    mix, tokens = mix_of(workload)
    parts = [take(mix, rows) for rows in served(tokens)]
    positions = sum(values.size for part in parts for name, values in part.items())
    positions //= len(mix)
    print(heading(f"OpenVINO, {THREADS} thread, {len(tokens)} texts in {len(parts)} batches"))
    print(
        f"{tokens.min()} to {tokens.max()} tokens, median {int(np.median(tokens))}, "
        f"{tokens.sum()} in all; {1 - tokens.sum() / positions:.1%} of the positions are padding; "
        f"in batches of 32 as they come it would be {1 - tokens.sum() / unsorted(tokens):.1%}; "
        f"of the workload's {workload.shape[0]} texts {workload.cut} are cut"
    )
    near = []
    for precision, engine in engines.items():
        with engine.load(workload, THREADS) as loaded:
            cells = Cells.of(workload)
            near.append(report(precision, rounds_of(loaded, cells, parts), cells, tokens))
    return 0 if all(near) else 1


def unsorted(tokens: np.ndarray) -> int:
    """Positions where batches are made of texts in random order."""
    mixed = np.random.default_rng(3).permutation(tokens)
    parts = [mixed[start : start + AT_ONCE] for start in range(0, len(mixed), AT_ONCE)]
    return int(sum(len(part) * part.max() for part in parts))


if __name__ == "__main__":
    raise SystemExit(main())
