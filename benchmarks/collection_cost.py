"""What the plugin adds to `pytest --collect-only` in a project that merely has it installed.

Runs pytest with and without the plugin in turn, in fresh processes, and prints the difference and
the ratio of the medians: python benchmarks/collection_cost.py [runs]
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WITHOUT = ["-p", "no:enginegate.plugin"]


def main(runs: int) -> None:
    """Print the medians of both arms, their difference and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_it.py").write_text("def test_it(): pass\n")
        timings = [(_collect(folder, WITHOUT), _collect(folder, [])) for _ in range(runs + 1)]
    without_s, with_s = (statistics.median(arm) for arm in zip(*timings[1:], strict=True))
    added_s = statistics.median(b - a for a, b in timings[1:])
    print(f"{runs} pairs: without {1000 * without_s:.0f} ms, with {1000 * with_s:.0f} ms")
    print(f"added: {1000 * added_s:.1f} ms (median of the pairs), ratio {with_s / without_s:.3f}")


def _collect(folder: str, arguments: list[str]) -> float:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
