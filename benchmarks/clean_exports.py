"""Exports without a fault, from a model's folder to the verdict on its engine: does any fail?

    python benchmarks/clean_exports.py [--first 0] [--count 100] >> results/clean-exports.txt

Small models of the shapes of BERT, XLM-R, ModernBERT and Qwen3, each another: seed, sizes, pooling,
Dense and Normalize, prompts, dimensions, length of texts. The folder is what its authors publish;
the model of the run is that folder, which is exported here, or a file that another exporter made of
it, judged by the folder as its truth. The reference is judged by the truth, the fp32 engine of
OpenVINO by the reference, as in a run. A line an export; ends with status 1 if one is not passed.
`--first` goes on where an earlier call stopped. Needs what planted_models.py needs.
"""

import argparse
import contextlib
import logging
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planted_models import LIMIT, PROMPTED, SHAPES, Edits, exported, published
from user_project import heading

from enginegate.accuracy import AgainstTruth, EmbeddingJudge, limits_for
from enginegate.cache import Store
from enginegate.engines import build_engine, embed_all, run_reference
from enginegate.models import (
    Exported,
    Kind,
    ModelSpec,
    Workload,
    export_model,
    make_workload,
    read_texts,
    tokenize_with,
)
from enginegate.session.truth import judged_by_truth
from enginegate.variants import Precision, Variant
from enginegate.verdicts import Verdict

FP32 = Precision.FP32
TEXTS = read_texts(None)[1][:60]
ENDS = ((), ("normalize",), ("dense", "normalize"), ("dense",))
CONFIGS: tuple[Mapping[str, Any], ...] = ({}, PROMPTED, {"truncate_dim": 16})


def made_from(number: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The shape, the model and the table of an export; another for each number."""
    draw, shape = random.Random(number), list(SHAPES)[number % len(SHAPES)]
    model = {
        "seed": number,
        "pooling": draw.choice(("mean", "lasttoken", "mean" if shape == "qwen3" else "cls")),
        "ends": draw.choice(ENDS),
        "hidden": draw.choice((32, 48, 64)),
        "layers": draw.choice((1, 2, 3)),
        "config": draw.choice(CONFIGS),
    }
    return shape, model, {"seq_len": draw.choice((None, 12, 24, 48, LIMIT))}


def table_of(place: Path, number: int) -> ModelSpec:
    """The model as a project's table names it: its folder, or every other time a file of it."""
    shape, model, table = made_from(number)
    made = published(place, shape, **model)
    if number // len(SHAPES) % 2:
        return ModelSpec("clean", Kind.SENTENCE_TRANSFORMERS, str(made.folder), **table)
    exported(made, Edits(), path := place / "model.onnx", in_torch=False)
    folder = str(made.folder)
    return ModelSpec("clean", Kind.ONNX, str(path), tokenizer=folder, truth=folder, **table)


def judged(spec: ModelSpec, store: Store) -> tuple[AgainstTruth, Any]:
    """The reference by the truth, and the engine by the reference."""
    model = export_model(spec, store, run_reference)
    workload = make_workload("texts", TEXTS, tokenize_with(model), model.inputs, model.int32)
    reference = run_reference(model.onnx, workload.evaluation)
    quiet = contextlib.nullcontext()
    truth = judged_by_truth(spec, store, workload, reference, lambda _: quiet)
    return truth, engine_of(model, workload, store, reference)


def engine_of(model: Exported, workload: Workload, store: Store, reference: Any) -> Any:
    """The accuracy of the engine in fp32, probed for what its batches do to it."""
    built = build_engine(store, Variant("clean", "openvino", FP32), model, workload)
    judge = EmbeddingJudge(workload, reference, limits_for(FP32, {}), FP32)
    with built.load(workload, threads=1) as engine:
        return judge.probed(judge.judge(embed_all(engine, workload.evaluation)), engine)


def tried(number: int) -> bool:
    """Print what became of one export; tell if it passed."""
    start_s = time.monotonic()
    shape, model, table = made_from(number)
    with tempfile.TemporaryDirectory() as folder:
        spec = table_of(Path(folder), number)
        truth, accuracy = judged(spec, Store(Path(folder) / "cache"))
    faults = [*accuracy.faults, truth.cause or truth.text] if truth.cause else accuracy.faults
    passed = truth.judgement.verdict is accuracy.judgement.verdict is Verdict.PASS and not faults
    ends = " ".join(("pooled by", model["pooling"], *model["ends"], *model["config"]))
    print(
        f"{number:3} {'pass' if passed else 'FAIL'} {shape:10} {spec.kind:21} {model['hidden']} x "
        f"{model['layers']} seq_len {table['seq_len']} {ends}: truth {truth.max_abs_relative:.1e}, "
        f"engine {accuracy.deltas.max_abs_relative:.1e}; {time.monotonic() - start_s:.0f} s "
        f"{' '.join(faults)}".strip(),
        flush=True,
    )
    return passed


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    given = parser.parse_args()
    print(heading(f"exports {given.first} to {given.first + given.count - 1}"), flush=True)
    passed = [tried(number) for number in range(given.first, given.first + given.count)]
    print(f"{len(passed) - sum(passed)} of {len(passed)} fail", flush=True)
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
