"""Baselines of earlier schemas, brought to the newest one as they are read."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

SCHEMA = 2


def migrate(content: Any) -> Any:
    """The content in the newest schema. Raises ValueError for one from the future."""
    version = content.get("schema") if isinstance(content, Mapping) else None
    if isinstance(version, int) and version > SCHEMA:
        raise ValueError(
            f"written by a newer enginegate: schema {version}, this one reads up to {SCHEMA}; "
            "upgrade pytest-enginegate"
        )
    return _from_1(content) if version == 1 else content


def _from_1(content: Mapping[str, Any]) -> Any:
    """Schema 1 kept the seconds of each round, and measured without settling."""
    try:
        variants = {key: _variant(value) for key, value in content["variants"].items()}
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"schema 1, but not as it was: {error!r}") from error
    return {**content, "schema": 2, "variants": variants}


def _variant(stored: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in stored.items() if name != "date"}
    cells = {
        batch: [_session(stored["date"], replicates)]
        for batch, replicates in stored["cells"].items()
    }
    return {**rest, "context": {**stored["context"], "method": "rounds"}, "cells": cells}


def _session(date: str, replicates: list[Mapping[str, list[float]]]) -> dict[str, Any]:
    candidate = [seconds for r in replicates for seconds in r["candidate_s"]]
    reference = [seconds for r in replicates for seconds in r["reference_s"]]
    return {
        "calls": len(candidate),
        "date": date,
        "p50_s": statistics.median(candidate),
        "yardstick_p50_s": statistics.median(reference),
        "ratios": {"p50": [_ratio(r["candidate_s"], r["reference_s"]) for r in replicates]},
    }


def _ratio(candidate: list[float], reference: list[float]) -> float:
    pairs = zip(candidate, reference, strict=True)
    return math.exp(statistics.median(math.log(c / r) for c, r in pairs))
