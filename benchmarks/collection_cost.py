"""What the installation adds to `pytest --collect-only` in a project that does not use the plugin.

Runs pytest with and without some plugins in turn, in fresh processes, and prints the medians: for
the plugin itself, and for those that its dependencies bring (pytest-benchmark, and anyio by way of
tokenizers): python benchmarks/collection_cost.py [runs]
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OWN = ("enginegate.plugin",)
BROUGHT = ("benchmark", "anyio")


def main(runs: int) -> None:
    """Print what each adds."""
    print(f"{time.strftime('%Y-%m-%d')}: {runs} pairs each, medians")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_it.py").write_text("def test_it(): pass\n")
        _compare(folder, runs, OWN, BROUGHT)
        for name in BROUGHT:
            _compare(folder, runs, (name,), tuple({*OWN, *BROUGHT} - {name}))


def _compare(folder: str, runs: int, added: tuple[str, ...], out: tuple[str, ...]) -> None:
    """Some plugins beside none of them, the rest of the installation left out."""
    timings = [(_collect(folder, (*out, *added)), _collect(folder, out)) for _ in range(runs + 1)]
    without_s, with_s = (statistics.median(arm) for arm in zip(*timings[1:], strict=True))
    added_s = statistics.median(b - a for a, b in timings[1:])
    print(
        f"{', '.join(added):18} added {1000 * added_s:5.1f} ms: "
        f"without {1000 * without_s:.0f} ms, with {1000 * with_s:.0f} ms"
    )


def _collect(folder: str, left_out: tuple[str, ...]) -> float:
    words = [word for name in left_out for word in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *words]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
