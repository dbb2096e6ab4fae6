"""A vector for every token: cosine by token, and MaxSim, by which a search finds documents.

MaxSim takes for each token of a query the largest product with a token of the document, and adds
them up (Khattab and Zaharia 2020, ColBERT). Here it is divided by the number of the query's tokens,
which changes no order and makes it comparable with a cosine. A vector of zeros is no token: those
of padding, and of tokens that no search uses, are set to it before anything is compared.
"""

from dataclasses import dataclass

import numpy as np

from enginegate.accuracy.bootstrap import Values
from enginegate.accuracy.deltas import Array, Deltas, check_sane
from enginegate.accuracy.retrieval import Vectors, shortened
from enginegate.errors import EmbeddingError
from enginegate.models import Kept, Searched

_TOKENS_RANK = 3  # [rows, tokens, dim]
_UNIT = 1e-3  # a length of 1 is off by less


@dataclass(frozen=True)
class WorstToken:
    """The token whose vector is furthest off.

    Attributes:
        token: as the tokenizer spells it.
        place: among the tokens of its text, from 0.
        role: of the text, `query` or `document`.
        text: the text.
        cosine: of the token's two vectors.
        tokens: vectors that were compared.
    """

    token: str
    place: int
    role: str
    text: str
    cosine: float
    tokens: int

    @property
    def words(self) -> str:
        """All of it in a line."""
        where = f'token {self.place} of the {self.role} "{shortened(self.text)}"'
        return f'worst of {self.tokens} tokens: "{self.token}", {where}, cosine {self.cosine:.6f}'


def check_vectors(vectors: Array, owner: str) -> None:
    """Raise EmbeddingError unless vectors are [rows, tokens, dim] and sane as embeddings are."""
    if vectors.ndim != _TOKENS_RANK:
        raise EmbeddingError(
            f"{owner} gave shape {list(vectors.shape)}, where a vector for every token is expected"
        )
    check_sane(vectors.reshape(len(vectors), -1), owner)


def token_cosines(found: Array, expected: Array) -> Values:
    """Cosine of each token's two vectors, [rows, tokens]; 0 where one is none, 1 where both are."""
    product = (found.astype(np.float64) * expected).sum(axis=2)
    lengths = [np.linalg.norm(v.astype(np.float64), axis=2) for v in (found, expected)]
    both = lengths[0] * lengths[1]
    none = (lengths[0] == 0) & (lengths[1] == 0)
    return np.where(none, 1.0, product / np.where(both > 0, both, 1))


def compare_tokens(candidate: Array, reference: Array) -> Deltas:
    """Deltas of vectors [rows, tokens, dim] that are 0 where no search uses them; in float64.

    Its cosines are those of tokens, its worst text is the row with the smallest one. Raises
    EmbeddingError if either is not sane or their shapes differ.
    """
    check_vectors(reference, "the reference")
    check_vectors(candidate, "the engine")
    if candidate.shape != reference.shape:
        raise EmbeddingError(
            f"the engine gave shape {list(candidate.shape)}, the reference {list(reference.shape)}"
        )
    used = (candidate != 0).any(axis=2) | (reference != 0).any(axis=2)
    cosines = token_cosines(candidate, reference)
    found, expected = (v[used].astype(np.float64) for v in (candidate, reference))
    difference = np.abs(found - expected)
    return Deltas(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        scale=float(np.abs(expected).max()),
        cosine_worst=float(cosines.min()),
        cosine_p1=float(np.quantile(cosines[used], 0.01)),
        gain=float((found * expected).sum() / (expected * expected).sum()),
        worst_text=int(cosines.min(axis=1).argmin()) // 2,
    )


def by_text(found: Array, expected: Array) -> Values:
    """Smallest cosine of a token of each text, as a query or as a document; rows as `Searched`."""
    worst: Values = token_cosines(found, expected).min(axis=1).reshape(-1, 2).min(axis=1)
    return worst


def worst_token(found: Array, expected: Array, rows: Searched) -> WorstToken:
    """The token with the smallest cosine; both [rows, tokens, dim], 0 where no search uses them."""
    cosines = token_cosines(found, expected)
    row, place = map(int, np.unravel_index(cosines.argmin(), cosines.shape))
    token, role, text = rows.words(row, place)
    return WorstToken(
        token=token,
        place=place,
        role=role,
        text=text,
        cosine=float(cosines[row, place]),
        tokens=int(rows.kept.sum()),
    )


def best_matches(vectors: Vectors) -> Values:
    """MaxSim [queries, documents], divided by a query's tokens; both [texts, tokens, dim].

    Without documents, every second row is the text before it as a document, and each query is
    searched in all others in order.
    """
    if vectors.documents is not None:
        return _best(vectors.queries, vectors.documents)
    found = _best(vectors.queries[::2], vectors.queries[1::2])
    count = len(found)
    return found[~np.eye(count, dtype=bool)].reshape(count, count - 1)


def _best(queries: Array, documents: Array) -> Values:
    tokens = documents.astype(np.float64).reshape(-1, documents.shape[2])
    none = np.logical_not(documents.any(axis=2))
    return np.stack([_best_of(query, tokens, none) for query in queries])


def _best_of(query: Array, tokens: Values, none: Kept) -> Values:
    """Of one query [tokens, dim] with every document: [documents]."""
    own = query[query.any(axis=1)].astype(np.float64)
    products = (own @ tokens.T).reshape(len(own), *none.shape)
    best: Values = np.where(none, -np.inf, products).max(axis=2).mean(axis=0)
    return best


def multi_cause(reference: Array, truth: Array, rows: Searched) -> str:
    """Why vectors [rows, tokens, dim] are not the model's, of what can be told by them alone."""
    if said := _other_tokens(reference, truth, rows):
        return said
    lengths = [np.linalg.norm(v[v.any(axis=2)], axis=1) for v in (reference, truth)]
    unit = [bool((np.abs(length - 1) < _UNIT).all()) for length in lengths]
    if unit[0] != unit[1]:
        does, does_not = ("it", "the model") if unit[0] else ("the model", "it")
        return f"{does} scales each vector to length 1, and {does_not} does not"
    for by, way in ((1, "behind"), (-1, "before")):
        moved = np.roll(truth, by, axis=1)
        both = moved.any(axis=2) & reference.any(axis=2)
        if np.median(token_cosines(reference, moved)[both]) > 1 - _UNIT:
            return f"each vector stands one place {way} its token"
    return "the same tokens have other vectors; no other cause was sought than length and place"


def _other_tokens(reference: Array, truth: Array, rows: Searched) -> str:
    """What of the tokens is used by one alone; empty where both use the same."""
    used, own = reference.any(axis=2), truth.any(axis=2)
    said = []
    for where, doing in ((used & ~own, "uses"), (own & ~used, "leaves out")):
        if where.any():
            row, place = map(int, np.argwhere(where)[0])
            token, role, _ = rows.words(row, place)
            first = f'"{token}" at place {place} of a {role}'
            said.append(f"it {doing} {int(where.sum())} tokens, first {first}")
    return f"{' and '.join(said)}, and the model does not" if said else ""
