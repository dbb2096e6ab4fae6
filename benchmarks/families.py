"""The model families that are deployed today, tiny, with seeded weights: from folder to verdict.

    python benchmarks/families.py [--precision fp32,fp16,int8] [NAME ...] > results/families.txt

Each family is a folder as its authors would publish one: architecture, pooling, prompts, padding
side, projections. The ready suite judges it in a fresh process, without timing. A row says how near
the reference is to the truth, and of each precision what ran and the smallest cosine of a text; or
in one sentence what was refused. Ends with status 1 if an fp32 engine is not its model's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "selftest" / "cases"))
import families
from user_project import heading

SUITE = ("--pyargs", "enginegate.suite", "-q", "-k", "reference or embeddings or batch")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", default="fp32,fp16,int8")
    parser.add_argument("names", nargs="*", default=families.FAMILIES)
    given = parser.parse_args()
    start = time.perf_counter()
    print(heading(f"precisions {given.precision}"))
    good = [judged(name, given.precision) for name in given.names]
    took_s = time.perf_counter() - start
    print(f"{sum(good)} of {len(good)} are their models in fp32; {took_s:.0f} s")
    sys.exit(not all(good))


def judged(name: str, precisions: str) -> bool:
    """Make a family's folder, judge it, print its row; tell if its fp32 engine is the model."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        families.make_family(name, folder)
        results, message = run(folder, precisions)
    cells = [cell(result) for result in results] or [message]
    print(f"{name:12} {truth(results)}  " + " | ".join(cells), flush=True)
    return any(r["variant"]["precision"] == "fp32" and is_model(r) for r in results)


def run(folder: Path, precisions: str) -> tuple[list[dict], str]:
    """The results of the suite, and its message where it has none."""
    report = folder / "report.json"
    words = ("--precision", precisions, f"--gate-report-json={report}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *SUITE, *words],
        cwd=folder,
        env={**os.environ, "ENGINEGATE_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    results = json.loads(report.read_text())["results"] if report.exists() else []
    errors = [line for line in done.stdout.splitlines() if line.startswith("E ")]
    return results, " ".join(errors[:1] or done.stdout.splitlines()[-1:])


def truth(results: list[dict]) -> str:
    """How near the reference is to the truth."""
    found = next((result["truth"] for result in results if result["truth"]), None)
    if found is None:
        return "no truth"
    return f"truth {found['max_abs_relative']:.1e}, cosine {found['cosine_worst']:.6f}"


def cell(result: dict) -> str:
    """What became of one precision."""
    accuracy, precision = result["accuracy"], result["variant"]["precision"]
    smallest = f"{min(accuracy['cosines']):.6f}" if accuracy else "-"
    return f"{precision} {result['embedding_verdict']} {smallest} ({result['ran']})"


def is_model(result: dict) -> bool:
    """Tell if an engine gives the model's embeddings, by the truth and its own limits."""
    judged_truth = result["truth"] and result["truth"]["judgement"]["verdict"] == "pass"
    return bool(judged_truth) and result["embedding_verdict"] == "pass"


if __name__ == "__main__":
    main()
