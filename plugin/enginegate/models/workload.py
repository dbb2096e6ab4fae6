"""The inputs: real text, tokenised and padded, with disjoint calibration and evaluation parts."""

import functools
import hashlib
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt

from enginegate.errors import WorkloadError
from enginegate.files import parse_json, read_text, reading
from enginegate.models.late import Kept, Vectors, used
from enginegate.models.lengths import Batch, Bucketed, Rows, Tokens, together, widths_of
from enginegate.models.pairs import CALIBRATION_QUERIES, QUERIES, Pairs, pairs_of
from enginegate.models.spec import OutputKind
from enginegate.models.tokens import DOCUMENT, QUERY, Encoded, Text, Tokenize

EVALUATION_TEXTS = 256
CALIBRATION_TEXTS = 128
_FEWEST_TEXTS = 8
_LONGEST_PAGE = 8000  # letters
_BETWEEN = 4  # sentences from one page to the next
_SENTENCE_END = re.compile(r"(?<=[a-z]{2}[.!?])\s+(?=[A-Z])")
_SENTENCE = re.compile(r"[A-Z][A-Za-z ,;:'\"()\-]{38,}[.!?]")


@dataclass(frozen=True)
class Searched:
    """What the rows are for a model with a vector for every token: the same texts in two roles.

    Attributes:
        texts: each has two rows, first as a query and then as a document.
        kept: tokens whose vectors a search uses, bool [rows, seq_len].
        ids: the tokens, int64 [rows, seq_len].
        spell: the token of an id.
    """

    texts: tuple[str, ...]
    kept: npt.NDArray[np.bool_]
    ids: Tokens
    spell: Callable[[int], str]

    def words(self, row: int, place: int) -> tuple[str, str, str]:
        """The token at a place of a row, the role of its text, and that text."""
        role = DOCUMENT if row % 2 else QUERY
        return self.spell(int(self.ids[row, place])), role, self.texts[row // 2]


@dataclass(frozen=True)
class Workload:
    """What every engine of one model is judged on.

    Attributes:
        name: where the texts came from.
        texts: the evaluation texts, in order.
        evaluation: ONNX input name to int64, or int32 where it takes that, [texts, seq_len];
            Bucketed where the model's table has `lengths`, seq_len being the longest bucket.
        calibration: the same for the calibration texts; none is an evaluation text.
        sha256: hash of both batches; goes with every figure.
        mask: name of the ONNX input that says what is padding; None if there is none.
        cut: evaluation texts that were longer than seq_len.
        padding: share of the evaluation positions that is padding.
        pairs: what the rows are for a model that scores pairs; None for texts.
        kind: what the model gives for a row.
        searched: what the rows are for a model with a vector for every token; None for others.
        largest_batch: the largest that is timed, which is for throughput; 0 if that is not known.
    """

    name: str
    texts: tuple[str, ...]
    evaluation: Batch
    calibration: Batch
    sha256: str
    mask: str | None = None
    cut: int = 0
    padding: float = 0.0
    pairs: Pairs | None = None
    kind: OutputKind = OutputKind.DENSE
    searched: Searched | None = None
    largest_batch: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(evaluation texts, tokens per text, or of the longest bucket)."""
        rows, columns = next(iter(self.evaluation.values())).shape
        return rows, columns

    def used(self, outputs: Vectors) -> Vectors:
        """A model's outputs for the first rows; of tokens 0 for those that no search uses."""
        return used(outputs, self.searched.kept[: len(outputs)]) if self.searched else outputs

    @property
    def buckets(self) -> dict[int, int]:
        """Tokens of each bucket to the number of its texts; empty where all have one length."""
        if not isinstance(self.evaluation, Bucketed):
            return {}
        widths, counts = np.unique(self.evaluation.widths, return_counts=True)
        return dict(zip(map(int, widths), map(int, counts), strict=True))

    @property
    def padded(self) -> Batch:
        """All evaluation rows as wide as the longest: a server takes texts of one length."""
        return dict(self.evaluation)

    def batch(self, size: int) -> Batch:
        """The first `size` evaluation rows, repeated if there are fewer; of one bucket."""
        rows = np.flatnonzero(widths_of(self.evaluation) == self.timed_at(size))
        return take(self.evaluation, rows[np.arange(size) % len(rows)])

    def timed_at(self, size: int) -> int:
        """Tokens of a text in a batch that is timed.

        Of buckets, the one with the median text, and for the largest batch the one in which most
        positions are, as that is what a throughput is made of; of those of which so many texts fit
        into a call.
        """
        widths = widths_of(self.evaluation)
        if size == 1 or size < self.largest_batch:
            return int(np.sort(widths)[len(widths) // 2])
        fitting, counts = np.unique(widths[together(self.evaluation, size)], return_counts=True)
        return int(fitting[np.argmax(fitting * counts)])


def probe_of(workload: Workload) -> dict[str, Tokens]:
    """Two evaluation rows, to try an engine with as it is loaded."""
    return take(workload.evaluation, slice(2))


def take(batch: Batch, rows: Rows) -> dict[str, Tokens]:
    """The given rows of every input, contiguous; of a Bucketed batch as wide as the longest."""
    if isinstance(batch, Bucketed):
        return batch.rows(rows)
    return {name: np.ascontiguousarray(values[rows]) for name, values in batch.items()}


def chunks(batch: Batch, size: int) -> Iterator[dict[str, Tokens]]:
    """All rows, `size` at a time."""
    rows = len(next(iter(batch.values())))
    return (take(batch, slice(start, start + size)) for start in range(0, rows, size))


def read_texts(path: Path | None, *, documents: bool = False) -> tuple[str, list[str]]:
    """Name and distinct texts of a workload file, or of the default corpus for None.

    With `documents`, a fifth of the default corpus are whole documents.

    A `.txt` file has a text a line; a `.jsonl` file a string or an object with `text` a line.
    Raises WorkloadError if it cannot be read or holds fewer than 8 texts.
    """
    if path is None and documents:
        return "python documentation with whole pages", mixed_corpus()
    texts = default_corpus() if path is None else _read_file(path)
    if len(texts) < _FEWEST_TEXTS:
        raise WorkloadError(
            f"workload {path} holds {len(texts)} distinct texts: at least {_FEWEST_TEXTS} are "
            f"needed, {EVALUATION_TEXTS + CALIBRATION_TEXTS} are better"
        )
    return ("python documentation" if path is None else path.name), texts


def default_corpus() -> list[str]:
    """English sentences from the language reference that ships with every Python."""
    return list(_sentences())


@functools.cache
def _sentences() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    lines = (" ".join(paragraph.split()) for paragraph in paragraphs)
    sentences = (s for line in lines for s in _SENTENCE_END.split(line) if _SENTENCE.fullmatch(s))
    return tuple(sorted(set(sentences), key=_shuffled))


def mixed_corpus() -> list[str]:
    """The sentences of the default corpus, and after each four a whole page from where they are.

    Pages of 50 to about 2,000 tokens; the longest, which would take most of the time, are left out.
    """
    from pydoc_data.topics import topics

    found = (" ".join(text.split()) for text in topics.values() if len(text) <= _LONGEST_PAGE)
    pages = sorted(set(found), key=_shuffled)
    sentences = default_corpus()
    few = [sentences[n : n + _BETWEEN] for n in range(0, len(sentences), _BETWEEN)]
    return [t for four, page in zip_longest(few, pages) for t in (*(four or ()), page) if t]


def _shuffled(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_file(path: Path) -> list[str]:
    with reading(path, "workload", "give a UTF-8 .txt or .jsonl file", WorkloadError):
        lines = read_text(path).splitlines()
    if path.suffix == ".jsonl":
        numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        lines = [_read_json_line(path, number, line) for number, line in numbered]
    return list(dict.fromkeys(filter(None, map(str.strip, lines))))


def _read_json_line(path: Path, number: int, line: str) -> str:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise WorkloadError(f"workload {path}, line {number} is not JSON: {error}") from error
    if isinstance(value, dict) and "text" not in value and {"query", "document"} <= set(value):
        return ""  # a judgement of relevance
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise WorkloadError(f'workload {path}, line {number}: give a string or {{"text": "…"}}')
    return text


def make_workload(
    name: str,
    texts: Sequence[str],
    tokenize: Tokenize,
    inputs: Mapping[str, str],
    int32: Collection[str] = (),
) -> Workload:
    """Split the texts, tokenise both parts and name them as the ONNX inputs are named.

    `inputs` maps each ONNX input to its role, of TOKEN_ROLES; `int32` are those that take int32.
    """
    held_out = min(CALIBRATION_TEXTS, len(texts) // 3)
    evaluation_texts = tuple(texts[held_out:][:EVALUATION_TEXTS])
    encoded = tokenize(evaluation_texts)
    evaluation = _named(encoded, inputs, int32)
    calibration = make_batch(texts[:held_out], tokenize, inputs, int32)
    sha256 = hash_of(evaluation, calibration)
    return Workload(
        name,
        evaluation_texts,
        evaluation,
        calibration,
        sha256,
        _mask_of(inputs),
        encoded.cut,
        _padding(encoded),
    )


def make_pairs_workload(
    name: str,
    queries: Sequence[str],
    documents: Sequence[str],
    tokenize: Tokenize,
    inputs: Mapping[str, str],
    int32: Collection[str] = (),
) -> Workload:
    """The same of pairs of queries and documents; a third of either at most is for calibration."""
    first, least = min(CALIBRATION_QUERIES, len(queries) // 3), len(documents) // 3
    held_out = min(CALIBRATION_TEXTS, least)
    found = pairs_of(queries[first:][:QUERIES], documents[held_out:][:EVALUATION_TEXTS])
    others = pairs_of(queries[:first], documents[:held_out])
    encoded = tokenize(found.rows)
    evaluation = _named(encoded, inputs, int32)
    calibration = make_batch(others.rows, tokenize, inputs, int32)
    return Workload(
        name,
        found.shown,
        evaluation,
        calibration,
        hash_of(evaluation, calibration),
        _mask_of(inputs),
        encoded.cut,
        _padding(encoded),
        found,
        OutputKind.SCORE,
    )


def make_searched_workload(
    name: str,
    texts: Sequence[str],
    tokenize: Mapping[str, Tokenize],
    inputs: Mapping[str, str],
    spell: Callable[[int], str],
    int32: Collection[str] = (),
) -> Workload:
    """The same of texts that are queries and documents, for a model that gives token vectors.

    `tokenize` is by role, `spell` gives the token of an id. Half as many texts are taken.
    """
    held_out = min(CALIBRATION_TEXTS, len(texts) // 3)
    chosen = tuple(texts[held_out:][: EVALUATION_TEXTS // 2])
    encoded, kept = _in_roles(chosen, tokenize)
    others, _ = _in_roles(texts[: held_out // 2], tokenize)
    evaluation = _named(encoded, inputs, int32)
    calibration = _named(others, inputs, int32)
    return Workload(
        name,
        tuple(text for text in chosen for _ in range(2)),
        evaluation,
        calibration,
        hash_of(evaluation, calibration, {"kept": kept.astype(np.int64)}),
        _mask_of(inputs),
        encoded.cut,
        _padding(encoded),
        None,
        OutputKind.MULTI,
        Searched(chosen, kept, encoded.ids, spell),
    )


def _in_roles(texts: Sequence[str], tokenize: Mapping[str, Tokenize]) -> tuple[Encoded, Kept]:
    """Each text as a query, then as a document, and which tokens a search uses."""
    parts = [tokenize[QUERY](texts), tokenize[DOCUMENT](texts)]
    found = {
        name: np.stack([getattr(part, name) for part in parts], 1).reshape(2 * len(texts), -1)
        for name in ("ids", "mask", "types", "kept")
    }
    cut, first = sum(part.cut for part in parts), parts[0].first
    ids, mask, types, kept = found.values()
    return Encoded(ids, mask, types, cut, first, kept), kept


def token_counts(batch: Batch, mask: str | None) -> tuple[int, ...]:
    """Tokens of each text, padding not counted; all of them where there is no mask."""
    if mask is None:
        rows, columns = next(iter(batch.values())).shape
        return (int(columns),) * int(rows)
    return tuple(int(count) for count in batch[mask].sum(axis=1))


def make_batch(
    texts: Sequence[Text],
    tokenize: Tokenize,
    inputs: Mapping[str, str],
    int32: Collection[str] = (),
) -> dict[str, Tokens]:
    """Tokenised texts, named as the ONNX inputs are named, in the types that they take."""
    return _named(tokenize(texts), inputs, int32)


def _named(
    encoded: Encoded, inputs: Mapping[str, str], int32: Collection[str]
) -> dict[str, Tokens]:
    roles = _by_role(encoded)
    found = {
        name: roles[role].astype(np.int32) if name in int32 else roles[role].astype(np.int64)
        for name, role in inputs.items()
    }
    return Bucketed(found, encoded.widths, left=encoded.left) if encoded.widths else found


def _mask_of(inputs: Mapping[str, str]) -> str | None:
    """The input that says what is padding; None if there is none."""
    return next((given for given, role in inputs.items() if role == "mask"), None)


def _padding(encoded: Encoded) -> float:
    """The share of the positions that is padding."""
    return 1 - float(encoded.mask.sum()) / (sum(encoded.widths) or encoded.mask.size)


def _by_role(encoded: Encoded) -> dict[str, Tokens]:
    """What an input of each of the TOKEN_ROLES is given. Positions count what is no padding.

    Where they begin behind padding's own position, that is what padding has.
    """
    places = encoded.mask.cumsum(axis=1) - 1
    behind = places * encoded.mask + encoded.first + encoded.mask - 1
    return {
        "ids": encoded.ids,
        "mask": encoded.mask,
        "positions": behind if encoded.first else places.clip(min=0),
        "token_types": encoded.types,
        "zeros": np.zeros_like(encoded.ids),
        "ones": np.ones_like(encoded.ids),
    }


def hash_of(*batches: Batch) -> str:
    """SHA-256 of the tokens of batches, with the names and shapes of their inputs."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(str(batch.widths).encode() if isinstance(batch, Bucketed) else b"")
        for name, values in sorted(batch.items()):
            digest.update(f"{name}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values, dtype="<i8").tobytes())
    return digest.hexdigest()


def hashed_tokenizer(vocab_size: int, seq_len: int | None, *, fixed: bool = True) -> Tokenize:
    """Hash each word of the real text into 1 .. vocab_size - 1, for models without a tokenizer.

    Keeps the frequencies and lengths of real text; 0 pads. Its results are always labelled. Texts
    are cut and padded as `file_tokenizer` does.
    """

    def tokenize(texts: Sequence[Text]) -> Encoded:
        found = [re.findall(r"\w+|[^\w\s]", str(text)) for text in texts]
        kept = [words[:seq_len] for words in found]
        width = seq_len if seq_len and fixed else max(map(len, kept), default=0)
        ids = np.zeros((len(texts), width), dtype=np.int64)
        for row, words in zip(ids, kept, strict=True):
            row[: len(words)] = [1 + zlib.crc32(w.encode()) % (vocab_size - 1) for w in words]
        cut = sum(len(words) > width for words in found)
        return Encoded(ids, (ids > 0).astype(np.int64), np.zeros_like(ids), cut)

    return tokenize
