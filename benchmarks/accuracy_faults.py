"""Planted accuracy faults, and clean runs with different texts, judged by the gate's own rules.

    python benchmarks/accuracy_faults.py faults [NAME]     every fault of benchmarks/planted.py
    python benchmarks/accuracy_faults.py int8 [NAME]       its layer faults, inside an int8 engine
    python benchmarks/accuracy_faults.py clean [--runs 100] [--first 0]

`faults` says of each what the gate said of it; NAME picks those whose name holds it. `clean` judges
OpenVINO's engines in every precision on 256 texts after 256 others, docstrings of the installed
Python, and counts what does not pass. Needs the extras cpu, export and minilm.
"""

import argparse
import ast
import dataclasses
import functools
import hashlib
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from planted import faults
from planting import MODELS, Embed, Fault, Subject, quantised, subject_of

from enginegate.accuracy.judge import Accuracy, EmbeddingJudge
from enginegate.accuracy.limits import DEFAULT_LIMITS
from enginegate.engines.api import embed_all
from enginegate.engines.build import build_engine
from enginegate.models.workload import _SENTENCE, CALIBRATION_TEXTS, EVALUATION_TEXTS
from enginegate.variants import Precision, Variant

PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)
CACHE = Path("~/.cache/enginegate").expanduser()


@dataclass(frozen=True)
class Plain:
    """An engine of which only its embeddings are asked."""

    embed: Embed


def judged(subject: Subject, embed: Embed, precision: Precision, expected: np.ndarray) -> Accuracy:
    """What the gate finds: deltas, rankings, and whether an embedding depends on its batch."""
    judge = EmbeddingJudge(subject.workload, expected, DEFAULT_LIMITS[precision], precision)
    engine = Plain(embed)
    return judge.probed(judge.judge(embed_all(engine, subject.workload.evaluation)), engine)


def inside_int8(fault: Fault) -> Fault:
    """The same fault in an engine that is int8 as well, judged by int8's looser limits."""
    assert fault.edit
    return dataclasses.replace(fault, make=quantised(fault.edit), precision=Precision.INT8)


def planted(cache: Path, wanted: str, *, int8: bool) -> int:
    """Print what became of every fault; the number that were missed."""
    missed = 0
    for model in MODELS:
        subject = subject_of(model, cache)
        expected = subject.expected()
        for fault in faults(subject):
            if wanted in fault.name and (fault.layer or not int8):
                chosen = inside_int8(fault) if int8 else fault
                missed += print_one(chosen, subject, expected)
    return missed


def print_one(fault: Fault, subject: Subject, expected: np.ndarray) -> bool:
    """One line; whether it was missed."""
    with tempfile.TemporaryDirectory() as folder:
        embed = fault.make(subject, Path(folder))
        found = judged(subject, embed, fault.precision, expected)
    said = "; ".join(found.faults) or described(found)
    word = "caught" if found.faults else "MISSED"
    print(f"{word}  {fault.model:25} {fault.name:36} {said[:150]}", flush=True)
    return not found.faults


def described(found: Accuracy) -> str:
    """The figures of what passed."""
    deltas, retrieval = found.deltas, found.retrieval
    assert deltas
    assert retrieval
    return (
        f"max |delta| {deltas.max_abs_relative:.1e} of the largest, worst cosine "
        f"{deltas.cosine_worst:.6f}, recall@10 {retrieval.recall_at_10.value:.3f}"
    )


def clean(cache: Path, runs: int, first: int) -> int:
    """Print what clean engines were called, from a set of texts on; the number of false alarms."""
    alarms, done = 0, 0
    for number, texts in itertools.islice(enumerate(text_sets()), first, None):
        if done == runs:
            break
        for model, precision in itertools.product(MODELS, PRECISIONS):
            if done < runs:
                alarms += clean_run(cache, model, precision, number, texts)
                done += 1
    print(f"{alarms} false alarms in {done} clean runs")
    return alarms


def clean_run(
    cache: Path, model: str, precision: Precision, number: int, texts: Sequence[str]
) -> bool:
    """One line for one engine on texts of its own; whether it was failed."""
    subject, expected = prepared(cache, model, tuple(texts))
    variant = Variant(model, "openvino", precision)
    built = build_engine(
        subject.store, variant, subject.model, default_subject(cache, model).workload
    )
    with built.load(subject.workload, subject.threads) as engine:
        found = judged(subject, engine.embed, precision, expected)
    word = "ALARM" if found.faults else found.judgement.verdict
    said = "; ".join([*found.faults]) or described(found)
    print(f"{word:8} set {number:2} {model:25} {precision:5} {said}", flush=True)
    return bool(found.faults)


@functools.lru_cache(maxsize=len(MODELS))
def prepared(cache: Path, model: str, texts: tuple[str, ...]) -> tuple[Subject, np.ndarray]:
    """A model with these texts, and the reference's embeddings."""
    subject = subject_of(model, cache, texts)
    return subject, subject.expected()


@functools.lru_cache(maxsize=len(MODELS))
def default_subject(cache: Path, model: str) -> Subject:
    """A model with the texts that its engines are calibrated on."""
    return subject_of(model, cache)


def text_sets() -> Iterator[list[str]]:
    """Disjoint sets of sentences; the first part of each is left for a calibration."""
    sentences, size = docstring_sentences(), CALIBRATION_TEXTS + EVALUATION_TEXTS
    for start in range(0, len(sentences) - size, size):
        yield sentences[start : start + size]


def docstring_sentences() -> list[str]:
    """English sentences of the docstrings in this Python's libraries, shuffled by their hash."""
    found: set[str] = set()
    for path in sorted({p for folder in sys.path for p in Path(folder).glob("**/*.py")})[:6000]:
        found |= set(sentences_of(path))
    return sorted(found, key=lambda text: hashlib.sha256(text.encode()).hexdigest())


def sentences_of(path: Path) -> Iterator[str]:
    """Sentences in the docstrings of a file; none of one that cannot be read."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        for part in (text or "").split("\n\n"):
            sentence = " ".join(part.split()).split(". ")[0].rstrip(".") + "."
            if _SENTENCE.fullmatch(sentence):
                yield sentence


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["faults", "int8", "clean"])
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=CACHE)
    given = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}: {given.what}")
    if given.what == "clean":
        return clean(given.cache, given.runs, given.first) > 1
    missed = planted(given.cache, given.name, int8=given.what == "int8")
    print(f"{missed} missed")
    return missed > 1


if __name__ == "__main__":
    sys.exit(main())
