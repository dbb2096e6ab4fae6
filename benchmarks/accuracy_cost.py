"""What judging the embeddings of one variant costs beyond inference, over 256 texts.

    python benchmarks/accuracy_cost.py [FOLDER]

MiniLM's OpenVINO int8 engine, one thread. With FOLDER, also searches.jsonl and pairs.jsonl in it
(benchmarks/own_data.py writes some). Run it on a quiet machine.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from planting import MINILM, Subject, subject_of

from enginegate.accuracy.collection import read_collection, read_pairs
from enginegate.accuracy.judge import EmbeddingJudge
from enginegate.accuracy.limits import DEFAULT_LIMITS
from enginegate.accuracy.user_texts import UserData, UserTexts
from enginegate.engines.api import embed_all
from enginegate.engines.build import build_engine
from enginegate.models.export import tokenize_with
from enginegate.models.workload import make_batch
from enginegate.variants import Precision, Variant

CACHE = Path("~/.cache/enginegate").expanduser()


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Do it and print the seconds, by the clock and of the processor."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    found = work()
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    print(f"{wall_s:6.2f} s ({cpu_s:5.2f} s of the processor)  {what}", flush=True)
    return found


def own_texts(subject: Subject, folder: Path) -> UserTexts:
    """The labelled files of a folder, embedded by the reference."""
    data = UserData(read_collection(folder / "searches.jsonl"), read_pairs(folder / "pairs.jsonl"))
    model = subject.model
    batch = data.batch(
        lambda role, texts: make_batch(texts, tokenize_with(model, role), model.inputs)
    )
    return UserTexts(data, batch, embed_all(subject.open(subject.model.onnx), batch))


def main(folder: Path | None) -> None:
    subject = subject_of(MINILM, CACHE)
    expected, evaluation = subject.expected(), subject.workload.evaluation
    variant = Variant(MINILM, "openvino", Precision.INT8)
    built = build_engine(subject.store, variant, subject.model, subject.workload)
    limits = DEFAULT_LIMITS[Precision.INT8]
    judge = EmbeddingJudge(subject.workload, expected, limits, Precision.INT8)
    print(f"{time.strftime('%Y-%m-%d')}: {len(expected)} texts, {variant.id}")
    with built.load(subject.workload, threads=1) as engine:
        found = timed("inference of the texts", lambda: embed_all(engine, evaluation))
        accuracy = timed("deltas, rankings, intervals, worst texts", lambda: judge.judge(found))
        timed("the stability probe, which is inference", lambda: judge.probed(accuracy, engine))
        if folder:
            own = own_texts(subject, folder)
            vectors = timed(
                f"inference of {len(own.data.rows)} own texts",
                lambda: embed_all(engine, own.batch),
            )
            timed("own queries: rankings, intervals, NDCG@10", lambda: own.rankings(vectors))
            timed("labelled pairs, with intervals", lambda: own.agreement(vectors))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
