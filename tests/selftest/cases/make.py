"""Makes the cases of README.md: `python make.py FOLDER [CASE …]`. Each is a user's project."""

import shutil
import sys
from pathlib import Path

import onnx
import torch
from shapes import Pooled, bert, example, export, sentence_folder, write_project, write_tokenizer

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def base(folder):
    """A transformers folder that every case may use: its path and the size of its vocabulary."""
    source = folder.parent / "_base"
    size = write_tokenizer(source)
    bert(size, folder=source)
    return source, size


@case
def int8_file(folder):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source, size = base(folder)
    export(Pooled(bert(size, layers=2)), folder / "fp32.onnx")
    quantize_dynamic(folder / "fp32.onnx", folder / "model.onnx", weight_type=QuantType.QInt8)
    write_project(folder, onnx="model.onnx", tokenizer=str(source / "tokenizer.json"))


@case
def fp16_file(folder):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    source, size = base(folder)
    export(Pooled(bert(size)), folder / "fp32.onnx")
    half = convert_float_to_float16(onnx.load(folder / "fp32.onnx"), keep_io_types=True)
    onnx.save(half, folder / "model.onnx")
    write_project(folder, onnx="model.onnx", tokenizer=str(source / "tokenizer.json"))


@case
def token_output(folder):
    source, size = base(folder)
    module = Pooled(bert(size), "tokens")
    export(module, folder / "model.onnx", output="last_hidden_state")
    keys = {"onnx": "model.onnx", "pooling": "mean", "normalize": True}
    write_project(folder, tokenizer=str(source / "tokenizer.json"), **keys)


@case
def left_padding(folder):
    folder.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(folder, side="left", padding=True)
    body = bert(size)

    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, input_ids, attention_mask):
            places = (attention_mask.cumsum(1) - 1).clamp(min=0)
            hidden = self.body(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=places
            ).last_hidden_state
            return torch.nn.functional.normalize(hidden[:, -1], dim=1)

    export(Last(), folder / "model.onnx")
    write_project(folder, onnx="model.onnx")


@case
def position_ids(folder):
    source, size = base(folder)
    body = bert(size)

    class Placed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, input_ids, attention_mask, position_ids):
            hidden = self.body(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids
            ).last_hidden_state
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * weight).sum(1) / weight.sum(1)

    ids, mask = example()
    places = (mask.cumsum(1) - 1).clamp(min=0)
    names = ("input_ids", "attention_mask", "position_ids")
    export(Placed(), folder / "model.onnx", names=names, arguments=(ids, mask, places))
    write_project(folder, onnx="model.onnx", tokenizer=str(source / "tokenizer.json"))


@case
def int32_inputs(folder):
    source, size = base(folder)

    class Narrow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pooled = Pooled(bert(size))

        def forward(self, input_ids, attention_mask):
            return self.pooled(input_ids.long(), attention_mask.long())

    ids, mask = example()
    export(Narrow(), folder / "model.onnx", arguments=(ids.int(), mask.int()))
    write_project(folder, onnx="model.onnx", tokenizer=str(source / "tokenizer.json"))


@case
def weights_among_inputs(folder):
    source, size = base(folder)
    export(Pooled(bert(size)), folder / "plain.onnx")
    model = onnx.load(folder / "plain.onnx")
    for weight in model.graph.initializer:
        shape = onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
        model.graph.input.append(shape)
    onnx.save(model, folder / "model.onnx")
    write_project(folder, onnx="model.onnx", tokenizer=str(source / "tokenizer.json"))


@case
def links(folder):
    source, size = base(folder)
    export(Pooled(bert(size)), folder / "plain.onnx")
    blobs, snapshot = folder / "blobs", folder / "snapshot"
    for made in (blobs, snapshot):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
    onnx.save_model(
        onnx.load(folder / "plain.onnx"),
        blobs / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=1024,
    )
    (blobs / "model.onnx").rename(blobs / "1f3a")
    (blobs / "model.onnx_data").rename(blobs / "77c0")
    (snapshot / "model.onnx").symlink_to("../blobs/1f3a")
    (snapshot / "model.onnx_data").symlink_to("../blobs/77c0")
    write_project(folder, onnx="snapshot/model.onnx", tokenizer=str(source / "tokenizer.json"))


@case
def folder_says_first(folder):
    from sentence_transformers import models as parts

    source, _ = base(folder)
    sentence_folder(folder / "model", source, pooling="cls", more=[parts.Normalize()])
    write_project(folder, transformers="model")


@case
def folder_says_sixteen(folder):
    source, _ = base(folder)
    sentence_folder(folder / "model", source, limit=16)
    write_project(folder, sentence_transformers="model", seq_len=64)


@case
def default_prompt(folder):
    source, _ = base(folder)
    prompts = {"query": "represent this sentence for searching relevant passages: "}
    config = {"prompts": prompts, "default_prompt_name": "query"}
    sentence_folder(folder / "model", source, config=config)
    write_project(folder, sentence_transformers="model")


