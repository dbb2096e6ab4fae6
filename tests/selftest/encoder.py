"""An encoder of any size as a torch module, exported to ONNX in a moment."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

INPUTS = ["input_ids", "attention_mask"]


@dataclass(frozen=True)
class Sizes:
    """Hidden size, layers, heads, width between, embedding size."""

    hidden: int
    layers: int
    heads: int
    between: int
    dim: int


class _Layer(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        hidden, self.heads = sizes.hidden, sizes.heads
        self.q, self.k, self.v, self.o = (nn.Linear(hidden, hidden) for _ in range(4))
        self.up, self.down = nn.Linear(hidden, sizes.between), nn.Linear(sizes.between, hidden)
        self.before, self.after = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.scale = (hidden // sizes.heads) ** -0.5

    def forward(self, x, mask):
        batch, seq, hidden = x.shape
        split = (batch, seq, self.heads, hidden // self.heads)
        q, k, v = (line(x).view(split).transpose(1, 2) for line in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(2, 3) * self.scale + mask, -1)
        mixed = (weights @ v).transpose(1, 2).reshape(batch, seq, hidden)
        x = self.before(x + self.o(mixed))
        return self.after(x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """Token ids and mask, int64 [batch, seq], to float32 [batch, dim]."""

    def __init__(self, sizes):
        super().__init__()
        self.words = nn.Embedding(20, sizes.hidden)
        self.norm = nn.LayerNorm(sizes.hidden)
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))
        self.head = nn.Linear(sizes.hidden, sizes.dim)

    def forward(self, ids, mask):
        x = self.norm(self.words(ids))
        far = (1 - mask[:, None, None, :].float()) * -1e9
        for layer in self.layers:
            x = layer(x, far)
        return self.head(x[:, 0])


def tokens(batch, seq):
    """Ids and mask, int64 [batch, seq]."""
    ones = torch.ones(batch, seq, dtype=torch.int64)
    return ones, ones


def write_encoder(path: Path, sizes: Sizes) -> Encoder:
    """Write it with dynamic batch and sequence."""
    encoder = Encoder(sizes).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            tokens(2, 6),
            str(path),
            dynamo=False,  # in a tenth of the time
            input_names=INPUTS,
            output_names=["sentence_embedding"],
            dynamic_axes={name: {0: "batch", 1: "seq"} for name in INPUTS},
            opset_version=17,
        )
    return encoder
