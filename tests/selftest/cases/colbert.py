"""Tiny ColBERT models with seeded weights: a vector for each token, as people have them."""

import json
import shutil
import string

import shapes
import torch

LENGTH, WIDTH = 64, 32
MARKERS = {"query": "[Q] ", "document": "[D] "}
EXPANSION = {"strategy": "fixed", "attend": False, "length": 32}


def source(folder):
    """A transformers folder whose tokenizer knows a marker for each role."""
    from transformers import AutoTokenizer

    size = shapes.write_tokenizer(folder, limit=LENGTH)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    markers = [marker.strip() for marker in MARKERS.values()]
    tokenizer.add_special_tokens({"additional_special_tokens": markers})
    tokenizer.save_pretrained(str(folder))
    shapes.bert(size + len(markers), folder=folder, seed=41, layers=2)


def modules(body, *, skipped=string.punctuation):
    """The steps behind a transformer: projection, mask, length 1."""
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    torch.manual_seed(42)
    dense = Dense(
        body.get_embedding_dimension(),
        WIDTH,
        bias=False,
        activation_function=torch.nn.Identity(),
        module_input_name="token_embeddings",
    )
    return [
        body,
        dense,
        MultiVectorMask(skiplist_words=list(skipped)),
        Normalize(module_input_name="token_embeddings"),
    ]


def colbert(folder, *, expansion=EXPANSION, skipped=string.punctuation):
    """One as sentence-transformers saves it."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Transformer

    home = folder.parent / "source"
    source(home)
    body = Transformer(str(home), max_seq_length=LENGTH, query_expansion=expansion)
    made = MultiVectorEncoder(modules=modules(body, skipped=skipped), prompts=MARKERS, device="cpu")
    made.save(str(folder))


def as_pylate(folder):
    """The same as PyLate saves it: its own keys, neither mask nor normalisation among modules."""
    for name in ("2_MultiVectorMask", "3_Normalize"):
        shutil.rmtree(folder / name)
    listed = json.loads((folder / "modules.json").read_text())[:2]
    listed[1]["type"] = "pylate.models.Dense.Dense"
    (folder / "modules.json").write_text(json.dumps(listed))
    path = folder / "config_sentence_transformers.json"
    own = {f"{role}_prefix": marker for role, marker in MARKERS.items()}
    own |= {"model_type": "ColBERT", "similarity_fn_name": "MaxSim", "prompts": {}}
    own |= {"query_length": 32, "document_length": 48, "attend_to_expansion_tokens": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 63}))


def make_pylate(folder):
    colbert(folder / "model")
    as_pylate(folder / "model")
    shapes.write_project(folder, sentence_transformers="model")


def make_colbert(folder):
    colbert(folder / "model")
    shapes.write_project(folder, sentence_transformers="model")


COLBERTS = {"colbert": make_colbert, "colbert-pylate": make_pylate}
