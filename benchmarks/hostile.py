"""Hostile files, names and sources, and what becomes of each: one clear error, or a rebuild.

    python benchmarks/hostile.py [--seed N] [--random TIMES]

Every file that the product reads is damaged in every way of a list, then at random: a leaf of its
JSON is replaced TIMES times. A server answers whatever it likes over HTTP and gRPC. Ends with
status 1 if anything ends in a raw traceback, in an error of several lines or one that does not name
the file or the server, or if damage of the list is taken for whole.
"""

import argparse
import contextlib
import copy
import importlib
import io
import json
import random
import re
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from enginegate.accuracy import read_collection, read_pairs
from enginegate.baselines import Baselines, Note, read_history, save_calibration
from enginegate.cache import MANIFEST, Store
from enginegate.cli import main as command
from enginegate.diagnostics import read_profile
from enginegate.engines import saved_engine
from enginegate.errors import EngineGateError
from enginegate.machine import this_machine
from enginegate.models import read_texts
from enginegate.models.sources import locate, ready_onnx
from enginegate.models.spec import Kind, ModelSpec, specs_from
from enginegate.serving.load import embed
from enginegate.serving.triton import client
from enginegate.variants import Precision, Variant

ROOT = Path(__file__).parents[1]
TEXT = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe{\x00}\x00",
    "NUL bytes": b"\0" * 100,
    "cut short": b'{"schema": 2, "variants": {',
    "200,000 brackets": b"[" * 200_000,
    "100,000 objects": b'{"a":' * 100_000,
    "5,000 digits": b'{"schema": ' + b"9" * 5_000 + b"}",
    "10^400": b'{"schema": 1' + b"0" * 400 + b"}",
    "1e400": b'{"schema": 1e400}',
    "NaN": b'{"schema": NaN}',
    "a number": b"7",
    "null": b"null",
    "a list of lists": b"[[[]]]",
}
LEAVES = (None, -1, 0, 1e299, 10**17, "x", "\ud800", "", [], {}, [[]], True)


@dataclass(frozen=True)
class Kept:
    """A kind of file.

    Attributes:
        path: of the file, below the folder that is made for each case.
        whole: its content as it should be.
        read: reads it as the product does; its note if it was made again.
        lines: each line is a JSON value of its own.
    """

    path: str
    whole: Any
    read: Callable[[Path], str]
    lines: bool = False


def baseline(path: Path) -> str:
    root = path.parents[1]
    Baselines(root, this_machine()).load(path.stem)
    for words in (["list"], ["show", path.stem], ["prune", "--variant=none"]):
        run("--root", str(root), "baselines", *words)
    return ""


def report(path: Path) -> str:
    run("report", str(path), "--markdown", str(path.with_suffix(".md")))
    run("report", str(path), str(ROOT / "docs/examples/report.json"), "--text")
    return ""


