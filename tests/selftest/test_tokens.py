"""Texts become tokens as the model's own files say; what a table says otherwise is said."""

import json
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from enginegate.accuracy.collection import Collection
from enginegate.accuracy.user_texts import UserData
from enginegate.cache import Store
from enginegate.errors import ModelError, OptionError
from enginegate.models.export import export_model, tokenize_with
from enginegate.models.ready import ready_onnx
from enginegate.models.sources import content_key
from enginegate.models.spec import Exported, Kind, ModelSpec, specs_from
from enginegate.models.tokens import (
    TokenSettings,
    file_tokenizer,
    open_tokenizer,
    overruled,
    positions_of,
    settings_of,
)
from enginegate.models.workload import make_workload
from enginegate.report.wording.tokens import prompts_line, tokens_line

from .reports import context

WORDS = ("<s>", "<pad>", "</s>", "one", "two", "three", "four", "five", "ONE", "query", ":")
PADDED = {"pad_token": "<pad>"}
ROLES = {"input_ids": "ids", "attention_mask": "mask"}


@pytest.fixture
def folder(tmp_path):
    """A tokenizer of whole words, `<s>` first and `</s>` last, that says nothing of padding."""
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<s>"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def say(folder, name="tokenizer_config.json", **said):
    (folder / name).write_text(json.dumps(said))


def settings(folder):
    return settings_of(folder, open_tokenizer(folder / "tokenizer.json"))


def words(folder, text, seq_len=6):
    """What a text becomes."""
    found = file_tokenizer(folder / "tokenizer.json", seq_len)([text])
    return [WORDS[n] for n in found.ids[0]], found.mask[0].tolist(), found.cut


def test_padding_is_the_token_that_the_files_name(folder):
    assert words(folder, "one two")[0] == ["<s>", "one", "two", "</s>", "<s>", "<s>"]  # 0 pads
    say(folder, **PADDED)
    assert words(folder, "one two")[0] == ["<s>", "one", "two", "</s>", "<pad>", "<pad>"]
    say(folder, pad_token=None)
    say(folder, "special_tokens_map.json", pad_token={"content": "</s>"})
    assert settings(folder).pad_id == 2


def test_padding_and_truncation_are_on_the_side_that_the_files_name(folder):
    say(folder, **PADDED, padding_side="left", truncation_side="left")
    assert words(folder, "one") == (
        ["<pad>", "<pad>", "<pad>", "<s>", "one", "</s>"],
        [0, 0, 0, 1, 1, 1],
        0,
    )
    found, mask, cut = words(folder, "one two three four five")
    assert (found, mask, cut) == (["<s>", "two", "three", "four", "five", "</s>"], [1] * 6, 1)


def test_a_tokenizer_json_alone_is_asked_for_all_of_it(folder):
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding(direction="left", pad_id=1, pad_token="<pad>")  # noqa: S106
    tokenizer.enable_truncation(5, direction="left")
    tokenizer.save(str(path))
    assert settings(folder) == TokenSettings(5, None, 1, "<pad>", "left", "left")
    say(folder, padding_side="right", model_max_length=9)
    assert (settings(folder).padding_side, settings(folder).limit) == ("right", 9)


def test_the_limit_is_sentence_transformers_own_before_the_tokenizers(folder):
    assert settings(folder).limit is None
    say(folder, model_max_length=int(1e30))
    assert settings(folder).limit is None
    say(folder, model_max_length=512)
    say(folder, "sentence_bert_config.json", max_seq_length=16)
    assert settings(folder).limit == 16
    say(folder, "config.json", max_position_embeddings=12)
    assert settings(folder).longest == 12
    assert settings(folder).seq_len(None) == 12
    assert settings(folder).seq_len(10) == 10
    assert TokenSettings(limit=512).seq_len(None) == TokenSettings().seq_len(None) == 32


def test_case_is_lowered_where_either_file_asks_for_it(folder):
    assert words(folder, "ONE")[0][1] == "ONE"
    say(folder, tokenizer_class="BertTokenizer", do_lower_case=True)
    assert words(folder, "ONE")[0][1] == "one"
    say(folder, tokenizer_class="PreTrainedTokenizerFast", do_lower_case=True)
    assert words(folder, "ONE")[0][1] == "ONE"  # as transformers, which asks tokenizer.json alone
    say(folder, "sentence_bert_config.json", do_lower_case=True)
    assert words(folder, "ONE")[0][1] == "one"


