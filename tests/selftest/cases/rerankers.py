"""Tiny rerankers with seeded weights, as people have them. Nothing is fetched."""

import json

import shapes
import torch

LENGTH = 128
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_labels": 1,
    "initializer_range": 0.15,
}
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def change(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def bert(folder):
    """One that tells query and document by token types; its head is as wide as scores are."""
    from transformers import BertConfig, BertForSequenceClassification

    vocab = shapes.write_tokenizer(folder, limit=LENGTH)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    change(folder / "tokenizer_config.json", model_input_names=names)
    torch.manual_seed(21)
    model = BertForSequenceClassification(BertConfig(vocab_size=vocab, **SIZES)).eval()
    _widen(model.classifier)
    model.save_pretrained(folder)


def xlm_roberta(folder):
    """One without token types, as saved by sentence-transformers, that gives logits."""
    from sentence_transformers import CrossEncoder
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    source = folder.parent / "source"
    vocab = shapes.write_tokenizer(source, special=ROBERTA, limit=LENGTH)
    torch.manual_seed(22)
    config = XLMRobertaConfig(
        vocab_size=vocab, max_position_embeddings=514, pad_token_id=1, **SIZES
    )
    model = XLMRobertaForSequenceClassification(config).eval()
    _widen(model.classifier.out_proj)
    model.save_pretrained(source)
    scorer = CrossEncoder(str(source), device="cpu", activation_fn=torch.nn.Identity())
    scorer.save(str(folder))


def _widen(head):
    """Scores of seeded weights are nearly the same: spread them as trained ones are."""
    with torch.no_grad():
        head.weight.mul_(3)


def make_bert(folder):
    bert(folder / "model")
    shapes.write_project(folder, transformers="model")


def make_xlm_roberta(folder):
    xlm_roberta(folder / "model")
    shapes.write_project(folder, sentence_transformers="model")


RERANKERS = {"reranker": make_bert, "reranker-xlm-r": make_xlm_roberta}
