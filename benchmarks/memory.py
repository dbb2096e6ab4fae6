"""How much memory each step takes, of a model whose weights lie beside its graph.

    python benchmarks/memory.py [--vocabulary 100000] [--layers 10] [NAME ...] > results/memory.txt

A seeded transformer of 0.6 GB; the limit of one message is lowered below it, so it is kept as a
model over 2 GB is. Each step runs in a process of its own, first with a tiny model, so that what
the libraries take is there already and is taken off. `peak` is the most that was resident (VmHWM),
pages of mapped files counted, which the system takes back at will; `own` the most without them
(RssAnon, every 20 ms). Both beside the size of the model's fp32 file. A ratio over 2.5 is marked.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

from user_project import heading

from enginegate.accuracy import EmbeddingJudge, limits_for
from enginegate.cache import Store
from enginegate.engines import (
    build_engine,
    embed_all,
    find_ranges,
    open_reference,
    run_reference,
)
from enginegate.engines.quantize import to_bf16, to_fp16
from enginegate.models import (
    Exported,
    Kind,
    ModelSpec,
    Workload,
    beside,
    export_model,
    make_workload,
    onnx_file,
    probe_of,
    read_texts,
    tokenize_with,
)
from enginegate.session.opinions import second_opinions
from enginegate.session.truth import judged_by_truth
from enginegate.variants import Precision, Variant

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/selftest/cases"))
import families

LIMIT = 2.5
LARGE_BYTES, TINY_BYTES = 200_000_000, 1_000_000
HIDDEN, LENGTH, TEXTS, THREADS = 768, 32, 64, 1
POLL_S = 0.02


def folder_of(target: Path, vocabulary: int, layers: int, hidden: int) -> None:
    """A folder of transformers, as its authors publish it."""

    def make(vocab: int) -> Any:
        return families.bert(max(vocab, vocabulary), hidden=hidden, layers=layers)

    families.transformers_folder(make, target)


class Home:
    """A model's folder with the engine cache beside it.

    Attributes:
        store: of all that is made of it.
        spec: the model.
    """

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "cache")
        self.spec = ModelSpec(
            "large", Kind.TRANSFORMERS, str(folder / "model"), pooling="mean", seq_len=LENGTH
        )

    def model(self) -> Exported:
        """The file, exported or from the store."""
        return export_model(self.spec, self.store, run_reference)

    def workload(self, model: Exported) -> Workload:
        """The texts."""
        texts = read_texts(None)[1][:TEXTS]
        return make_workload("texts", texts, tokenize_with(model), model.inputs, model.int32)

    def reference(self) -> tuple[Exported, Workload, Any, Any]:
        """The file, the texts, the loaded reference and its embeddings."""
        model = self.model()
        workload = self.workload(model)
        engine = open_reference(model.onnx, model.output, probe_of(workload), THREADS)
        return model, workload, engine, embed_all(engine, workload.evaluation)

    def built(self, backend: str, precision: Precision) -> tuple[Exported, Workload, Any]:
        """The file, the texts and an engine."""
        model = self.model()
        workload = self.workload(model)
        variant = Variant("large", backend, precision)
        return model, workload, build_engine(self.store, variant, model, workload)


def reference(home: Home) -> None:
    """The reference and the second opinions on it."""
    model, workload, engine, embeddings = home.reference()
    second_opinions(home.store, engine, model, workload, embeddings)


def truth(home: Home) -> None:
    """The truth, while the reference is loaded."""
    _, workload, _engine, embeddings = home.reference()
    quiet = contextlib.nullcontext()
    found = judged_by_truth(home.spec, home.store, workload, embeddings, lambda _: quiet)
    assert found.judgement.verdict == "pass", found.text


def judged(home: Home, backend: str, precision: Precision) -> None:
    """The engine judged, while the reference is loaded."""
    _, _, _engine, expected = home.reference()
    _, workload, built = home.built(backend, precision)
    judge = EmbeddingJudge(workload, expected, limits_for(precision, {}), precision)
    with built.load(workload, THREADS) as engine:
        judge.probed(judge.judge(embed_all(engine, workload.evaluation)), engine)


def ranges(home: Home) -> None:
    """The numbers inside."""
    model = home.model()
    find_ranges(home.store, model, home.workload(model).evaluation)


def converted(convert: Callable[[Path, Path], None]) -> Callable[[Home], None]:
    """A conversion for a backend that is not here."""

    def step(home: Home) -> None:
        with tempfile.TemporaryDirectory(dir=home.store.root) as folder:
            convert(home.model().onnx, Path(folder) / "engine.onnx")

    return step


def building(backend: str, precision: Precision) -> Iterator[tuple[str, Callable[[Home], None]]]:
    yield f"build {backend} {precision}", lambda home: home.built(backend, precision) and None
    yield f"judge {backend} {precision}", lambda home: judged(home, backend, precision)


STEPS = MappingProxyType(
    {
        "export": lambda home: home.model() and None,
        "reference": reference,
        "truth": truth,
        "ranges": ranges,
        **dict(building("openvino", Precision.FP32)),
        **dict(building("openvino", Precision.FP16)),
        **dict(building("openvino", Precision.BF16)),
        **dict(building("openvino", Precision.INT8)),
        **dict(building("onnxruntime", Precision.FP32)),
        **dict(building("onnxruntime", Precision.FP16)),
        **dict(building("onnxruntime", Precision.INT8)),
        "convert to fp16": converted(to_fp16),
        "convert to bf16": converted(to_bf16),
    }
)


def status(pid: int | str, name: str) -> int:
    """A number of a process's memory, bytes; 0 once it ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    return 0


