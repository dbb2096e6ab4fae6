"""Tiny models of the families that are deployed today, with seeded weights. Nothing is fetched."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import shapes
import torch

HIDDEN, LAYERS, LENGTH, SPREAD = 64, 3, 64, 0.15
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def sizes(hidden=HIDDEN, layers=LAYERS):
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * hidden,
        "initializer_range": SPREAD,
    }


def bert(vocab, **size):
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=vocab, **sizes(**size)), add_pooling_layer=False)


def distilbert(vocab):
    from transformers import DistilBertConfig, DistilBertModel

    given = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 2 * HIDDEN}
    return DistilBertModel(DistilBertConfig(vocab_size=vocab, initializer_range=SPREAD, **given))


def mpnet(vocab):
    from transformers import MPNetConfig, MPNetModel

    return MPNetModel(
        MPNetConfig(vocab_size=vocab, max_position_embeddings=514, **sizes()),
        add_pooling_layer=False,
    )


def xlm_roberta(vocab, **size):
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(
        vocab_size=vocab, max_position_embeddings=514, pad_token_id=1, **sizes(**size)
    )
    return XLMRobertaModel(config, add_pooling_layer=False)


def modernbert(vocab, **size):
    from transformers import ModernBertConfig, ModernBertModel

    ends = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3}
    return ModernBertModel(
        ModernBertConfig(
            vocab_size=vocab, eos_token_id=3, local_attention=16, **ends, **sizes(**size)
        )
    )


def deberta(vocab):
    from transformers import DebertaV2Config, DebertaV2Model

    config = DebertaV2Config(
        vocab_size=vocab,
        relative_attention=True,
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type="p2c|c2p",
        position_biased_input=False,
        type_vocab_size=0,
        **sizes(),
    )
    return DebertaV2Model(config)


def t5(vocab):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=vocab,
            d_model=HIDDEN,
            d_kv=16,
            d_ff=2 * HIDDEN,
            num_layers=LAYERS,
            num_heads=4,
            pad_token_id=0,
            eos_token_id=3,
            decoder_start_token_id=0,
        )
    )


def qwen3(vocab, **size):
    from transformers import Qwen3Config, Qwen3Model

    given = sizes(**size)
    heads = {"num_key_value_heads": 2, "head_dim": given["hidden_size"] // 4}
    return Qwen3Model(Qwen3Config(vocab_size=vocab, pad_token_id=0, **heads, **given))


def gemma3(vocab):
    from transformers import Gemma3TextConfig, Gemma3TextModel

    config = Gemma3TextConfig(
        vocab_size=vocab,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
        sliding_window=16,
        use_bidirectional_attention=True,
        query_pre_attn_scalar=16,
        **sizes(),
    )
    return Gemma3TextModel(config)


def clip(vocab):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocab,
        projection_dim=32,
        max_position_embeddings=LENGTH,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **sizes(),
    )
    return CLIPTextModelWithProjection(config)


def transformers_folder(make, folder, *, seed=11, **tokens):
    """A folder as transformers saves it, its tokenizer beside the weights."""
    vocab = shapes.write_tokenizer(folder, limit=LENGTH, **tokens)
    torch.manual_seed(seed)
    make(vocab).eval().save_pretrained(folder)
    return folder


def sentence_folder(make, folder, *, pooling="mean", more=(), config=None, **tokens):
    """A sentence-transformers folder around one of transformers."""
    source = transformers_folder(make, folder.parent / f"{folder.name}-source", **tokens)
    torch.manual_seed(12)
    modules = [one() for one in more]
    shapes.sentence_folder(
        folder, source, pooling=pooling, more=modules, limit=LENGTH, config=config
    )
    shutil.rmtree(source)


def normalize():
    from sentence_transformers import models as parts

    return parts.Normalize()


def dense(inner, outer):
    def make():
        from sentence_transformers import models as parts

        return parts.Dense(inner, outer, bias=False, activation_function=torch.nn.Identity())

    return make


INSTRUCTED = {
    "prompts": {"query": "Instruct: find what answers\nQuery: ", "document": ""},
    "default_prompt_name": "query",
}
Make = Callable[[Path], None]
SENTENCES: Mapping[str, tuple] = MappingProxyType(
    {
        "bert": (bert, {"pooling": "cls", "more": [normalize]}),
        "distilbert": (distilbert, {}),
        "mpnet": (mpnet, {"special": ROBERTA, "more": [normalize]}),
        "xlm-r": (xlm_roberta, {"special": ROBERTA, "pooling": "cls", "more": [normalize]}),
        "modernbert": (modernbert, {"pooling": "cls", "more": [normalize]}),
        "deberta-v3": (deberta, {}),
        "t5": (t5, {"more": [dense(HIDDEN, 48), normalize]}),
        "qwen3": (
            qwen3,
            {"side": "left", "pooling": "lasttoken", "more": [normalize], "config": INSTRUCTED},
        ),
        "gemma3": (
            gemma3,
            {"more": [dense(HIDDEN, 128), dense(128, HIDDEN), normalize]},
        ),
    }
)


def make_family(name, folder):
    """Write a project whose model `mine` is of this family."""
    if name in SENTENCES:
        make, keys = SENTENCES[name]
        sentence_folder(make, folder / "model", **keys)
        shapes.write_project(folder, sentence_transformers="model", seq_len=48)
    else:
        OTHERS[name](folder)


def static(folder):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as parts
    from tokenizers import Tokenizer

    source = folder / "words"
    vocab = shapes.write_tokenizer(source)
    torch.manual_seed(13)
    module = parts.StaticEmbedding(
        Tokenizer.from_file(str(source / "tokenizer.json")),
        embedding_weights=torch.randn(vocab, HIDDEN).numpy(),
    )
    SentenceTransformer(modules=[module], device="cpu").save(str(folder / "model"))
    shapes.write_project(folder, sentence_transformers="model", seq_len=48)


def clip_text(folder):
    transformers_folder(clip, folder / "model")
    shapes.write_project(folder, transformers="model", seq_len=48)


def adapter(folder):
    from peft import LoraConfig, get_peft_model

    base = transformers_folder(bert, folder / "base")
    from transformers import BertModel

    torch.manual_seed(14)
    config = LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
    tuned = get_peft_model(BertModel.from_pretrained(base, add_pooling_layer=False), config)
    tuned.merge_and_unload().save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder / "model" / name)
    shapes.write_project(folder, transformers="model", seq_len=48)


CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class OwnConfig(PretrainedConfig):
    model_type = "own-encoder"

    def __init__(self, vocab_size=100, hidden_size=64, **more):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(**more)


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.mix = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **more):
        hidden = self.words(input_ids)
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        return BaseModelOutput(last_hidden_state=torch.tanh(self.mix(hidden + mean)))
"""


def custom_code(folder):
    model = folder / "model"
    vocab = shapes.write_tokenizer(model)
    (model / "modeling_own.py").write_text(CODE)
    spec = importlib.util.spec_from_file_location("modeling_own", model / "modeling_own.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(15)
    module.OwnModel(module.OwnConfig(vocab_size=vocab)).save_pretrained(model)
    path = model / "config.json"
    named = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": named}))
    shapes.write_project(
        folder, transformers="model", pooling="mean", trust_remote_code=True, seq_len=48
    )


OTHERS: Mapping[str, Make] = MappingProxyType(
    {"static": static, "clip": clip_text, "peft": adapter, "custom-code": custom_code}
)
FAMILIES = (*SENTENCES, *OTHERS)
