"""A tiny SPLADE model with seeded weights: some words of 0.1 of its vocabulary for a text."""

import shapes
import torch

LENGTH = 64
FEW = 1.7  # the bias of words in units of the logits' spread: most are below 0 then


def splade(folder):
    from sentence_transformers import SparseEncoder
    from transformers import BertConfig, BertForMaskedLM

    source = folder.parent / "source"
    vocab = shapes.write_tokenizer(source, limit=LENGTH)
    torch.manual_seed(31)
    config = BertConfig(
        vocab_size=vocab,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.15,
    )
    model = BertForMaskedLM(config).eval()
    ids, mask = shapes.example()
    with torch.no_grad():
        spread = model(input_ids=ids, attention_mask=mask).logits.std()
        model.cls.predictions.bias.fill_(-FEW * float(spread))
    model.save_pretrained(source)
    SparseEncoder(str(source), device="cpu").save(str(folder))


def make_splade(folder):
    splade(folder / "model")
    shapes.write_project(folder, sentence_transformers="model")
