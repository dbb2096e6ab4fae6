"""Is fp16 rounded on this processor what torch's half computes, and is an overflow found?

    python benchmarks/half.py > results/half.txt

Seeded encoders of six shapes and MiniLM with its real weights, 64 texts each. `here` is the fp32
graph with every value rounded, as the fp16 engine is where a processor has no fp16; `torch` is the
module in torch.float16, on this processor too. Both are compared with fp32: largest difference of a
component. Then overflows are planted in one place of a model each, and clean models are asked for
any: what the plugin says of both, and how many texts torch's half makes NaN or infinite.
"""

import copy
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from transformers import AutoConfig, AutoModel

from enginegate.cache import Store
from enginegate.engines.onnxruntime import open_onnx, run_onnx
from enginegate.engines.probing import measured_ranges
from enginegate.engines.quantize import round_to, roundings_of
from enginegate.engines.ranges import judged_ranges
from enginegate.files import default_cache
from enginegate.machine.fingerprint import this_machine
from enginegate.models import read_layers
from enginegate.models.sources import locate
from enginegate.models.spec import SHIPPED
from enginegate.variants import Precision

VOCABULARY, TEXTS, LENGTH = 1000, 64, 32
SMALL = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {**SMALL, "intermediate_size": 512},
    "distilbert": {"dim": 128, "n_heads": 4, "n_layers": 3, "hidden_dim": 512},
    "mpnet": {**SMALL, "intermediate_size": 512},
    "xlm-roberta": {**SMALL, "intermediate_size": 512, "max_position_embeddings": 514},
    "modernbert": {**SMALL, "intermediate_size": 192, "pad_token_id": 0},
    "qwen3": {**SMALL, "intermediate_size": 384, "num_key_value_heads": 2, "head_dim": 32},
}


class Pooled(torch.nn.Module):
    """Mean pooling and a length of one around a body."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embeddings [rows, hidden]."""
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)


def encoder(shape: str, seed: int = 0, **more: Any) -> Pooled:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(shape, vocab_size=VOCABULARY, **{**SHAPES[shape], **more})
    body = AutoModel.from_config(config, attn_implementation="eager")
    with torch.no_grad():  # no two biases alike: equal ones become one weight of the file
        for parameter in body.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter) * (parameter.dim() == 1))
    return Pooled(body).eval().float()


def minilm() -> Pooled:
    folder = locate(SHIPPED["minilm"], Store(default_cache()))
    body = AutoModel.from_pretrained(str(folder), attn_implementation="eager")
    return Pooled(body).eval().float()


