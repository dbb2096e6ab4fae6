"""From what was found to the outcome of a test."""

from typing import TYPE_CHECKING

import pytest

from enginegate.verdicts import Verdict

if TYPE_CHECKING:
    from enginegate.results import Result
    from enginegate.session import Session
    from enginegate.speed import Measured, Speed

PROPERTY = "enginegate_verdict"
ERROR = "error"


def shown(text: str) -> str:
    """The text as a terminal may show it; the report's library is loaded when it is needed."""
    from enginegate.report import for_terminal

    return for_terminal(text)


class Gate:
    """Turns what was found into the outcome of a test."""

    def __init__(self, node: pytest.Item, session: "Session", result: "Result") -> None:
        self._node, self._session, self._result = node, session, result

    def check_embeddings(self) -> None:
        """Fail beyond the limits; flag looser limits, and another type than asked for."""
        accuracy, verdict = self._result.accuracy, self._result.delta_verdict
        fails = verdict is Verdict.FAIL
        reasons = [*self._result.flags, *(accuracy.judgement.reasons if accuracy else ())]
        if fails and self._result.blame is None:
            reasons.append("--blame says which layers do it")
        text = f"{self._result.variant.id}: {verdict}: {'; '.join(reasons)}"
        self._conclude(verdict, text, fails=fails)

    def check_invariance(self) -> None:
        """Fail if an embedding depends on its batch; skip where the embeddings are wrong anyway."""
        accuracy, name = self._result.accuracy, self._result.variant.id
        if accuracy is None or accuracy.invariance is None:
            pytest.skip(shown(f"{name}: not probed, its embeddings are wrong"))
        found = accuracy.invariance
        verdict = Verdict.FAIL if found.broken else Verdict.PASS
        text = f"{name}: {verdict}: {'; '.join(filter(None, [found.broken, *found.skipped]))}"
        self._conclude(verdict, text, fails=verdict is Verdict.FAIL)

    def check_speed(self, measured: "Measured") -> None:
        """Fail on a regression, and on whatever else the gate is told not to let pass."""
        speed = measured.speed
        verdict = speed.verdict
        judgements = [j for j in (speed.judgement, speed.tail_judgement) if j]
        reasons = "; ".join(r for j in judgements if j.verdict is verdict for r in j.reasons)
        text = f"{self._result.variant.id}, batch {speed.batch}: {verdict}: {reasons}"
        self._node.user_properties += _properties(speed)
        self._conclude(verdict, text, fails=self._session.options.fails(verdict))

    def check_load(self, result: "Result") -> None:
        """Fail on a new cliff, a lost capacity, or a served engine that became slower."""
        verdict, load = result.speed_verdict, result.load
        judged = [load.judgement] if load else []
        judged += [speed.judgement for speed in result.speeds]
        reasons = "; ".join(r for j in judged if j.verdict is verdict for r in j.reasons)
        self._node.user_properties += _load_properties(result)
        text = f"{result.variant.id}: {verdict}: {reasons}"
        self._conclude(verdict, text, fails=self._session.options.fails(verdict))

    def _conclude(self, verdict: Verdict, text: str, *, fails: bool) -> None:
        self._node.user_properties.append((PROPERTY, str(verdict)))
        strict = verdict is Verdict.FLAGGED and self._session.options.strict
        self._session.recorder.notice(verdict, text, fails=fails or strict)
        if fails or strict:
            pytest.fail(shown(text), pytrace=False)


def _properties(speed: "Speed") -> list[tuple[str, object]]:
    """The numbers of a batch size, for JUnit's XML and other readers of reports."""
    change = speed.change
    numbers = {"p50_s": speed.p50_s, "texts_per_s": speed.texts_per_s}
    if change is not None:
        numbers |= {"change": change.ratio, "change_low": change.low, "change_high": change.high}
        numbers |= {"visible_slowdown": change.visible, "e_value": change.evidence}
    return [(f"enginegate_{name}", f"{value:.6g}") for name, value in numbers.items()]


def _load_properties(result: "Result") -> list[tuple[str, object]]:
    """What a served engine carries, for JUnit's XML and other readers of reports."""
    if result.load is None:
        return []
    analysis = result.load.analysis
    cliffs = ", ".join(f"{cliff.first}-{cliff.last}" for cliff in analysis.cliffs)
    return [
        ("enginegate_served_texts_per_s", f"{result.load.largest_per_s:.6g}"),
        ("enginegate_saturated_from", analysis.saturated_from or ""),
        ("enginegate_cliffs", cliffs),
    ]
