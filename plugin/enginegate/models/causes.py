"""Why a reference is not the model: one thing at a time done otherwise, until it is."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from enginegate.models.lengths import Tokens
from enginegate.models.pipeline import (
    DENSE,
    NORMALIZE,
    POOLING,
    Pipeline,
    Vectors,
    Ways,
    lowers_case,
)
from enginegate.models.spec import POOLINGS

Distance = Callable[[Vectors, Vectors], float]

_POOLINGS = {
    "mean": "mean",
    "first": "the first token",
    "last": "the last token",
    "all": "all positions, padding included",
    "max": "maximum",
    "first place": "the first position, padding or not",
    "last place": "the last position, padding or not",
}
_LENGTHS = (8, 16, 32, 64, 128, 256, 512)
_OTHER_TOKENS = (
    "the reference's tokens are not those of the model's own tokenizer: look at `tokenizer` in its "
    "table, and at the tokenizer.json beside the file"
)
_SHOWN = 40  # letters of a prompt
_PROMPTS = "config_sentence_transformers.json"
_TOKENIZER = "tokenizer_config.json"


@dataclass(frozen=True)
class Change:
    """One thing done otherwise, and that in words."""

    ways: Ways
    text: str


@dataclass(frozen=True)
class Cause:
    """What was found by trying.

    Attributes:
        text: in words.
        found: it gives the reference; else it is only the nearest of what was tried.
    """

    text: str
    found: bool


def find_cause(
    pipeline: Pipeline,
    texts: Sequence[str],
    truth: Vectors,
    reference: Vectors,
    distance: Distance,
    tokens: Sequence[Tokens] = (),
    *,
    exact: bool = True,
) -> Cause:
    """The one change that makes the truth of some texts the reference.

    `distance` is 0 for the same embeddings, up to 1 for rounding. Where that is coarse, not
    `exact`, all changes are tried and the nearest is named, else the first that fits. `tokens` are
    the ids and mask that the reference was given of these texts, [texts, seq]; nothing where that
    is not known.
    """
    hidden = functools.cache(lambda ways: pipeline.hidden(texts, ways))

    def embed(ways: Ways) -> Vectors:
        return pipeline.finish(hidden(ways.to_hidden), ways)

    if not distance(_tried(embed, Ways()), truth) <= 1:
        return Cause("not sought: the model's parts, run one by one, do not give its truth", False)  # noqa: FBT003
    tried = []
    for change in changes(pipeline):
        apart = distance(_tried(embed, change.ways), reference)
        if exact and apart <= 1:
            return Cause(change.text, found=True)
        tried.append((apart, change.text))
    if tokens:
        tried.append((distance(_embedded(pipeline, tokens), reference), _OTHER_TOKENS))
    apart, text = min(tried)
    if apart <= 1:
        return Cause(text, found=True)
    said = f"none of {len(tried)} single changes of the truth gives the reference"
    near = f"; nearest, {apart:.0f} times what rounding does: {text}" if apart < np.inf else ""
    return Cause(said + near, found=False)


def find_pooling(
    pipeline: Pipeline, texts: Sequence[str], reference: Vectors, distance: Distance
) -> dict[str, Any]:
    """The pooling and normalisation that give the reference, as keys of a table; empty for none.

    Of several the nearest. What the pipeline normalises stays so.
    """
    hidden = pipeline.hidden(texts, Ways())
    scaled = (True,) if pipeline.step(NORMALIZE) else (False, True)
    ways = [Ways(pooling=mode, normalize=scale) for mode in POOLINGS for scale in scaled]
    vectors = (pipeline.finish(hidden, way) for way in ways)
    tried = [distance(found, reference) for found in vectors]
    nearest = ways[int(np.argmin(tried))]
    if not min(tried) <= 1:
        return {}
    return {"pooling": nearest.pooling, "normalize": nearest.normalize}


def _embedded(pipeline: Pipeline, tokens: Sequence[Tokens]) -> Vectors:
    return _tried(lambda _ways: pipeline.on_tokens(*tokens), Ways())


def pooling_words(pooling: str) -> str:
    """A pooling in words."""
    return _POOLINGS.get(pooling, pooling)


def _tried(embed: Callable[[Ways], Vectors], ways: Ways) -> Vectors:
    """Embeddings of a change; NaN where the model cannot do it."""
    try:
        return embed(ways)
    except Exception:  # a backbone without positions or token types, a length that it has not
        return np.full((1, 1), np.nan, np.float32)


def changes(pipeline: Pipeline) -> Iterator[Change]:
    """Everything that is tried, one thing at a time; what comes first is named first."""
    yield from _poolings(pipeline)
    yield from _endings(pipeline)
    yield from _prompts(pipeline)
    yield from _lengths(pipeline)
    yield from _letters(pipeline)
    yield from _paddings(pipeline)
    yield from _places(pipeline)


def _poolings(pipeline: Pipeline) -> Iterator[Change]:
    step = pipeline.step(POOLING)
    if step is None:
        return
    own = pooling_words(step.mode)
    for mode, word in _POOLINGS.items():
        if mode != step.mode:
            said = f"the file pools by {word}, the model by {own} ({step.place})"
            yield Change(Ways(pooling=mode), said)


def _endings(pipeline: Pipeline) -> Iterator[Change]:
    """Normalisation, Dense layers, dimensions."""
    normalize, dense = pipeline.step(NORMALIZE), pipeline.step(DENSE)
    if normalize:
        said = f"the file does not normalise, the model does ({normalize.place})"
        yield Change(Ways(normalize=False), said)
    else:
        yield Change(Ways(normalize=True), "the file normalises, the model does not")
    if dense:
        said = f"the file leaves out the Dense layer that the model has ({dense.place})"
        yield Change(Ways(dense=False), said)
    if pipeline.dim is not None:
        said = f"the file keeps all dimensions, the model {pipeline.dim} (truncate_dim, {_PROMPTS})"
        yield Change(Ways(whole=True), said)


def _prompts(pipeline: Pipeline) -> Iterator[Change]:
    own = pipeline.prompt
    given = f"the model's begin with {_short(own)} ({_PROMPTS})" if own else "the model's have none"
    if own:
        yield Change(Ways(prompt=""), f"the reference's texts have no prompt, {given}")
        twice = f"the reference's texts have the prompt {_short(own)} twice, the model's once"
        yield Change(Ways(prompt=own + own), twice)
    for other in dict.fromkeys(pipeline.prompts.values()):
        if other and other != own:
            said = f"the reference's texts begin with the prompt {_short(other)}, {given}"
            yield Change(Ways(prompt=other), said)


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= _SHOWN else f"{prompt[:_SHOWN]}…")


def _lengths(pipeline: Pipeline) -> Iterator[Change]:
    """Where and at how many tokens texts are cut, and what tokens are put around them."""
    own = pipeline.length
    for length in dict.fromkeys((pipeline.width, *_LENGTHS)):
        if length != own:
            said = f"the reference's texts are cut at {length} tokens, the model's at {own}"
            yield Change(Ways(length=length), said)
    side, other = _sides(pipeline.tokenizer.truncation_side)
    said = f"the reference's texts are cut on the {other}, the model's on the {side} ({_TOKENIZER})"
    yield Change(Ways(cut=other), said)
    said = "the reference's texts lack the special tokens that the model's have"
    yield Change(Ways(special=False), said)


def _sides(own: str) -> tuple[str, str]:
    return own, "right" if own == "left" else "left"


def _letters(pipeline: Pipeline) -> Iterator[Change]:
    if not hasattr(pipeline.tokenizer, "backend_tokenizer"):
        return  # one in Python, whose rules are not told
    if lowers_case(pipeline.tokenizer):
        said = "the reference's texts keep their capitals, the model lower-cases (tokenizer.json)"
        yield Change(Ways(case="kept"), said)
    else:
        said = "the reference's texts are lower-cased, the model keeps capitals (tokenizer.json)"
        yield Change(Ways(case="lower"), said)


def _paddings(pipeline: Pipeline) -> Iterator[Change]:
    tokenizer = pipeline.tokenizer
    side, other = _sides(tokenizer.padding_side)
    said = f"the reference pads on the {other}, the model on the {side} ({_TOKENIZER})"
    for pooling in ("", "first place", "last place"):
        kept = f", and the file pools by {_POOLINGS[pooling]}" if pooling else ""
        yield Change(Ways(side=other, pooling=pooling), said + kept)
    own = tokenizer.pad_token_id
    for attended, where in (("all", ""), ("attention", " in its attention")):
        attending = Ways(attend=attended)
        yield Change(attending, f"the file does not mask padding{where}, the model does")
        for pad in dict.fromkeys((0, 1, *tokenizer.all_special_ids)):
            if pad != own:
                said = (
                    f"the reference pads with token {pad} and does not mask it{where}, the model "
                    f"with token {own}, masked ({_TOKENIZER})"
                )
                yield Change(replace(attending, pad=pad), said)
    for pad in dict.fromkeys((0, 1, *tokenizer.all_special_ids)):
        if pad != own:
            said = f"the reference pads with token {pad}, the model with {own} ({_TOKENIZER})"
            yield Change(Ways(pad=pad), said)


def _places(pipeline: Pipeline) -> Iterator[Change]:
    """Token types and positions."""
    for kind in range(getattr(pipeline.backbone.config, "type_vocab_size", 0) or 0):
        said = f"the file is given token types {kind}, the model those of its tokenizer"
        yield Change(Ways(types=kind), said)
    words = {
        "places": "counted over padding too",
        "mask": "counted without padding",
        "plain": "that begin at 0",
        "zeros": "that are all the same",
    }
    for way, word in words.items():
        said = f"the file has positions {word}, the model its own"
        yield Change(Ways(positions=way), said)