def in_child(step: str, folder: Path) -> None:
    """Run a step with the tiny model, say so, and run it with the large one."""
    warnings.simplefilter("ignore")
    for name, limit in (("tiny", TINY_BYTES), ("large", LARGE_BYTES)):
        onnx_file.LIMIT_BYTES = limit
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        print(name, status("self", "VmRSS"), status("self", "RssAnon"), flush=True)
        STEPS[step](Home(folder / name))
    print("done", status("self", "VmHWM"), flush=True)


def measured(step: str, folder: Path) -> tuple[int, int, float]:
    """The most that a step takes, bytes: resident, and own; and its seconds."""
    command = [sys.executable, __file__, "--child", step, "--folder", str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        said = iter(child.stdout or [])
        _, resident, own = next(line for line in said if line.startswith("large ")).split()
        start_s, most = time.monotonic(), 0
        while child.poll() is None:
            most = max(most, status(child.pid, "RssAnon"))
            time.sleep(POLL_S)
        took_s = time.monotonic() - start_s
        done = [line for line in said if line.startswith("done ")]
    if not done:
        raise SystemExit(f"{step} failed with status {child.returncode}")
    return int(done[0].split()[1]) - int(resident), most - int(own), took_s


def forget(store: Store, step: str) -> None:
    """Remove what a step is to make again."""
    kinds = {"export": "model", "reference": "opinions", "truth": "truth", "ranges": "ranges"}
    kind = "engine" if step.startswith("build") else kinds.get(step)
    if kind:
        shutil.rmtree(store.root / kind, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--vocabulary", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child:
        in_child(given.child, given.folder)
        return
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "large").exists():
            folder_of(folder / "tiny" / "model", 0, 1, 64)
            folder_of(folder / "large" / "model", given.vocabulary, given.layers, HIDDEN)
        show(folder, given.names)


def show(folder: Path, names: list[str]) -> None:
    """Print a line a step, of those whose name holds one of `names`."""
    print(heading("one thread, ratios to the model's fp32 file"))
    print(f"{'step':24} {'file GB':>7} {'peak GB':>7} {'ratio':>5} {'own GB':>7} {'ratio':>5}    s")
    for step in STEPS:
        if names and not any(name in step for name in names):
            continue
        for home in (folder / "tiny", folder / "large"):
            forget(Home(home).store, step)
        peak, own, took_s = measured(step, folder)
        (path,) = (folder / "large" / "cache").glob("model/*/model.onnx")
        size = sum(file.stat().st_size for file in (path, *beside(path)))
        print(
            f"{step:24} {size / 1e9:7.2f} {peak / 1e9:7.2f} {peak / size:5.2f} {own / 1e9:7.2f} "
            f"{own / size:5.2f} {took_s:4.0f}{'  over' if peak / size > LIMIT else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
