"""How a model's own files say that its texts become tokens: length, sides, padding, case, prompts.

The files are those of transformers and sentence-transformers; neither is needed to read them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from enginegate.errors import ModelError, WorkloadError
from enginegate.files import read_text, reading
from enginegate.models.lengths import Lengths, Tokens, bucket_widths

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Prompts: TypeAlias = "str | Mapping[str, str] | None"

TEXT, QUERY, DOCUMENT = "text", "query", "document"  # roles of texts; TEXT is any other
ROLES = (TEXT, QUERY, DOCUMENT)
SEQ_LEN = 32  # where neither a table nor a model's files say less
TOKENIZER_SETTINGS = (  # what is read beside a tokenizer.json
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
_NAMES = {QUERY: ("query",), DOCUMENT: ("document", "passage")}  # of prompts, by role
_UNLIMITED = 1 << 30  # transformers writes 1e30 for no limit
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # these take the case from tokenizer.json
_BEHIND_PADDING = frozenset(  # model types whose first position is the one after padding's
    {
        *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta"),
        *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)


@dataclass(frozen=True)
class Encoded:
    """Texts as tokens.

    Attributes:
        ids, mask, types: int64 [texts, seq_len]; types as the tokenizer gives them.
        cut: texts that were longer.
        first: the position of a first token.
        kept: which a search uses, where each has a vector of its own; bool [texts, seq_len].
        pad_id: what pads.
        left: padding stands before the tokens.
        widths: of each text, with the padding of its bucket; empty where all have one length.
    """

    ids: Tokens
    mask: Tokens
    types: Tokens
    cut: int
    first: int = 0
    kept: npt.NDArray[np.bool_] | None = None
    pad_id: int = 0
    left: bool = False
    widths: tuple[int, ...] = ()


Text = str | tuple[str, str]  # or a pair: a query and a document
Tokenize = Callable[[Sequence[Text]], Encoded]


@dataclass(frozen=True)
class TokenSettings:
    """What a model's own files say.

    Attributes:
        limit: tokens that a text is cut at; None for no limit.
        positions: tokens that the model can take; None if that is not known.
        pad_id, pad_token: padding.
        padding_side, truncation_side: `left` or `right`.
        prompts: what texts of a role begin with; none for a role without a prompt.
    """

    limit: int | None = None
    positions: int | None = None
    pad_id: int = 0
    pad_token: str = "[PAD]"  # noqa: S105 - a token of text
    padding_side: str = "right"
    truncation_side: str = "right"
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that the model takes whole; None for no limit."""
        return min((n for n in (self.limit, self.positions) if n is not None), default=None)

    def seq_len(self, given: int | None, usual: int = SEQ_LEN) -> int:
        """Tokens per text: those of the table, or as many as usual if the model takes them."""
        return given or min(usual, self.longest or usual)

    def prompts_with(self, given: Prompts) -> dict[str, str]:
        """The prompts by role; those `given`, for all texts or by role, replace the model's."""
        if isinstance(given, str):
            return dict.fromkeys(ROLES, given) if given else {}
        return {role: said for role, said in {**self.prompts, **(given or {})}.items() if said}


def settings_of(folder: Path, tokenizer: "Tokenizer") -> TokenSettings:
    """What the files of a folder say of the tokenizer in it. Raises ModelError if one is damaged.

    Where two differ, sentence-transformers' files are asked before transformers', and those before
    `tokenizer.json`, as the libraries do.
    """
    named, padding = read_object(folder / "tokenizer_config.json"), tokenizer.padding or {}
    cut = tokenizer.truncation or {}
    pad_token = special_token(folder, "pad_token") or padding.get("pad_token", "[PAD]")
    pad_id = tokenizer.token_to_id(pad_token)
    found = TokenSettings(
        limit=limit_of(named.get("model_max_length") if named else cut.get("max_length")),
        pad_id=padding.get("pad_id", 0) if pad_id is None else pad_id,
        pad_token=pad_token,
        padding_side=named.get("padding_side") or _side(padding),
        truncation_side=named.get("truncation_side") or _side(cut),
    )
    return settings_at(folder, found)