def run(*arguments: str) -> None:
    """The command; its error is raised."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = command(arguments)
    if status:
        raise EngineGateError(said.getvalue().strip())


def history(path: Path) -> str:
    read_history(path.parents[2], path.stem)
    run("--root", str(path.parents[2]), "history", path.stem)
    return ""


def calibration(path: Path) -> str:
    save_calibration(path.parent, {}, {})
    return ""


def figures(path: Path) -> str:
    shutil.copy(ROOT / "docs/examples/reference/sweep.csv", path.parent)
    run("report", str(path), "--text")
    return ""


def build(folder: Path) -> dict[str, str]:
    (folder / "engine").write_text("engine")
    return {"output": "x"}


def manifest(path: Path) -> str:
    build(path.parent)
    return Store(path.parents[2]).get_or_build("engine", {"a": 1}, build).note


def saved(path: Path) -> str:
    made = Store(path.parents[2] / "store").get_or_build("engine", {}, build)
    with contextlib.suppress(FileExistsError):
        shutil.copytree(made.folder, path.parent / "engine")
    saved_engine(path.parents[2], Variant("tiny", "openvino", Precision.FP32))
    return ""


def texts(path: Path) -> str:
    read_texts(path)
    read_collection(path)
    return ""


def pairs(path: Path) -> str:
    read_pairs(path)
    return ""


def profile(path: Path) -> str:
    read_profile(path)
    return ""


def kinds() -> dict[str, Kept]:
    """A whole file of each kind."""
    (stored,) = ROOT.glob("baselines/*/minilm.json")
    note = asdict(Note("2026-01-01", "abc", "openvino-fp32", 1, 0.1, 0.0, "onnxruntime"))
    device = {"name": "a", "source": "b", "peaks_per_s": {"fp32": 1e12}}
    memory = [{"name": "DRAM", "bytes_per_s": 1e9}]
    with tempfile.TemporaryDirectory() as folder:
        entry = Store(Path(folder)).get_or_build("engine", {"a": 1}, build).folder
        listed = json.loads((entry / MANIFEST).read_text())
    pair = [{"a": f"text {n}", "b": "other", "score": n} for n in range(40)]
    words = [{"text": f"text number {n}"} for n in range(40)]
    here = this_machine().id
    examples = ROOT / "docs/examples"
    return {
        "baseline": Kept(f"b/{here}/minilm.json", json.loads(stored.read_text()), baseline),
        "history": Kept("b/history/here/m.jsonl", [note] * 8, history, lines=True),
        "calibration": Kept("b/here/calibration.json", {"schema": 1, "cells": {}}, calibration),
        "report": Kept("r/run.json", json.loads((examples / "report.json").read_text()), report),
        "figures": Kept(
            "r/f.json", json.loads((examples / "reference/figures.json").read_text()), figures
        ),
        "cache entry": Kept(f"c/engine/{entry.name}/{MANIFEST}", listed, manifest),
        "saved engine": Kept(
            "s/tiny/openvino-fp32/saved.json", {"backend": "openvino", "precision": "fp32"}, saved
        ),
        "texts": Kept("t/own.jsonl", words, texts, lines=True),
        "labelled pairs": Kept("t/pairs.jsonl", pair, pairs, lines=True),
        "device profile": Kept("d/gpu.json", {**device, "memory": memory}, profile),
    }


def written(kept: Kept, value: Any) -> bytes:
    rows = value if kept.lines and isinstance(value, list) else [value]
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def damaged(kept: Kept) -> Iterator[tuple[str, bytes | None]]:
    """Names and contents; None for a folder in the file's place."""
    yield from TEXT.items()
    yield "a folder in its place", None
    first = kept.whole[0] if kept.lines else kept.whole
    key = next((k for k in first if first[k]), next(iter(first)))
    for name, row in (
        ("a missing key", {k: v for k, v in first.items() if k != key}),
        ("wrong types", {name: [[7]] for name in first}),
        ("half a character", {**first, key: "\ud800"}),
    ):
        yield name, written(kept, [row, *kept.whole[1:]] if kept.lines else row)


def outcome(path: Path, act: Callable[[], str]) -> tuple[str, bool]:
    """What became of it, and whether that is as it should be."""
    try:
        note = act()
    except EngineGateError as error:
        said = str(error)
        named = any(name in said for name in path.parts[-3:])
        return f"error: {said}", "\n" not in said and named
    except Exception as error:
        return f"RAW {type(error).__name__}: {str(error)[:200]}", False
    return (f"rebuilt: {note}", True) if note else ("taken for whole", False)


def try_file(folder: Path, kept: Kept, content: bytes | None) -> tuple[str, bool]:
    path = folder / kept.path
    path.parent.mkdir(parents=True)
    path.mkdir() if content is None else path.write_bytes(content)
    return outcome(path, lambda: kept.read(path))


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: the container and the key."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield value, key
        if isinstance(item, dict | list):
            yield from leaves(item)


def at_random(kept: Kept, times: int, rng: random.Random) -> tuple[str, bool]:
    """Replace one leaf after another; any raw exception is a miss, valid ones may be whole."""
    counts = {"error": 0, "rebuilt": 0, "taken for whole": 0}
    for _ in range(times):
        value = copy.deepcopy(kept.whole)
        container, key = rng.choice(list(leaves(value)))
        container[key] = rng.choice(LEAVES)
        with tempfile.TemporaryDirectory() as name:
            said, fine = try_file(Path(name), kept, written(kept, value))
        if not fine and said != "taken for whole":
            return f"{key!r} = {container[key]!r}: {said}", False
        counts[said.partition(":")[0]] += 1
    return ", ".join(f"{count} {what}" for what, count in counts.items()), True


