"""A user's first day: a refresh, then unchanged runs, then the same with timing forced.

    python benchmarks/first_day.py [--runs N] > results/first-day.txt

MiniLM with its real weights on OpenVINO, fp32 and int8, batch 1 and 8, the plugin's own suite in
fresh processes. A row per kind of run: its verdicts, and the seconds of the runs as a user waits
for them. All runs use one engine cache, made by the refresh.
"""

import argparse
import collections
import statistics
import tempfile
from pathlib import Path

from user_project import SHIPPED, heading, run

ASKED = ("--precision=fp32,int8", "--gate-batches=1,8")
WAYS = {"unchanged": (), "timed all the same": ("--gate-measure-identical",)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    print(heading(f"{runs} runs each"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pyproject.toml").write_text(SHIPPED)
        refresh = run(folder, *ASKED, "--gate-refresh-baselines")
        print(f"refresh: {refresh.elapsed_s:.0f} s, export and building included")
        for way, arguments in WAYS.items():
            found = [run(folder, *ASKED, *arguments) for _ in range(runs)]
            counted = collections.Counter(verdict for one in found for verdict in one.verdicts)
            said = ", ".join(f"{count} {verdict}" for verdict, count in counted.most_common())
            times_s = [one.elapsed_s for one in found]
            middle_s, most_s = statistics.median(times_s), max(times_s)
            print(f"{way}: {said}; median {middle_s:.1f} s, most {most_s:.1f} s", flush=True)


if __name__ == "__main__":
    main()
