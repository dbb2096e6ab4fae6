"""How far the embeddings are off: the distribution over the texts, the worst ones, rankings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from enginegate.accuracy import Accuracy as Judged
from enginegate.engines import Ranges
from enginegate.report.numbers import NOTHING, interval, loss, short, whole
from enginegate.report.page import Chart, Row, Table
from enginegate.report.saved_run import SavedRun
from enginegate.report.sections.vega import (
    Spec,
    colour,
    drawn_loss,
    least_in_words,
    losses,
    number,
    titled,
)
from enginegate.report.table import engine_name
from enginegate.report.wording.accuracy import ndcg_line, view_line, worst_length_line
from enginegate.results import Result, Words
from enginegate.verdicts import Verdict

_SHOWN = 160  # letters of a text
_SHARES = (0.5, 0.9, 0.99, 1.0)
_RANKS = ("recall_at_1", "recall_at_10", "spearman", "kendall")
_RANKING = ("model", "engine", "recall@1", "recall@10", "Spearman", "Kendall", "false ties")
_VIEWS = ("model", "engine", "used as", "min cosine", "recall@1", "recall@10", "verdict", "why")
_LENGTHS = (
    *("model", "engine", "tokens", "texts", "max |delta|", "min cosine", "recall@10", "verdict"),
    "why",
)
_STEADY = ("model", "engine", "share it changes with its batch", "allowed", "same input, twice")
_RANGES = ("model", "engine", "largest number inside", "where", "what fp16 cannot hold")
_SEARCH = ("model", "engine", "measure", "reference", "engine's", "change, or share retained")
_LABELS = {  # where relevance is from: labels, or for scores the reference's own order
    "On labelled queries and pairs": False,
    "Each query's documents, by the reference's order": True,
}

Accuracy = Mapping[str, Any]


def distributions(run: SavedRun) -> Iterator[Chart]:
    """Per model: which share of the texts is nearer than a loss."""
    for _, model, members in run.by_model(served=False):
        found = [(str(r.variant.precision), _of(run, r).get("cosines", ())) for r in members]
        known = [(name, sorted(1 - c for c in cosines)) for name, cosines in found if cosines]
        if known:
            yield _distribution(model, known, members[0].context.words)


def _in_process(run: SavedRun) -> list[Result]:
    return [result for result in run.results if not result.variant.served]


def _of(run: SavedRun, result: Result) -> Accuracy:
    return run.raw(result)["accuracy"] or {}


def _distribution(model: str, known: Sequence[tuple[str, Sequence[float]]], words: Words) -> Chart:
    rows = tuple(
        (name, *(loss(1 - _quantile(each, share)) for share in _SHARES)) for name, each in known
    )
    return Chart(
        title=titled(model, f"how near each {words.judged} stays"),
        reading=f"Share of the {words.many} whose loss is at most that far right: a line further "
        f"left is nearer to the reference, a long tail means that a few {words.many} suffer."
        f"{least_in_words(each for _, found in known for each in found)}",
        spec=_distribution_spec(known, words),
        table=Table(
            titled(model, f"1 - cosine of the {words.many}"),
            ("engine", "median", "90 %", "99 %", "worst"),
            rows,
        ),
        height=260,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _distribution_spec(known: Sequence[tuple[str, Sequence[float]]], words: Words) -> Spec:
    values = [
        {"name": name, "loss": drawn_loss(value), "share": rank / len(found)}
        for name, found in known
        for rank, value in enumerate(found, start=1)
    ]
    return {
        "data": {"values": values},
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2},
        "encoding": {
            "x": losses("1 - cosine", (each for _, found in known for each in found)),
            "y": number("share", f"share of {words.many}", axis={"format": "%", "tickCount": 5}),
            "color": colour([name for name, _ in known]),
        },
    }


def rankings(run: SavedRun) -> Iterator[Table]:
    """Tables of what is left of nearest texts and their order, and of an embedding's steadiness."""
    rows = tuple(row for result in _in_process(run) for row in _ranking(run, result))
    if rows:
        yield Table("Rankings, with intervals over the queries", _RANKING, rows)
    for caption, scores in _LABELS.items():
        found = [r for r in _in_process(run) if (r.context.words.row == "pair") == scores]
        searched = tuple(row for result in found for row in _search(run, result))
        if searched:
            yield Table(caption, _SEARCH, searched)
    steady = tuple(row for result in _in_process(run) for row in _steadiness(run, result))
    if steady:
        yield Table("Does an embedding depend on its batch, or on the moment?", _STEADY, steady)


def ranges(run: SavedRun) -> Iterator[Table]:
    """Whether fp16 can hold the numbers inside the models, for the engines that compute in it."""
    found = ((result, result.ranges) for result in _in_process(run))
    rows = tuple(_range_row(result, one) for result, one in found if one)
    if rows:
        yield Table("Can fp16 hold the numbers inside? It ends at 65,504", _RANGES, rows)


def _range_row(result: Result, found: Ranges) -> Row:
    beyond = "; ".join(one.words for one in found.beyond) or NOTHING
    name = (result.variant.model, engine_name(result.variant))
    return (*name, f"{found.largest:,.4g}", found.layer, beyond)


def _ranking(run: SavedRun, result: Result) -> Iterator[Row]:
    found = _of(run, result).get("retrieval")
    if found:
        told = (interval(**found[name]) for name in _RANKS)
        name = engine_name(result.variant)
        yield (result.variant.model, name, *told, whole(found["false_ties"]))


