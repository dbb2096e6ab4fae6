"""False alarms of unchanged engines, whichever way a run compares.

    python benchmarks/alarms.py [--runs 300] [--live N] > results/baseline-alarms.txt

Played: suite runs of four cells whose replicates are drawn. A run is its own session; sessions
scatter by a share of the replicates' spread that differs from cell to cell, as measured
(results/variance.txt). `paired` is beside the baseline's engine, `stored` beside three stored
sessions; each is run twice, the second run with what the first left as evidence, as a user would
who runs again until it passes, and an alarm in either counts. An engine that is `identical` is not
timed, so it cannot alarm. A row: runs with an alarm and the exact 95 % interval of their share, the
share of cells with a verdict, replicates that a run took, and the smallest slowdown that it would
have found, at batch 8 and 1 (median).

Live, with --live: so many runs of MiniLM in fresh processes through each of the ways.
"""

import argparse
import collections
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from user_project import SHIPPED, edit_variants, heading, run

from enginegate.baselines.calibration import Drawn
from enginegate.speed.rules import P50, Question, Rules
from enginegate.speed.sequential import SequentialTest
from enginegate.speed.stats import Anchor, anchor_of
from enginegate.verdicts import Verdict

LIMIT, EACH_S, MAX_TIME_S, REPLICATES = 0.05, 1.5, 120.0, 12
CONCLUSIVE = (Verdict.PASS, Verdict.IMPROVED, Verdict.REGRESSED)

# batch, spread of replicates and of sessions: beside an engine of a kind, beside the reference
CELLS = {
    "fp32 batch 1": (1, 0.015, 0.02, 0.01),
    "fp32 batch 8": (8, 0.007, 0.007, 0.002),
    "int8 batch 1": (1, 0.042, 0.08, 0.08),
    "int8 batch 8": (8, 0.02, 0.03, 0.02),
}


def stored_sessions(rng, spread: float, between: float, replicates=(12, 6, 6)) -> list[list[float]]:
    """Sessions of a refresh."""
    return [
        (between * rng.normal() + spread * rng.normal(size=count)).tolist() for count in replicates
    ]


def anchors_of(rng, way: str) -> dict[str, Anchor]:
    """What each cell is compared with."""
    if way == "paired":
        return dict.fromkeys(CELLS, Anchor())
    known = {name: stored_sessions(rng, cell[2], cell[3]) for name, cell in CELLS.items()}
    return {
        name: anchor_of(own, [other for other in known.values() if other is not own])
        for name, own in known.items()
    }


def play(rng, way: str, anchors, earlier: dict[str, float]) -> tuple[list[Any], int]:
    """One suite run: its findings by cell, and the replicates that it took."""
    taken = 0
    trial = SequentialTest(Rules(REPLICATES, MAX_TIME_S, 0.01, 0.05), lambda: taken * EACH_S)
    findings = []
    for precision in ("fp32", "int8"):
        names = {CELLS[n][0]: n for n in CELLS if n.startswith(precision)}
        shift = {b: CELLS[n][3] * rng.normal() * (way == "stored") for b, n in names.items()}
        spread = {b: CELLS[n][2 if way == "stored" else 1] for b, n in names.items()}

        def measure(batches, shift=shift, spread=spread):
            nonlocal taken
            taken += 1
            return {b: Drawn(shift[b] + spread[b] * rng.normal()) for b in batches}

        asked = {
            (b, P50): Question(anchors[n], LIMIT, scale_s=1.0, earlier=earlier.get(n, 1.0))
            for b, n in names.items()
        }
        outcome = trial.run(measure, list(names), asked)
        findings += [(names[b], outcome.findings[b, P50]) for b in names]
    return findings, taken


def left_behind(findings) -> dict[str, float]:
    """The evidence that a run keeps for the next one, as `SpeedJudge` does."""
    return {
        name: min(finding.change.evidence, 100.0)
        for name, finding in findings
        if finding.confirmed and finding.judgement.verdict not in (Verdict.PASS, Verdict.IMPROVED)
    }


def played(way: str, runs: int) -> None:
    """Print the row of a way."""
    rng, alarms, cells, counts = np.random.default_rng(0), 0, [], []
    seen = collections.defaultdict(list)
    for _ in range(runs):
        anchors = anchors_of(rng, way)
        first, taken = play(rng, way, anchors, {})
        second, _ = play(rng, way, anchors, left_behind(first))
        alarms += any(f.judgement.verdict is Verdict.REGRESSED for _, f in [*first, *second])
        cells += [finding.judgement.verdict in CONCLUSIVE for _, finding in first]
        counts.append(taken)
        for name, finding in first:
            seen[CELLS[name][0]].append(finding.change.visible)
    interval = stats.binomtest(alarms, runs).proportion_ci()
    visible = ", ".join(f"{np.median(seen[b]):.1%} at batch {b}" for b in (8, 1))
    print(
        f"{way:7} played {runs:4} runs, each twice: {alarms} with an alarm "
        f"({interval.low:.1%} … {interval.high:.1%}); {np.mean(cells):.0%} of cells decided; "
        f"{np.median(counts):.0f} replicates; sees {visible}",
        flush=True,
    )


def live(runs: int) -> None:
    """Print the rows of real runs of unchanged engines."""
    asked = ("--precision=fp32,int8", "--gate-batches=1,8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pyproject.toml").write_text(SHIPPED)
        run(folder, *asked, "--gate-refresh-baselines")
        measured = (*asked, "--gate-measure-identical")
        show("identical", [run(folder, *asked) for _ in range(runs)])
        show("paired", [run(folder, *measured) for _ in range(runs)])
        edit_variants(folder, lambda variant: variant.pop("provenance"), "minilm")
        show("stored", [run(folder, *asked) for _ in range(runs)])


def show(way: str, found) -> None:
    """Print the row of a way."""
    said = collections.Counter(verdict for one in found for verdict in one.cells or one.verdicts)
    alarmed = sum("regressed" in one.verdicts for one in found)
    words = ", ".join(f"{count} {verdict}" for verdict, count in said.most_common())
    middle_s = float(np.median([one.elapsed_s for one in found]))
    print(f"{way:9} live {len(found)} runs: {alarmed} with an alarm; {words}; {middle_s:.0f} s")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--live", type=int, default=0)
    given = parser.parse_args()
    print(heading(f"limit {LIMIT:.0%}, {REPLICATES} replicates, {MAX_TIME_S:.0f} s a variant"))
    for way in ("paired", "stored"):
        played(way, given.runs)
    if given.live:
        live(given.live)


if __name__ == "__main__":
    main()