@case
def saved_dimensions(folder):
    source, _ = base(folder)
    sentence_folder(folder / "model", source, config={"truncate_dim": 16})
    write_project(folder, sentence_transformers="model")


@case
def dropped_head(folder):
    from transformers import BertConfig, BertForSequenceClassification

    source, size = base(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=size, intermediate_size=256, num_labels=1, **shape)
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / "model" / name)
    write_project(folder, transformers="model")


@case
def pad_is_one(folder):
    folder.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(folder, special=("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    pooled = Pooled(bert(size))

    class Masking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pooled = pooled

        def forward(self, input_ids):
            return self.pooled(input_ids, (input_ids != 1).long())

    export(Masking(), folder / "model.onnx", names=("input_ids",), arguments=(example(pad=1)[0],))
    write_project(folder, onnx="model.onnx")


@case
def stale_factory(folder):
    source, _ = base(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder.py").write_text(
        "import torch\nfrom transformers import AutoModel\n\n"
        'POOLING = "mean"  # judge once, change it to "first", judge again\n\n\n'
        "class Encoder(torch.nn.Module):\n"
        "    def __init__(self, pooling):\n"
        "        super().__init__()\n"
        f"        self.body = AutoModel.from_pretrained({str(source)!r}, add_pooling_layer=False)\n"
        "        self.pooling = pooling\n\n"
        "    def forward(self, ids, mask):\n"
        "        hidden = self.body(input_ids=ids, attention_mask=mask).last_hidden_state\n"
        '        if self.pooling == "first":\n'
        "            return hidden[:, 0]\n"
        "        weight = mask.unsqueeze(-1).to(hidden.dtype)\n"
        "        return (hidden * weight).sum(1) / weight.sum(1)\n\n\n"
        "def build():\n    return Encoder(POOLING)\n"
    )
    path = '[tool.pytest.ini_options]\npythonpath = ["."]\n'
    write_project(folder, path, factory="encoder:build", tokenizer=str(source / "tokenizer.json"))


@case
def half_overflows(folder):
    source, size = base(folder)

    class Growing(torch.nn.Module):
        """A residual stream that reaches 70,000 on one channel of some words."""

        def __init__(self, width=64):
            super().__init__()
            torch.manual_seed(0)
            self.words = torch.nn.Embedding(size, width)
            self.linear = torch.nn.Linear(width, width)
            self.before, self.after = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
            with torch.no_grad():
                self.words.weight[::7, 5] = 40000.0
                self.linear.weight[5], self.linear.bias[5] = 0, 30000.0

        def forward(self, input_ids, attention_mask):
            stream = self.words(input_ids)
            stream = self.after(stream + self.linear(self.before(stream)))
            weight = attention_mask.unsqueeze(-1).to(stream.dtype)
            return (stream * weight).sum(1) / weight.sum(1)

    export(Growing(), folder / "model.onnx", dynamo=True)
    write_project(folder, onnx="model.onnx", tokenizer=str(source / "tokenizer.json"))


@case
def boolean_mask(folder):
    source, size = base(folder)

    class Attending(torch.nn.Module):
        """One attention layer with a boolean mask. Nothing is wrong with it."""

        def __init__(self, width=64):
            super().__init__()
            torch.manual_seed(0)
            self.words, self.norm = torch.nn.Embedding(size, width), torch.nn.LayerNorm(width)
            self.q, self.k, self.v, self.o = (torch.nn.Linear(width, width) for _ in range(4))

        def forward(self, input_ids, attention_mask):
            stream = self.words(input_ids)
            scores = self.q(stream) @ self.k(stream).transpose(1, 2) / 8
            scores = scores.masked_fill(attention_mask[:, None, :] == 0, -1e4)
            stream = self.norm(stream + self.o(torch.softmax(scores, -1) @ self.v(stream)))
            weight = attention_mask.unsqueeze(-1).to(stream.dtype)
            return (stream * weight).sum(1) / weight.sum(1)

    export(Attending(), folder / "model.onnx", dynamo=True)
    write_project(folder, onnx="model.onnx", tokenizer=str(source / "tokenizer.json"))


@case
def two_large(folder):
    """Two fine-tunes of one architecture, each over 2 GB in fp32: needs 5 GB of disk."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    source, _ = base(folder)
    shape = {"hidden_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 16}
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        config = XLMRobertaConfig(
            vocab_size=530_000, intermediate_size=4096, max_position_embeddings=514, **shape
        )
        XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / file, folder / name / file)
    write_project(folder, transformers="a", pooling="mean", normalize=True)


def main():
    target = Path(sys.argv[1]).resolve()
    for name in sys.argv[2:] or [name for name in CASES if name != "two_large"]:
        CASES[name](target / name)
        print(name)


if __name__ == "__main__":
    main()