def views(run: SavedRun) -> Iterator[Table]:
    """The same embeddings cut to fewer dimensions, or stored in fewer bits."""
    rows = tuple(row for result in _in_process(run) for row in _view_rows(result))
    if rows:
        yield Table("Fewer dimensions, and vectors stored in fewer bits", _VIEWS, rows)


def _view_rows(result: Result) -> Iterator[Row]:
    for view in result.accuracy.views if result.accuracy else ():
        deltas, found = view.deltas, view.retrieval
        yield (
            result.variant.model,
            engine_name(result.variant),
            view.name,
            f"{deltas.cosine_worst:.6f}" if deltas else NOTHING,
            interval(**asdict(found.recall_at_1)) if found else NOTHING,
            interval(**asdict(found.recall_at_10)) if found else NOTHING,
            str(view.judgement.verdict),
            "; ".join(view.judgement.reasons),
        )


def lengths(run: SavedRun) -> Iterator[Table]:
    """The embeddings by the length of their texts."""
    rows = tuple(row for result in run.results for row in _length_rows(result))
    if rows:
        yield Table("By the length of the texts, in tokens", _LENGTHS, rows)


def _length_rows(result: Result) -> Iterator[Row]:
    for one in result.accuracy.lengths if result.accuracy else ():
        deltas = one.deltas
        yield (
            result.variant.model,
            engine_name(result.variant),
            one.name.removesuffix(" tokens"),
            whole(one.texts),
            f"{deltas.max_abs:.1e}" if deltas else NOTHING,
            f"{deltas.cosine_worst:.6f}" if deltas else NOTHING,
            interval(**asdict(one.recall_at_10)) if one.recall_at_10 else NOTHING,
            one.verdict,
            "; ".join(one.judgement.reasons),
        )


def outputs_said(run: SavedRun) -> Iterator[str]:
    """Sentences on terms and tokens, on orders by scores and on views, for the comment."""
    for result in _in_process(run):
        name = f"{result.variant.model} {engine_name(result.variant)}"
        if result.accuracy:
            yield from (f"{name}: {said}" for said in _said(result, result.accuracy))


def _said(result: Result, accuracy: Judged) -> Iterator[str]:
    if accuracy.terms:
        yield accuracy.terms.words
    if accuracy.worst_token:
        yield accuracy.worst_token.words
    if accuracy.retrieval and result.context.words.row == "pair":
        yield ndcg_line(accuracy.retrieval)
    yield from worst_length_line(accuracy)
    if accuracy.onset:
        yield accuracy.onset.words
    passed = [v.name for v in accuracy.views if v.judgement.verdict is Verdict.PASS]
    yield from [f"pass: {'; '.join(passed)}"] if passed else []
    others = (v for v in accuracy.views if v.judgement.verdict is not Verdict.PASS)
    yield from map(view_line, others)


def _search(run: SavedRun, result: Result) -> Iterator[Row]:
    """NDCG where queries have relevances, Spearman where pairs have labels."""
    accuracy, name = _of(run, result), (result.variant.model, engine_name(result.variant))
    ndcg, sts = (accuracy.get("retrieval") or {}).get("ndcg_at_10"), accuracy.get("sts")
    if ndcg:
        yield (*name, "NDCG@10", *_both(ndcg), interval(**ndcg["change"]))
    if sts:
        kept = interval(sts["retained"], sts["low"], sts["high"])
        yield (*name, "Spearman of similar pairs", *_both(sts), kept)


def _both(found: Mapping[str, Any]) -> Row:
    return f"{found['reference']:.3f}", f"{found['candidate']:.3f}"


def _steadiness(run: SavedRun, result: Result) -> Iterator[Row]:
    accuracy = _of(run, result)
    batch, again = accuracy.get("invariance"), accuracy.get("determinism")
    if batch or again:
        moved, limit = (short(batch[key]) if batch else NOTHING for key in ("relative", "limit"))
        told = _again(again) if again else NOTHING
        yield (result.variant.model, engine_name(result.variant), moved, limit, told)


def _again(found: Mapping[str, Any]) -> str:
    return "bit for bit" if found["bitwise"] else f"differs by {short(found['max_abs'])}"


def worst_texts(run: SavedRun) -> Iterator[Table]:
    """Per model: the texts that the engine with the smallest cosine treats worst."""
    for model, _, members in run.by_model(served=False):
        found = [(r, _of(run, r).get("worst_texts") or []) for r in members]
        known = [(r, texts) for r, texts in found if texts]
        if known:
            worst, texts = min(known, key=lambda pair: float(pair[1][0]["cosine"]))
            yield Table(
                f"{model} {engine_name(worst.variant)}: the {worst.context.words.many} that suffer "
                "most",
                ("text", "tokens", "cosine", "nearest before", "nearest after"),
                tuple(_text_row(text) for text in texts),
            )


def _text_row(text: Mapping[str, Any]) -> Row:
    neighbours = (_first(text["neighbours_before"]), _first(text["neighbours_after"]))
    return (cut(text["text"]), str(text["tokens"]), f"{text['cosine']:.6f}", *neighbours)


def _first(texts: Sequence[str]) -> str:
    return cut(texts[0]) if texts else NOTHING


def cut(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"
