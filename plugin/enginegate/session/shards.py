"""The part of a fleet's plan that a run is: split by estimated cost, alike on every machine."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from enginegate import __version__
from enginegate.config import Options
from enginegate.files import sha256_of_json
from enginegate.session.estimate import EXPORT_S, variant_s
from enginegate.variants import Variant

if TYPE_CHECKING:
    from enginegate.session import Session


@dataclass
class _Part:
    """Variants of a part so far, and their seconds."""

    variants: list[Variant] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    spent_s: int = 0

    def after_s(self, variant: Variant, cost_s: int) -> int:
        """Its seconds with one variant more, whose model may have to be exported first."""
        return self.spent_s + cost_s + (0 if variant.model in self.models else EXPORT_S)

    def take(self, variant: Variant, cost_s: int) -> None:
        self.spent_s = self.after_s(variant, cost_s)
        self.variants.append(variant)
        self.models.add(variant.model)


def split(costs_s: Mapping[Variant, int], count: int) -> list[tuple[Variant, ...]]:
    """So many parts of about the same seconds: the longest first, each to where it ends soonest.

    Longest processing time first (Graham 1969, SIAM Journal on Applied Mathematics 17), with the
    export of a model counted once in each part that has it. Depends on nothing but its arguments.
    """
    parts = [_Part() for _ in range(count)]
    for variant in sorted(costs_s, key=lambda v: (-costs_s[v], v.model, v.precision)):
        cost_s = costs_s[variant]
        min(parts, key=lambda part: part.after_s(variant, cost_s)).take(variant, cost_s)
    return [tuple(part.variants) for part in parts]


def divided(options: Options) -> tuple[Options, Mapping[str, Any] | None]:
    """The options without what other shards run, and the record of this shard for the report.

    Of options as they were asked for: what a machine makes of them must not decide.
    """
    shard, whole = options.shard, options.variants
    if shard is None:
        return options, None
    parts = split({v: variant_s(v, options) for v in whole}, shard.count)
    mine = parts[shard.number - 1]
    asked = _asked(options, whole)
    record = {
        "number": shard.number,
        "count": shard.count,
        "kinds": shard.kinds,
        "plan": sha256_of_json([asked, [[v.id for v in part] for part in parts]]),
        "asked": asked,
        "variants": [[v.model, str(v.precision)] for v in whole if v in mine],
    }
    others = frozenset((v.model, v.precision) for v in whole if v not in mine)
    return replace(options, elsewhere=others), record


def _asked(options: Options, whole: Sequence[Variant]) -> dict[str, Any]:
    """All that must be alike in every shard, so that a verdict of one means that of another."""
    serve = options.serve
    return {
        "models": list(dict.fromkeys(v.model for v in whole)),
        "precisions": list(dict.fromkeys(str(v.precision) for v in whole)),
        "definitions": options.definitions,
        "backend": options.backend,
        "batches": list(options.batches),
        "threads": options.threads,
        "concurrency": list(serve.concurrencies) if serve else [],
        "seconds": sum(variant_s(v, options) for v in whole),
        "gate": str(options.gate),
        "strict": options.strict,
        "require_baseline": options.require_baseline,
        "enginegate": __version__,
    }


def share_of(options: Options) -> float:
    """The run's share of the alarm error."""
    return options.shard.share if options.shard else 1.0


def part_line(part: Mapping[str, Any] | None) -> Iterator[str]:
    """A line on what the shard runs; nothing for a whole run."""
    if part:
        asked, found = part["asked"], part["variants"]
        whole = len(asked["models"]) * len(asked["precisions"])
        names = ", ".join(" ".join(one) for one in found) or "nothing is left for it"
        yield (
            f"shard {part['number']} of {part['count']}, {len(found)} of {whole} engines: {names} "
            f"(plan {part['plan'][:10]}; `enginegate merge` makes one verdict of all reports)"
        )


def ending_of(session: "Session") -> dict[str, Any]:
    """How the run ended, and its part of a fleet, for the report."""
    options, recorder = session.options, session.recorder
    reasons = {reason for _, reason in recorder.failures}
    return {
        "alarm": session.rules.alarm,
        "failures": sorted(reasons | ({"error"} if recorder.problems else set())),
        **({"kind": options.kind} if options.kind else {}),
        **({"shard": dict(recorder.shard)} if recorder.shard else {}),
    }
