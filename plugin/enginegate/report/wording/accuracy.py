"""What the embeddings of one variant are worth, in words."""

from collections.abc import Iterator

from enginegate.accuracy import (
    Accuracy,
    AtLength,
    Determinism,
    Invariance,
    Retrieval,
    Viewed,
    WorstText,
    shortened,
    worst_length,
)
from enginegate.results import Words
from enginegate.verdicts import Verdict

_SHOWN = 3  # false neighbours and worst texts


def embedding_notes(accuracy: Accuracy, words: Words) -> Iterator[str]:
    """Reasons why it is not a plain pass, and the text that shows it best."""
    judgement = accuracy.judgement
    if judgement.reasons:
        yield f"{words.outputs} {judgement.verdict}: {'; '.join(judgement.reasons)}"
    if accuracy.invariance and accuracy.invariance.broken:
        yield f"{words.outputs} fail: {accuracy.invariance.broken}"
    if accuracy.determinism and accuracy.determinism.rebuilds:
        yield _determinism_line(accuracy.determinism)
    if accuracy.retrieval and accuracy.retrieval.ndcg_at_10:
        yield ndcg_line(accuracy.retrieval)
    yield from map(view_line, accuracy.views)
    yield from worst_length_line(accuracy)
    yield from _kind_lines(accuracy)
    if accuracy.sts:
        yield f"labelled pairs: {accuracy.sts.words}"
    if judgement.verdict is Verdict.FAIL and accuracy.worst_texts:
        yield _worst(accuracy.worst_texts[0], words)


def _kind_lines(accuracy: Accuracy) -> Iterator[str]:
    """What only some kinds of outputs have."""
    if accuracy.terms:
        yield f"terms: {accuracy.terms.words}"
    if accuracy.worst_token:
        yield f"tokens: {accuracy.worst_token.words}"


def accuracy_lines(accuracy: Accuracy, words: Words) -> Iterator[str]:
    """Everything, for the written report."""
    if accuracy.retrieval:
        yield from _retrieval_lines(accuracy.retrieval)
    yield from (_worst(text, words) for text in accuracy.worst_texts[:_SHOWN])
    yield from map(length_line, accuracy.lengths)
    if accuracy.invariance:
        yield _invariance_line(accuracy.invariance)
        yield from accuracy.invariance.skipped
    if accuracy.determinism:
        yield _determinism_line(accuracy.determinism)


def _retrieval_lines(found: Retrieval) -> Iterator[str]:
    names = ("recall_at_1", "recall_at_10", "spearman", "kendall")
    figures = ", ".join(f"{name} {getattr(found, name).words}" for name in names)
    yield (
        f"rankings of {found.queries} queries over {found.documents} texts: {figures}, "
        f"smallest spearman {found.spearman_worst:.4g}, {found.false_ties} false ties"
    )
    for one in found.false_neighbours[:_SHOWN]:
        query, expected, other = map(shortened, (one.query, one.expected, one.found))
        yield f'false neighbour of "{query}": "{other}" instead of "{expected}"'


def ndcg_line(found: Retrieval) -> str:
    """NDCG by the reference and by the engine; of which and how many queries."""
    said = found.ndcg_at_10.words if found.ndcg_at_10 else "no NDCG"
    return f"{found.queries} queries over {found.documents} documents: {said}"


def view_line(found: Viewed) -> str:
    """The verdict on a view of the embeddings, and its figures."""
    parts = [f"worst cosine {found.deltas.cosine_worst:.6f}"] if found.deltas else []
    parts += [f"recall_at_10 {found.retrieval.recall_at_10.words}"] if found.retrieval else []
    return f"{found.name}: {found.judgement.verdict}: {', '.join(parts) or 'not comparable'}"


def worst_length_line(accuracy: Accuracy) -> Iterator[str]:
    """The bucket with the smallest cosine; nothing where all texts have one length."""
    if worst := worst_length(accuracy.lengths):
        yield f"worst length: {length_line(worst)}"


def length_line(found: AtLength) -> str:
    """The verdict on the texts of a bucket, and their figures."""
    parts = [f"worst cosine {found.deltas.cosine_worst:.6f}"] if found.deltas else []
    parts += [f"recall_at_10 {found.recall_at_10.words}"] if found.recall_at_10 else []
    said = ", ".join(parts) or "not comparable"
    return f"{found.texts} texts of {found.name}: {found.verdict}: {said}"


def _worst(text: WorstText, words: Words) -> str:
    return (
        f'worst {words.judged}: "{shortened(text.text)}" (number {text.index}, '
        f"{text.tokens} tokens), cosine {text.cosine:.6f}"
    )


def _invariance_line(found: Invariance) -> str:
    settings = ", ".join(f"{name} {change:.1e}" for name, change in found.settings.items())
    return f"largest change of a component with the batch: {settings}"


def _determinism_line(found: Determinism) -> str:
    twice = "the same bits" if found.bitwise else f"a difference of up to {found.max_abs:.1e}"
    rebuilt = ", ".join(f"{change:.1e}" for change in found.rebuilds)
    return f"the same input twice: {twice}" + (f"; builds differ by {rebuilt}" if rebuilt else "")
