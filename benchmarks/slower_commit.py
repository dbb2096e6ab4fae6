"""A commit that makes the model slower, and whether the gate says so.

    python benchmarks/slower_commit.py [--runs 20] [--more 9] [--limit 0.05] [--batches 1,8]
        [--precisions fp32] [--elsewhere] > results/slower-commit.txt

MiniLM in a project of its own: a refresh at one commit, then a commit whose model multiplies its
last hidden state so many times more (real work: 3, 5, 9 and 17 multiplications are about 3, 5, 10
and 20 % at fp32), judged in fresh processes beside the baseline's engine. With --elsewhere the
baseline is of another machine: its folder is renamed, its figures are doubled, and the cache is
empty, so the engine is built again from its commit. A row per kind of engine and batch size: the
verdicts, and the seconds that a run took for each of its variants.
"""

import argparse
import collections
import shutil
import statistics
import tempfile
from pathlib import Path

from user_project import baseline, commit, edit_variants, heading, make, run, write_model


def move_elsewhere(folder: Path) -> None:
    """Make the baseline one of another machine."""

    def doubled(variant: dict) -> None:
        for sessions in variant["cells"].values():
            for session in sessions:
                session["p50_s"] *= 2
                session["ratios"] = {m: [2 * r for r in v] for m, v in session["ratios"].items()}

    edit_variants(folder, doubled)
    place = baseline(folder).parent
    place.rename(place.with_name("another-machine"))
    shutil.rmtree(folder / "cache")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--more", type=int, default=9)
    parser.add_argument("--limit", type=float, default=0.05)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--precisions", default="fp32")
    parser.add_argument("--elsewhere", action="store_true")
    given = parser.parse_args()
    asked = (f"--precision={given.precisions}", f"--gate-batches={given.batches}")
    limit = f"--gate-max-slowdown={given.limit}"
    where = "another machine's baseline" if given.elsewhere else "this machine's baseline"
    print(heading(f"{given.more} multiplications more, limit {given.limit:.0%}, {where}"))
    with tempfile.TemporaryDirectory() as name:
        folder = make(Path(name) / "project")
        run(folder, *asked, "--gate-refresh-baselines")
        commit(folder)
        if given.elsewhere:
            move_elsewhere(folder)
        write_model(folder, given.more)
        commit(folder)
        found = [run(folder, *asked, limit) for _ in range(given.runs)]
    cells = collections.defaultdict(collections.Counter)
    for one in found:
        for result in one.results:
            for speed in result["speeds"]:
                key = f"{result['variant']['precision']} batch {speed['batch']}"
                cells[key][speed["judgement"]["verdict"]] += 1
    for key, counted in sorted(cells.items()):
        print(f"{key}: {', '.join(f'{n} {verdict}' for verdict, n in counted.most_common())}")
    each_s = [one.elapsed_s / max(1, len(one.results)) for one in found]
    print(f"a variant: median {statistics.median(each_s):.1f} s, most {max(each_s):.1f} s")
    print(f"beside: {found[-1].results[0]['context']['against'] or 'the stored ratios'}")


if __name__ == "__main__":
    main()
