"""Faults planted in a project, and what the run says of each.

    python benchmarks/mutants.py silent        ways to lose a check without anybody noticing
    python benchmarks/mutants.py baselines     baseline files damaged, fought over, or half written

Runs those of the plugin's own tests that plant them, and prints what became of each.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

TESTS = Path(__file__).parents[1] / "tests" / "selftest"
PLANTED = {
    "silent": [str(TESTS / "test_silent_green.py")],
    "baselines": [
        str(TESTS / "test_two_at_once.py"),
        str(TESTS / "test_bad_input.py"),
        "-k",
        "refresh or waits or corrupt_baseline",
    ],
}


def main(what: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", *PLANTED[what], "-q", f"--junitxml={report}"]
        status = subprocess.run(command, check=False, capture_output=True).returncode
        cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - our own file
    print(f"{time.strftime('%Y-%m-%d')}: {len(cases)} planted")
    for case in cases:
        caught = not (list(case.iter("failure")) or list(case.iter("error")))
        name = case.get("name", "").removeprefix("test_").replace("_", " ")
        print(f"{'as it should be' if caught else 'MISSED':16} {name}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