def test_a_damaged_file_is_one_error_that_names_it(folder):
    (folder / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json is not valid \(it is not an obj"):
        settings(folder)


@pytest.mark.parametrize(
    "said",
    [{"prompts": ["query: "]}, {"prompts": {"query": 1}}, {"default_prompt_name": ["query"]}],
)
def test_prompts_that_are_no_texts_are_one_error_that_names_the_file(folder, said):
    say(folder, "config_sentence_transformers.json", **{"prompts": {"query": "query: "}, **said})
    with pytest.raises(ModelError, match=r"config_sentence_transformers\.json is not valid"):
        settings(folder)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 0}, 513),
        ({"model_type": "xlnet", "max_position_embeddings": -1}, None),
        ({"position_biased_input": False, "max_position_embeddings": 512}, None),
        ({}, None),
    ],
)
def test_positions_are_those_that_a_text_can_take(config, positions):
    assert positions_of(config) == positions


def never(*_):
    raise AssertionError("nothing is run here")


@pytest.mark.parametrize("kind", [Kind.TRANSFORMERS, Kind.ONNX])
def test_more_tokens_than_positions_are_one_error_with_both_numbers(folder, tiny_onnx, kind):
    say(folder, "config.json", model_type="roberta", max_position_embeddings=26)
    source = tiny_onnx if kind is Kind.ONNX else folder
    spec = ModelSpec("mine", kind, str(source), seq_len=25, tokenizer=str(folder))
    with pytest.raises(
        ModelError, match=r"seq_len = 25, and its config\.json has positions for 24"
    ):
        export_model(spec, Store(folder / "cache"), never)
    assert not (folder / "cache").exists()


PROMPTS = {
    "prompts": {"query": "query: ", "passage": "five ", "other": "two "},
    "default_prompt_name": "other",
}


def exported(folder, tiny_onnx, **keys):
    spec = ModelSpec("mine", Kind.ONNX, str(tiny_onnx), tokenizer=str(folder), seq_len=6, **keys)
    return export_model(spec, Store(folder), never)


def first_words(model, role):
    found = tokenize_with(model, role)(["one"])
    return [WORDS[n] for n in found.ids[0]]


def test_every_text_begins_with_the_prompt_of_its_role(folder, tiny_onnx):
    say(folder, "config_sentence_transformers.json", **PROMPTS)
    model = exported(folder, tiny_onnx)
    assert model.prompts == {"text": "two ", "query": "query: ", "document": "five "}
    assert first_words(model, "text")[1:3] == ["two", "one"]
    assert first_words(model, "query")[1:4] == ["query", ":", "one"]
    assert first_words(model, "document")[1:3] == ["five", "one"]
    collection = Collection(("one",) * 2, ("one", "three"), None)
    rows = UserData(collection).batch(
        lambda role, texts: {"input_ids": tokenize_with(model, role)(texts).ids}
    )
    found = [[WORDS[n] for n in row[1:4]] for row in rows["input_ids"]]
    assert found == [["query", ":", "one"], ["five", "one", "</s>"], ["five", "three", "</s>"]]


def test_a_table_replaces_prompts_and_what_it_replaces_is_said(folder, tiny_onnx):
    say(folder, "config_sentence_transformers.json", **PROMPTS)
    assert exported(folder, tiny_onnx).overruled == ()
    model = exported(folder, tiny_onnx, prompt={"query": "four "})
    assert first_words(model, "query")[1:3] == ["four", "one"]
    assert first_words(model, "text")[1:3] == ["two", "one"]
    said = 'prompt "four " of a query, where the model\'s own is "query: "'
    assert model.overruled == (said,)
    without = exported(folder, tiny_onnx, prompt="")
    assert first_words(without, "document")[1] == "one"
    assert 'prompt none of a text, where the model\'s own is "two "' in without.overruled
    assert len(without.overruled) == 3


def test_hashed_words_begin_with_the_prompt_too(tiny_onnx):
    def hashed(prompt):
        spec = ModelSpec(
            "mine", Kind.ONNX, str(tiny_onnx), prompt=prompt, seq_len=6, vocab_size=200
        )
        model = Exported(spec, tiny_onnx, "hash", "here", None, ROLES, "out")
        return tokenize_with(model)(["one"]).ids[0]

    found = {prompt: hashed(prompt) for prompt in ("", "query: ")}
    assert (found[""] > 0).sum() == 1
    assert (found["query: "] > 0).sum() == 3
    assert found["query: "][2] == found[""][0]


def test_a_length_beyond_the_models_own_is_said():
    own = TokenSettings(limit=16)
    (said,) = overruled(own, 64, None)
    assert said == "seq_len 64, where the model's own files cut at 16 tokens"
    assert not list(overruled(own, 16, None))
    assert not list(overruled(own, None, None))


def test_cut_texts_and_padding_are_counted(folder):
    texts = [*(["one two three four five"] * 3), *(["one"] * 9)]
    tokenize = file_tokenizer(folder / "tokenizer.json", 6)
    workload = make_workload("w", texts, tokenize, {"input_ids": "ids"})
    assert workload.cut == 0  # those three calibrate
    assert workload.padding == 0.5
    workload = make_workload("w", texts[::-1], tokenize, ROLES)
    assert workload.cut == 3
    assert workload.padding == pytest.approx(15 / 48)


