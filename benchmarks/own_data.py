"""Write labelled files of real text, as a user's would be: searches.jsonl and pairs.jsonl.

    python benchmarks/own_data.py FOLDER

From the language reference that comes with every Python: the first sentence of a topic is a query,
its other sentences are the relevant documents; pairs are alike (1) if both are of one topic.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from enginegate.models.workload import _SENTENCE, _SENTENCE_END

FEWEST, MOST = 3, 8  # sentences of a topic


def sentences(topic: str) -> list[str]:
    """Sentences of a topic, each once."""
    parts = (" ".join(part.split()) for part in topics[topic].split("\n\n"))
    found = (s for part in parts for s in _SENTENCE_END.split(part) if _SENTENCE.fullmatch(s))
    return list(dict.fromkeys(found))[:MOST]


def by_topic() -> dict[str, list[str]]:
    """Topics with sentences enough; no sentence is in two of them."""
    seen: set[str] = set()
    found = {}
    for topic in sorted(topics):
        own = [sentence for sentence in sentences(topic) if sentence not in seen]
        seen.update(own)
        if len(own) >= FEWEST:
            found[topic] = own
    return found


def searches(texts: dict[str, list[str]]) -> Iterator[dict[str, object]]:
    """Queries, documents, and which document answers which query."""
    for topic, (query, *documents) in texts.items():
        yield {"role": "query", "id": topic, "text": query}
        for number, document in enumerate(documents):
            yield {"role": "document", "id": f"{topic}-{number}", "text": document}
            yield {"query": topic, "document": f"{topic}-{number}", "relevance": 1}


def pairs(texts: dict[str, list[str]]) -> Iterator[dict[str, object]]:
    """Two sentences of a topic, and one beside that of the next topic."""
    for own, other in itertools.pairwise(texts.values()):
        for a, b, c in zip(own, own[1:], other[1:], strict=False):
            yield {"a": a, "b": b, "score": 1}
            yield {"a": a, "b": c, "score": 0}


def main(folder: Path) -> None:
    texts = by_topic()
    for name, make in (("searches.jsonl", searches), ("pairs.jsonl", pairs)):
        lines = [json.dumps(line) for line in make(texts)]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{folder / name}: {len(lines)} lines")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
