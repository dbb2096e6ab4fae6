"""Ways to lose a check without anybody noticing, each planted in a project: what the run says.

    python benchmarks/mutants.py

Runs tests/selftest/test_silent_green.py, which asserts that each is reported and fails under
--require-baseline, and prints what became of each.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

TESTS = Path(__file__).parents[1] / "tests" / "selftest" / "test_silent_green.py"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", str(TESTS), "-q", f"--junitxml={report}"]
        status = subprocess.run(command, check=False, capture_output=True).returncode
        cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - our own file
    print(f"{time.strftime('%Y-%m-%d')}: {len(cases)} planted")
    for case in cases:
        caught = not (list(case.iter("failure")) or list(case.iter("error")))
        name = case.get("name", "").removeprefix("test_").replace("_", " ")
        print(f"{'as it should be' if caught else 'MISSED':16} {name}")
    return status


if __name__ == "__main__":
    sys.exit(main())