def test_what_became_of_texts_is_said_in_one_line():
    assert tokens_line(context()) == ""
    assert tokens_line(context(cut=3, limit=16, padding=0.25)) == (
        "3 of 256 texts cut at 8 tokens (the model's own limit is 16), "
        "25.0 % of the positions are padding"
    )
    assert prompts_line(context(prompts={"query": "q: "})) == '"q: " before a query'
    everywhere = dict.fromkeys(("text", "query", "document"), "x ")
    assert prompts_line(context(prompts=everywhere)) == '"x " before every text'


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompt": 3}, "prompt = 3 is not a text, or a table by query and document"),
        ({"prompt": {"passage": "x"}}, "is not a text, or a table by query and document"),
        ({"normalize": "yes"}, "normalize = 'yes' is not true or false"),
        ({"pooling": "max"}, "pooling = 'max' is not one of first, last, mean"),
    ],
)
def test_keys_that_do_not_fit_are_refused(tmp_path, keys, message):
    with pytest.raises(OptionError, match=message):
        specs_from({"mine": {"onnx": "model.onnx", **keys}}, tmp_path)


KEYS: dict[str, Any] = {
    "allow_dropped": ["a.*"],
    "architecture": {},
    "head": 8,
    "head_weights": "w.safetensors",
    "inputs": {"a": "ids"},
    "normalize": True,
    "output": "y",
    "pooling": "mean",
    "truncate_dim": 8,
    "truth": "folder",
    "vocab_size": 99,
}
_HEADS = ("architecture", "head", "head_weights")
_FILES = ("inputs", "output", "truth")
FOREIGN = {
    Kind.ONNX: ("allow_dropped", "truncate_dim", *_HEADS),
    Kind.TRANSFORMERS: _FILES,
    Kind.SENTENCE_TRANSFORMERS: ("normalize", "pooling", "vocab_size", *_HEADS, *_FILES),
    Kind.FACTORY: ("allow_dropped", "normalize", "pooling", "truncate_dim", *_HEADS, *_FILES),
}
FOREIGN_KEYS = [(kind, key) for kind, keys in FOREIGN.items() for key in keys]


@pytest.mark.parametrize(("kind", "key"), FOREIGN_KEYS)
def test_a_key_without_effect_on_this_kind_is_refused(tmp_path, kind, key):
    said = rf"mine.: {key} is for .*; remove it, as a model named by `{kind}` takes accept, "
    with pytest.raises(OptionError, match=said):
        specs_from({"mine": {kind: "here:made", key: KEYS[key]}}, tmp_path)


@pytest.mark.parametrize("kind", Kind)
def test_all_keys_of_a_kind_are_taken_together(tmp_path, kind):
    table = {key: value for key, value in KEYS.items() if key not in FOREIGN[kind]}
    assert specs_from({"mine": {kind: "here:made", **table}}, tmp_path)["mine"].kind is kind


def test_a_key_without_effect_beside_the_others_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"head_weights = .* is not of use without `head`"):
        specs_from({"mine": {"transformers": "x", "head_weights": "w.safetensors"}}, tmp_path)


def test_an_input_that_the_file_does_not_have_is_refused(tiny_onnx, tmp_path):
    inputs = {"input_ids": "ids", "attention_mask": "mask", "tokens": "ids"}
    spec = ModelSpec("mine", Kind.ONNX, str(tiny_onnx), inputs=inputs)
    with pytest.raises(ModelError, match=r"has no inputs \['tokens'\], which `inputs` in .* names"):
        ready_onnx(spec, Store(tmp_path))
    ready_onnx(
        replace(spec, inputs={"input_ids": "ids", "attention_mask": "mask"}), Store(tmp_path)
    )


def keyed(tokenizer):
    return content_key(ModelSpec("m", Kind.TRANSFORMERS, "x", tokenizer=str(tokenizer)), None)


def test_an_export_depends_on_what_is_read_beside_a_tokenizers_file(folder, monkeypatch):
    before = keyed(folder / "tokenizer.json")
    assert keyed(folder / "tokenizer.json") == before
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    after = keyed(folder / "tokenizer.json")
    assert after != before
    monkeypatch.setattr("enginegate.models.sources.installed_version", lambda name: f"{name} 0")
    assert "tokenizers 0" in keyed(folder / "tokenizer.json")["versions"].values()


def test_a_spec_keeps_the_length_of_its_table(tiny_onnx):
    spec = ModelSpec("mine", Kind.ONNX, str(tiny_onnx), seq_len=9)
    model = Exported(spec, tiny_onnx, "hash", "here", None, ROLES, "out", tokens=TokenSettings(4))
    assert model.seq_len == 9
