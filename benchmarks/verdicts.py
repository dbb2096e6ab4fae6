"""Tables from the replicates that benchmarks/trials.py recorded.

    python benchmarks/verdicts.py alarms UNCHANGED [--runs 300]
    python benchmarks/verdicts.py power SLOWER [SLOWER_WITH_REFERENCE] [--runs 300]
    python benchmarks/verdicts.py bias UNCHANGED NAIVE

`alarms` counts the live verdicts of unchanged engines, plays more runs by drawing from the recorded
replicates, and asks other tools' rules about the same calls, each run against the run before it.
`power` plays runs of engines that are truly slower, against a stored baseline too where the
reference was recorded. `bias` averages the log ratio of identical
engines over all instantiations, beside naive pairing.
"""

import argparse
import collections
import itertools
import json
import math
import random
import statistics
import time
from pathlib import Path

import numpy as np
from scipy import stats

from enginegate.baselines.calibration import Drawn, share_regressed
from enginegate.machine.fingerprint import this_machine
from enginegate.speed.rules import P50, Question, Rules
from enginegate.speed.sequential import SequentialTest
from enginegate.speed.stats import Anchor, anchor_of
from enginegate.verdicts import Verdict

LIMIT = 0.05
CONCLUSIVE = ("pass", "improved", "regressed")
Rows = list[dict]


