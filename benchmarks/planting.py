"""How to plant accuracy faults in a shipped model; benchmarks/planted.py lists them."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx_edits import Edit

from enginegate.cache import Store
from enginegate.engines.api import embed_all
from enginegate.engines.build import build_engine
from enginegate.engines.onnxruntime import open_onnx, run_onnx
from enginegate.models import Exported
from enginegate.models.export import export_model, tokenize_with
from enginegate.models.spec import specs_from
from enginegate.models.tokens import Encoded
from enginegate.models.workload import Batch, Workload, make_workload, read_texts, take
from enginegate.variants import Precision, Variant

MINILM, DISTILBERT = "minilm", "distilbert-base-cased-96"
MODELS = (MINILM, DISTILBERT)
Embed = Callable[[Batch], np.ndarray]
Make = Callable[["Subject", Path], Embed]


@dataclass(frozen=True)
class Subject:
    """A model to spoil.

    Attributes:
        model: its ONNX file.
        workload: the texts that it is judged on.
        store: keeps engines.
        threads: that an engine may use.
    """

    model: Exported
    workload: Workload
    store: Store
    threads: int = 1

    def open(self, path: Path) -> Any:
        """An ONNX file as an engine."""
        probe = take(self.workload.evaluation, slice(2))
        return open_onnx(path, self.model.output, probe, self.threads)

    def expected(self) -> np.ndarray:
        """The reference's embeddings, float32 [texts, dim]."""
        return embed_all(self.open(self.model.onnx), self.workload.evaluation)


def subject_of(name: str, cache: Path, texts: Sequence[str] | None = None) -> Subject:
    """A shipped model with the default texts, or with others."""
    store = Store(cache)
    model = export_model(specs_from({}, Path.cwd())[name], store, run_onnx)
    tokenize = tokenize_with(model)
    where, found = read_texts(None) if texts is None else ("other texts", list(texts))
    return Subject(model, make_workload(where, found, tokenize, model.inputs), store)


@dataclass(frozen=True)
class Fault:
    """What somebody did wrong.

    Attributes:
        name: in a few words.
        model: the shipped model it is planted in.
        layer: first output of the node that is wrong; None where no single layer is.
        make: the spoiled engine.
        precision: whose limits judge it.
        edit: what was done to the ONNX file; None where the file is as it was.
    """

    name: str
    model: str
    layer: str | None
    make: Make
    precision: Precision = Precision.FP32
    edit: Edit | None = None


def edited(edit: Edit) -> Make:
    """The model with an edited graph."""

    def make(subject: Subject, folder: Path) -> Embed:
        return subject.open(write_edited(edit, subject.model.onnx, folder / "edited.onnx")).embed

    return make


def write_edited(edit: Edit, source: Path, target: Path) -> Path:
    """An ONNX file with an edit."""
    model = onnx.load(str(source))
    edit(model)
    onnx.save(model, str(target))
    return target


def quantised(edit: Edit) -> Make:
    """OpenVINO's int8 engine of an edited graph."""

    def make(subject: Subject, folder: Path) -> Embed:
        path = write_edited(edit, subject.model.onnx, folder / "edited.onnx")
        model = dataclasses.replace(subject.model, onnx=path, sha256=str(folder))
        variant = Variant(subject.model.spec.name, "openvino", Precision.INT8)
        built = build_engine(Store(folder), variant, model, subject.workload)
        return built.load(subject.workload, subject.threads).__enter__().embed  # ends with us

    return make


def fed(spoil: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Make:
    """The model as it is, given other tokens."""

    def make(subject: Subject, _folder: Path) -> Embed:
        engine = subject.open(subject.model.onnx)
        return lambda batch: engine.embed(spoil({name: v.copy() for name, v in batch.items()}))

    return make


def returned(spoil: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Make:
    """The model as it is, its embeddings spoiled; `spoil` also gets the rows among the texts."""

    def make(subject: Subject, _folder: Path) -> Embed:
        engine = subject.open(subject.model.onnx)
        known = {ids.tobytes(): n for n, ids in enumerate(subject.workload.evaluation["input_ids"])}

        def embed(batch: Batch) -> np.ndarray:
            rows = np.array([known.get(ids.tobytes(), -1) for ids in batch["input_ids"]])
            return spoil(engine.embed(batch).copy(), rows)

        return embed

    return make


def retokenised(
    texts: Callable[[str], str], tokenizer: Callable[[Any], None] | None = None
) -> Make:
    """The model as it is, given the tokens of changed texts or of a changed tokenizer."""

    def make(subject: Subject, _folder: Path) -> Embed:
        engine, workload = subject.open(subject.model.onnx), subject.workload
        tokenize = tokenize_with(subject.model)
        if tokenizer is not None:
            tokenize = _changed_tokenizer(subject.model, tokenizer)
        found = tokenize([texts(text) for text in workload.texts])
        ids, mask = found.ids, found.mask
        known = {row.tobytes(): n for n, row in enumerate(workload.evaluation["input_ids"])}

        def embed(batch: Batch) -> np.ndarray:
            rows = [known[row.tobytes()] for row in batch["input_ids"]]
            return engine.embed({"input_ids": ids[rows], "attention_mask": mask[rows]})

        return embed

    return make


def _changed_tokenizer(model: Exported, change: Callable[[Any], None]) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model.tokenizer))
    tokenizer.enable_truncation(model.seq_len)
    tokenizer.enable_padding(length=model.seq_len, pad_id=0)
    change(tokenizer)

    def tokenize(texts: Sequence[str]) -> Encoded:
        encoded = tokenizer.encode_batch(list(texts))
        ids = np.array([e.ids for e in encoded], dtype=np.int64)
        mask = np.array([e.attention_mask for e in encoded], dtype=np.int64)
        return Encoded(ids, mask, np.zeros_like(ids), 0)

    return tokenize


def calibrated(spoil: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Make:
    """OpenVINO's int8 engine, its ranges taken from other tokens."""

    def make(subject: Subject, folder: Path) -> Embed:
        workload = subject.workload
        tokens = spoil({name: values.copy() for name, values in workload.calibration.items()})
        blind = dataclasses.replace(workload, calibration=tokens, sha256=str(folder))
        variant = Variant(subject.model.spec.name, "openvino", Precision.INT8)
        built = build_engine(Store(folder), variant, subject.model, blind)
        return built.load(workload, subject.threads).__enter__().embed  # ends with the process

    return make


def dynamic(subject: Subject, folder: Path) -> Embed:
    """int8 with ranges taken from each batch."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(subject.model.onnx, folder / "dynamic.onnx")
    return subject.open(folder / "dynamic.onnx").embed