def sources(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Models that are none."""
    table: dict[str, Any] = {
        "300 characters": "x" * 300,
        "NUL": "a\0b",
        "empty": "",
        "a number": 7,
        "a list": [["x"]],
        "a home of nobody": "~no-such-user/model",
        "../x": "../x",
        "no such model": "no/such-model",
    }
    for name, source in table.items():
        for kind in Kind:
            yield f"{kind} {name}", lambda k=kind, s=source: located(folder, {k: s})
    for name in ("absent", "json.absent", "../x", "", "json", "x" * 300, "a\0b"):
        source = f"package:{name}"
        yield f"{source[:20]!r}", lambda s=source: located(folder, {"transformers": s})
    for name, content in {"junk": b"junk", "cut": whole_onnx()[:90], "empty file": b""}.items():
        path = folder / f"{name.replace(' ', '-')}.onnx"
        path.write_bytes(content)
        yield f"onnx {name}", lambda p=path: located(folder, {"onnx": str(p)})
    for name in ("half", "junk weights", "a link in a ring"):
        path = folder / name.replace(" ", "-")
        half_model(path, name)
        yield f"folder {name}", lambda p=path: exported(folder, str(p))


def whole_onnx() -> bytes:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    nodes = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g" * 200, [value], [value])
    return onnx.helper.make_model(graph).SerializeToString()


def half_model(path: Path, name: str) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bert"}')
    if name == "junk weights":
        (path / "model.safetensors").write_bytes(b"\xff" * 64)
    if name == "a link in a ring":
        (path / "model.safetensors").symlink_to("model.safetensors")


def located(folder: Path, table: dict[str, Any]) -> object:
    spec = specs_from({"mine": table}, folder)["mine"]
    find = ready_onnx if spec.kind is Kind.ONNX else locate
    return find(spec, Store(folder / "cache"))


def exported(folder: Path, source: str) -> object:
    from enginegate.engines import run_reference
    from enginegate.models import export_model

    spec = ModelSpec("mine", Kind.TRANSFORMERS, source, vocab_size=300)
    return export_model(spec, Store(folder / "cache"), run_reference)


def answers() -> Iterator[tuple[str, str, str, bool]]:
    """What a server may answer that is named by `--gate-serve`, over both protocols."""
    sys.path.insert(0, str(ROOT))
    http, grpc = (
        importlib.import_module(f"tests.selftest.hostile_{n}") for n in ("server", "grpc")
    )
    for protocol, serving, found in (
        ("HTTP", http.serving, http.cases()),
        ("gRPC", grpc.serving, grpc.cases()),
    ):
        for name, place, answer, words in found:
            client._TIMEOUT_S = embed.LIMIT_S = 0.3 if "0.3 s" in words else 60.0
            with serving(**{place: answer}) as endpoint:
                here = Path(endpoint.address)
                said, fine = outcome(here, lambda e=endpoint: str(http.ask(e) and ""))
            yield protocol, name, said.replace(endpoint.address, "..."), fine and len(said) < 1000


def cases(rng: random.Random, times: int) -> Iterator[tuple[str, str, str, bool]]:
    for kind, kept in kinds().items():
        with tempfile.TemporaryDirectory() as name:
            said, _ = try_file(Path(name), kept, written(kept, kept.whole))
            yield kind, "as it should be", said, said == "taken for whole"
        for damage, content in damaged(kept):
            with tempfile.TemporaryDirectory() as name:
                yield kind, damage, *try_file(Path(name), kept, content)
        yield kind, f"{times} at random", *at_random(kept, times, rng)
    with tempfile.TemporaryDirectory() as name:
        for what, act in sources(Path(name)):
            yield "source", what, *outcome(Path("onnx", "mine"), lambda a=act: str(a() and ""))
    yield from answers()


def without_folders(said: str) -> str:
    """What is the same on every machine."""
    said = said.replace(sysconfig.get_path("stdlib"), "…")
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/\w+", "…", said)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", type=int, default=100)
    given = parser.parse_args()
    found = []
    for kind, damage, said, fine in cases(random.Random(given.seed), given.random):
        found.append(fine)
        print(
            f"{'' if fine else 'MISSED':6} {kind:15} {damage:24} {without_folders(said)[:300]}",
            flush=True,
        )
    print(f"{time.strftime('%Y-%m-%d')}: {len(found)} cases, {found.count(False)} missed")
    return int(not all(found))


if __name__ == "__main__":
    sys.exit(main())