def _side(rule: Mapping[str, Any]) -> str:
    return str(rule.get("direction", "right")).lower()


def special_token(folder: Path, name: str) -> str | None:
    """A token with a part to play, as the files of a folder name it, such as `pad_token`."""
    files = ("tokenizer_config.json", "special_tokens_map.json")
    said = next((found for file in files if (found := read_object(folder / file).get(name))), None)
    return said.get("content") if isinstance(said, Mapping) else said


def settings_from(tokenizer: Any, home: Path) -> TokenSettings:
    """What a tokenizer of transformers says, with what a model's folder says more."""
    found = TokenSettings(
        limit=limit_of(tokenizer.model_max_length),
        pad_id=tokenizer.pad_token_id or 0,
        pad_token=tokenizer.pad_token or "[PAD]",
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )
    return settings_at(home, found)


def settings_at(home: Path, settings: TokenSettings) -> TokenSettings:
    """Settings with what a model's folder itself says: prompts, positions, its limit."""
    said = read_object(_body(home) / "sentence_bert_config.json").get("max_seq_length")
    return replace(
        settings,
        limit=limit_of(said) or settings.limit,
        positions=positions_of(read_object(_body(home) / "config.json")),
        prompts=prompts_of(home),
    )


def _body(home: Path) -> Path:
    """The folder of the transformers model: older sentence-transformers have it inside."""
    inside = home / "0_Transformer"
    return inside if inside.is_dir() else home


def limit_of(said: Any) -> int | None:
    """A largest number of tokens as the libraries write it; None for no limit."""
    return int(said) if isinstance(said, int | float) and 0 < said < _UNLIMITED else None


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model with this configuration has positions for; None if it does not say."""
    most = config.get("max_position_embeddings")
    if not isinstance(most, int) or most <= 0 or config.get("position_biased_input") is False:
        return None
    return most - first_position(config)


def first_position(config: Mapping[str, Any]) -> int:
    """The position of a first token in a model with this configuration."""
    if config.get("model_type") not in _BEHIND_PADDING:
        return 0
    padding = config.get("pad_token_id")
    return (1 if padding is None else int(padding)) + 1


def prompts_of(folder: Path) -> dict[str, str]:
    """Prompts by role, as sentence-transformers would use them. Raises ModelError."""
    path = folder / "config_sentence_transformers.json"
    with reading(path, "the model's file", "fetch it again", ModelError):
        return _prompts_in(read_object(path))


def _prompts_in(config: Mapping[str, Any]) -> dict[str, str]:
    own = {name: said for name, said in (config.get("prompts") or {}).items() if said}
    own |= {
        name: _led(config, name, own.get(name, "")) for name in _NAMES if f"{name}_prefix" in config
    }
    if not all(isinstance(said, str) for said in own.values()):
        raise ValueError("a prompt is not a text")
    named = {TEXT: (config.get("default_prompt_name"),), **_NAMES}
    found = {role: [own[name] for name in names if name in own] for role, names in named.items()}
    return {role: said[0] for role, said in found.items() if said}


def _led(config: Mapping[str, Any], name: str, prompt: str) -> str:
    """A prompt behind the marker that PyLate saved for its role."""
    marker = config[f"{name}_prefix"] or ""
    return marker + prompt.removeprefix(marker)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in one of a model's files; empty if it is not there. Raises ModelError."""
    if not path.exists():
        return {}
    with reading(path, "the model's file", "fetch it again", ModelError):
        value = json.loads(read_text(path))  # a number without a limit has 31 digits there
        if not isinstance(value, dict):
            raise ValueError("it is not an object")  # noqa: TRY004 - damage of a file
    return value