def load(path: Path) -> Rows:
    """All lines of a recording, each with its log ratio."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        copies = [arm for arm in ("yardstick", "sentinel") if arm in row["blocks"]]
        row["value"] = log_ratio(row, "candidate", *copies)
    return rows


def log_ratio(row: dict, arm: str, *others: str) -> float:
    """Median over the blocks of log(arm / the geometric mean of the others)."""
    blocks = zip(*(row["blocks"][name] for name in (arm, *others)), strict=True)
    return statistics.median(
        math.log(mine) - statistics.fmean(map(math.log, rest)) for mine, *rest in blocks
    )


# --- false alarms


def alarms(rows: Rows, runs: int) -> None:
    """Live, played, and by other rules, for each condition."""
    print("condition  rule                         runs  with an alarm       cells conclusive")
    for condition in sorted({row["condition"] for row in rows}, reverse=True):
        mine = [row for row in rows if row["condition"] == condition]
        show_verdicts(condition, "enginegate, live", live_verdicts(mine))
        show_verdicts(condition, "enginegate, played", [played_run(mine, n) for n in range(runs)])
        for name, rule in RIVALS.items():
            show_rival(condition, name, rule, mine)


def live_verdicts(rows: Rows) -> list[list[str]]:
    by_run = collections.defaultdict(dict)
    for row in rows:
        said = row["verdicts"] | ({"invalid": "invalid"} if row["invalid"] else {})
        by_run[row["run"]][row["variant"]] = list(said.values())
    return [[v for found in run.values() for v in found] for run in by_run.values()]


def played_run(rows: Rows, seed: int) -> list[str]:
    """The verdicts of a suite run whose replicates are drawn, one test for all variants."""
    rng, now_s = random.Random(seed), 0.0
    trial = SequentialTest(Rules(8, 60.0, 0.01, 0.05), lambda: now_s)
    said = []
    for variant in sorted({row["variant"] for row in rows}):
        pools = collections.defaultdict(list)
        for row in rows:
            if row["variant"] == variant:
                pools[row["batch"]].append(row["value"])

        def measure(batches, pools=pools):
            nonlocal now_s
            now_s += 2.0
            return {batch: Drawn(rng.choice(pools[batch])) for batch in batches}

        questions = {(b, P50): Question(Anchor(), LIMIT, scale_s=1.0) for b in pools}
        found = trial.run(measure, sorted(pools), questions).findings
        said += [finding.judgement.verdict for finding in found.values()]
    return said


def show_verdicts(condition: str, name: str, runs: list[list[str]]) -> None:
    alarmed = sum("regressed" in run for run in runs)
    cells = [verdict for run in runs for verdict in run if verdict != "invalid"]
    conclusive = sum(verdict in CONCLUSIVE for verdict in cells) / len(cells)
    invalid = sum("invalid" in run for run in runs)
    note = f"   ({invalid} invalid)" if invalid else ""
    counted = share(alarmed, len(runs))
    print(f"{condition:10} {name:28} {len(runs):4}  {counted}  {conclusive:6.1%}{note}")


def show_rival(condition: str, name: str, rule, rows: Rows) -> None:
    """A run alarms if any of its cells does against the run before it."""
    cells = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in rows:
        cells[row["run"]][row["variant"], row["batch"]] += row["calls"]
    order = sorted(cells)
    alarmed = sum(
        any(rule(cells[b][key], cells[a][key]) for key in cells[b])
        for a, b in itertools.pairwise(order)
    )
    print(f"{condition:10} {name:28} {len(order) - 1:4}  {share(alarmed, len(order) - 1)}")


def share(count: int, total: int) -> str:
    """Count, share and its exact 95 % interval (Clopper and Pearson)."""
    interval = stats.binomtest(count, total).proportion_ci()
    return f"{count:4} {count / total:6.1%} ({interval.low:.1%} … {interval.high:.1%})"


def criterion(now, then) -> bool:
    """Criterion.rs: t-test significant, and the interval of the change beyond the noise of 1 %."""
    rng = np.random.default_rng(0)
    means = [rng.choice(arm, (2000, len(arm))).mean(axis=1) for arm in (now, then)]
    low = np.quantile(means[0] / means[1] - 1, 0.025)
    return stats.ttest_ind(now, then, equal_var=False).pvalue < 0.05 and low > 0.01


def welch(now, then) -> bool:
    return stats.ttest_ind(now, then, equal_var=False, alternative="greater").pvalue < 0.05


def mann_whitney(now, then) -> bool:
    return stats.mannwhitneyu(now, then, alternative="greater").pvalue < 0.05


RIVALS = {
    "pytest-benchmark mean:5%": lambda now, then: np.mean(now) > 1.05 * np.mean(then),
    "pytest-benchmark median:5%": lambda now, then: np.median(now) > 1.05 * np.median(then),
    "pytest-benchmark min:5%": lambda now, then: min(now) > 1.05 * min(then),
    "Criterion's rule": criterion,
    "Welch, 5 %": welch,
    "Mann-Whitney, 5 %": mann_whitney,
}


# --- power


def power(rows: Rows, runs: int, watched: Rows = ()) -> None:
    """Share of slower engines found, by slowdown, limit, way of comparing and time a variant."""
    print("a variant of one batch size, fp32; runs played from recorded replicates")
    print("slowdown  batch  limit  way     10 s    30 s    60 s")
    for more, batch in sorted({(row["more"], row["batch"]) for row in rows if row["more"]}):
        mine = cell(rows, more, batch)
        values = [row["value"] for row in mine]
        true, each_s = math.expm1(statistics.fmean(values)), median_s(mine)
        for limit in (LIMIT, 0.8 * true, 0.5 * true):
            found = [share_found(values, limit, b, each_s, runs) for b in (10, 30, 60)]
            print(line(true, batch, limit, "paired", found))
        print(nearest_line(true, batch, values, each_s, runs))
        if not watched:
            continue
        now, then = cell(watched, more, batch), cell(watched, 0, batch)
        found = [stored_share(now, then, b, median_s(now), runs) for b in (10, 30, 60)]
        print(line(true, batch, LIMIT, "stored", found))


def nearest_line(true: float, batch: int, values, each_s: float, runs: int) -> str:
    """How near to the slowdown the limit may be, as a share of it, for nearly all to be found."""
    goals = ((30, 0.95), (60, 0.8))
    found = [nearest(true, values, each_s, runs, budget_s, goal) for budget_s, goal in goals]
    said = ", ".join(
        f"{goal:.0%} in {budget_s} s up to a limit of {limit:.1%}" if limit else "none"
        for (budget_s, goal), limit in zip(goals, found, strict=True)
    )
    return f"{true:+8.1%}  {batch:5}         paired  finds {said}"


def nearest(true: float, values, each_s: float, runs: int, budget_s: float, goal: float) -> float:
    """The largest limit, in steps of a tenth of the slowdown, at which the goal is met; else 0."""
    for tenths in range(9, -1, -1):
        limit = max(true * tenths / 10, 1e-4)
        if share_found(values, limit, budget_s, each_s, runs) >= goal:
            return limit
    return 0.0


def cell(rows: Rows, more: int, batch: int) -> Rows:
    return [row for row in rows if row["more"] == more and row["batch"] == batch]


def median_s(rows: Rows) -> float:
    return statistics.median(row["elapsed_s"] for row in rows)


def line(true: float, batch: int, limit: float, way: str, found: list[float]) -> str:
    shares = "  ".join(f"{value:6.1%}" for value in found)
    return f"{true:+8.1%}  {batch:5}  {limit:5.1%}  {way:6}  {shares}"


def rules_for(budget_s: float, each_s: float) -> Rules:
    """A fifth of the time for the screening, from 3 to 8 replicates."""
    replicates = min(8, max(3, int(budget_s / each_s / 5)))
    return Rules(replicates, budget_s, 0.01, 0.05)


def share_found(values, limit: float, budget_s: float, each_s: float, runs: int) -> float:
    rules = rules_for(budget_s, each_s)
    return share_regressed(values, limit, rules, each_s, runs, random.Random(0))


def stored_share(mine: Rows, same: Rows, budget_s: float, each_s: float, runs: int) -> float:
    """Against three drawn sessions of eight stored replicates of the unchanged engine."""
    rng, found = random.Random(0), 0
    now = [log_ratio(r, "candidate", "reference") for r in mine]
    then = [log_ratio(r, "candidate", "reference") for r in same]
    for _ in range(runs):
        anchor = anchor_of([rng.choices(then, k=8) for _ in range(3)])
        found += played(now, anchor, rules_for(budget_s, each_s), each_s, rng)
    return found / runs


def played(values, anchor: Anchor, rules: Rules, each_s: float, rng: random.Random) -> bool:
    from enginegate.baselines.calibration import play

    return play(values, LIMIT, rules, each_s, rng, anchor) is Verdict.REGRESSED


# --- placement


def bias(rows: Rows, naive: Rows) -> None:
    """Mean log ratio of identical engines, and what one instantiation is worth."""
    print("cell       instantiations  bias                     naive: bias, of one instantiation")
    quiet = [row for row in rows if row["condition"] == "quiet"]
    for variant, batch in sorted({(row["variant"], row["batch"]) for row in quiet}):
        mine = values_of(quiet, variant, batch)
        other = values_of(naive, variant, batch)
        error = 1.96 * statistics.stdev(mine) / math.sqrt(len(mine))
        mean = statistics.fmean(mine)
        worst = max(map(abs, other))
        print(
            f"{variant} b{batch:<3} {len(mine):15}  {mean:+.2%} ± {error:.2%}"
            f"   {statistics.fmean(other):+.2%} over {len(other)}, spread "
            f"{statistics.stdev(other):.2%}, worst {worst:.1%}"
        )


def values_of(rows: Rows, variant: str, batch: int) -> list[float]:
    return [r["value"] for r in rows if r["variant"] == variant and r["batch"] == batch]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("table", choices=["alarms", "power", "bias"])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--runs", type=int, default=300)
    given = parser.parse_args()
    machine = this_machine()
    print(f"{time.strftime('%Y-%m-%d')}, {machine.cpu}, {machine.cores} cores")
    rows = [load(path) for path in given.files]
    if given.table == "bias":
        bias(*rows)
    elif given.table == "power":
        power(rows[0], given.runs, *rows[1:])
    else:
        alarms(*rows, given.runs)


if __name__ == "__main__":
    main()