def texts(rows: int = TEXTS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(5, VOCABULARY, (rows, LENGTH))
    lengths = rng.integers(4, LENGTH + 1, (rows, 1))
    mask = (np.arange(LENGTH) < lengths).astype(np.int64)
    return {"input_ids": np.where(mask, ids, 1), "attention_mask": mask}


def exported(module: Pooled, path: Path) -> Path:
    arguments = tuple(torch.from_numpy(v) for v in texts(4).values())
    axes = {0: torch.export.Dim("rows", min=1, max=512), 1: torch.export.Dim("seq", min=2, max=64)}
    torch.onnx.export(
        module,
        arguments,
        path,
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=list(texts(1)),
        output_names=["sentence_embedding"],
        dynamic_shapes=[axes, axes],
    )
    return path


def in_half(module: Pooled) -> np.ndarray:
    half = copy.deepcopy(module).half()
    with torch.no_grad():
        found = half(*(torch.from_numpy(v) for v in texts().values()))
    return found.float().numpy()


def rounded(path: Path) -> tuple[np.ndarray, int]:
    """Embeddings of the graph that rounds, and how many roundings it has.

    Loading it fails unless every one of them is seen at work.
    """
    target = path.with_suffix(".rounded")
    round_to(Precision.FP16, path, target)
    seen = roundings_of(target, "sentence_embedding")
    engine = open_onnx(target, "sentence_embedding", texts(4), 1, seen)
    return engine.embed(texts()), len(seen)


def agreement(name: str, module: Pooled, path: Path) -> str:
    wanted = run_onnx(path, texts())
    here, seen = rounded(path)
    deltas = [float(np.abs(found - wanted).max()) for found in (here, in_half(module))]
    ratio = deltas[0] / deltas[1]
    told = "within 2" if 1 / 2 <= ratio <= 2 else "BEYOND 2"
    return f"{name:13} {deltas[0]:9.2e} {deltas[1]:9.2e} {ratio:6.2f} {told}  {seen:4} of {seen}"


def said_of(module: Pooled, path: Path) -> tuple[str, int, int]:
    """The fault that is found, and the texts that torch's half and we make NaN or infinite."""
    found = judged_ranges(measured_ranges(path, texts()), read_layers(path))
    torchs, ours = in_half(module), rounded(path)[0]
    return found.fault, *(int((~np.isfinite(v)).any(1).sum()) for v in (torchs, ours))


@dataclass(frozen=True)
class Plant:
    """A number written into a place of one parameter.

    Attributes:
        shape: of the encoder.
        place: in words.
        name: end of the parameter's name.
        number: what is written.
        at: where.
    """

    shape: str
    place: str
    name: str
    number: float
    at: Any = 3

    def into(self, module: Pooled, path: Path, target: Path) -> Pooled:
        """The module, and its file, with the number."""
        planted = copy.deepcopy(module)
        ((full, parameter),) = (
            (n, p) for n, p in planted.named_parameters() if n.endswith(self.name)
        )
        with torch.no_grad():
            parameter[self.at] = self.number
        model = onnx.load(path)
        (tensor,) = (t for t in model.graph.initializer if t.name.endswith(full))
        tensor.CopyFrom(onnx.numpy_helper.from_array(parameter.detach().numpy(), tensor.name))
        onnx.save(model, target)
        return planted


WORDS = (slice(None, None, 7), 5)  # a channel of every seventh word
PLANTED = (
    Plant("bert", "FFN of block 1", "layer.1.intermediate.dense.bias", 1e5),
    Plant("bert", "residual of block 2", "layer.2.output.dense.bias", 7e4),
    Plant("bert", "values of block 0", "layer.0.attention.self.value.bias", 8e4),
    Plant("bert", "queries of block 2", "layer.2.attention.self.query.bias", -9e4),
    Plant("distilbert", "FFN of block 1", "layer.1.ffn.lin1.bias", 7e4),
    Plant("mpnet", "residual of block 0", "layer.0.output.dense.bias", -7e4),
    Plant("xlm-roberta", "LayerNorm of block 1", "layer.1.output.LayerNorm.weight", 9e4),
    Plant("modernbert", "norm of the words", "embeddings.norm.weight", 1e5),
    Plant("qwen3", "words", "embed_tokens.weight", 7e4, WORDS),
    Plant("qwen3", "norm of block 2", "layers.2.post_attention_layernorm.weight", 1e5),
)
LOUD = Plant("qwen3", "squares of 400, in fp32", "embed_tokens.weight", 400.0, WORDS)


def main() -> None:
    machine = this_machine()
    print(time.strftime("%Y-%m-%d"), machine.cpu, f"{machine.cores} cores", sep=", ")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = {shape: encoder(shape) for shape in SHAPES} | {"minilm": minilm()}
        wide = {"bert, wide": encoder("bert", 1, initializer_range=0.15)}
        wide["mpnet, wide"] = encoder("mpnet", 2, initializer_range=0.1)
        clean = {n: (m, exported(m, folder / f"{n}.onnx")) for n, m in (made | wide).items()}
        print("largest difference to fp32: here, torch's half, their ratio; roundings at work")
        for name in made:
            print(agreement(name, *clean[name]), flush=True)
        show_planted(clean, folder / "planted.onnx")
        loud = LOUD.into(*clean[LOUD.shape], folder / "loud.onnx")
        show_clean(clean | {f"{LOUD.shape}, {LOUD.place}": (loud, folder / "loud.onnx")})


def show_planted(clean: Mapping[str, tuple[Pooled, Path]], target: Path) -> None:
    print("\nplanted overflows: texts lost by torch's half, texts lost here, and what is said")
    found = 0
    for plant in PLANTED:
        fault, half, here = said_of(plant.into(*clean[plant.shape], target), target)
        found += bool(fault)
        told = fault or "NOT FOUND"
        print(f"{plant.shape:12} {plant.place:22} {half:3} {here:3}  {told}", flush=True)
    print(f"found {found} of {len(PLANTED)}")


def show_clean(clean: Mapping[str, tuple[Pooled, Path]]) -> None:
    print("\nclean models: the same")
    wrong = 0
    for name, (module, path) in clean.items():
        fault, half, here = said_of(module, path)
        wrong += bool(fault)
        print(f"{name:35} {half:3} {here:3}  {fault or 'nothing'}", flush=True)
    print(f"claimed {wrong} of {len(clean)}")


if __name__ == "__main__":
    main()