def open_tokenizer(path: Path) -> "Tokenizer":
    """A `tokenizer.json`, with the case that the files beside it ask for.

    Raises WorkloadError if the file is not a tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise WorkloadError(f"{path} is not a tokenizer.json: {error}") from error
    named = read_object(path.parent / "tokenizer_config.json")
    rebuilt = named.get("tokenizer_class") not in _PLAIN
    if rebuilt and hasattr(tokenizer.normalizer, "lowercase") and "do_lower_case" in named:
        tokenizer.normalizer.lowercase = bool(named["do_lower_case"])
    lower_case(tokenizer, path.parent)
    return tokenizer


def speller(path: Path) -> Callable[[int], str]:
    """What gives the token of an id, by a `tokenizer.json`; the id itself where there is none."""
    tokenizer = open_tokenizer(path)
    return lambda token: tokenizer.id_to_token(token) or str(token)


def lower_case(tokenizer: "Tokenizer", folder: Path) -> None:
    """Lower-case every text where sentence-transformers' file asks for it."""
    from tokenizers.normalizers import Lowercase, Sequence

    if read_object(folder / "sentence_bert_config.json").get("do_lower_case"):
        own = tokenizer.normalizer
        tokenizer.normalizer = Sequence([Lowercase(), own]) if own else Lowercase()


def file_tokenizer(
    path: Path,
    seq_len: int | None,
    settings: TokenSettings | None = None,
    most: int | None = None,
    *,
    fixed: bool = True,
) -> Tokenize:
    """Tokenise with a `tokenizer.json`, as the files beside it say or `settings`.

    Texts are cut at `seq_len` tokens, or at `most` where that is less, and, if that is `fixed`,
    padded to `seq_len`; else to the longest of them. Raises WorkloadError if the file is not a
    tokenizer.
    """
    tokenizer = open_tokenizer(path)
    settings = settings or settings_of(path.parent, tokenizer)
    tokenizer.no_truncation()
    if cut_at := min(filter(None, (seq_len, most)), default=None):
        tokenizer.enable_truncation(cut_at, direction=settings.truncation_side)
    tokenizer.enable_padding(
        length=seq_len if fixed else None,
        direction=settings.padding_side,
        pad_id=settings.pad_id,
        pad_token=settings.pad_token,
    )

    def tokenize(texts: Sequence[Text]) -> Encoded:
        encoded = tokenizer.encode_batch(list(texts))
        ids = np.array([e.ids for e in encoded], dtype=np.int64)
        mask = np.array([e.attention_mask for e in encoded], dtype=np.int64)
        types = np.array([e.type_ids for e in encoded], dtype=np.int64)
        cut = sum(bool(e.overflowing) for e in encoded)
        left = settings.padding_side == "left"
        return Encoded(ids, mask, types, cut, pad_id=settings.pad_id, left=left)

    return tokenize


def in_buckets(encoded: Encoded, lengths: Lengths, longest: int | None) -> Encoded:
    """Texts, padded to the longest of them, padded to the longest of their buckets."""
    widths = bucket_widths(encoded.mask.sum(axis=1), lengths, longest)
    more = int(widths.max(initial=1)) - encoded.ids.shape[1]
    ends = ((0, 0), (more, 0) if encoded.left else (0, more))
    return replace(
        encoded,
        ids=np.pad(encoded.ids, ends, constant_values=encoded.pad_id),
        mask=np.pad(encoded.mask, ends),
        types=np.pad(encoded.types, ends),
        widths=tuple(map(int, widths)),
    )


def overruled(settings: TokenSettings, seq_len: int | None, given: Prompts) -> Iterator[str]:
    """Statements of what a model's table says otherwise than its own files do."""
    if seq_len and settings.limit and seq_len > settings.limit:
        yield longer(seq_len, settings.limit)
    now = settings.prompts_with(given)
    for role in ROLES:
        own, said = settings.prompts.get(role), now.get(role)
        if own and own != said:
            yield other_prompt(role, said, own)


def longer(seq_len: int, limit: int) -> str:
    """The statement that a table takes more tokens than the model's own files do."""
    return f"seq_len {seq_len}, where the model's own files cut at {limit} tokens"


def other_prompt(role: str, said: str | None, own: str | None) -> str:
    """The statement that a table has another prompt than the model's own files."""
    return f"prompt {quoted(said)} of a {role}, where the model's own is {quoted(own)}"


def quoted(prompt: str | None) -> str:
    """A prompt in words."""
    return f'"{prompt}"' if prompt else "none"
