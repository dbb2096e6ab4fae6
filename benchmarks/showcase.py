"""The example of the documentation: a real run with a ship, a hold and a block in it.

    python benchmarks/showcase.py [--into docs/examples]

A project with MiniLM and a second model of its shape in git: a refresh at one commit, then a commit
that makes the second model do more (real work: matrix multiplications that change no embedding),
judged as a pull request's job does it, MiniLM served too. Writes the page, the JSON report and the
comment, and prints the terminal. For a quiet machine.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from trials import Bench, add_work
from user_project import IGNORED, commit, git, heading, run

TABLES = """[tool.enginegate]
model = ["minilm", "support"]
[tool.enginegate.models.support]
onnx = "support.onnx"
tokenizer = "tokenizer.json"
seq_len = 32
"""
ASKED = ("--precision=fp32,fp16,int8", "--gate-batches=1,8", "--gate-roofline")
LOAD = (
    "--gate-serve=triton",
    "--gate-concurrency=1,2,4,8,16",
    "--gate-preferred-batch-sizes=8",
    "--gate-max-queue-delay-us=40000",
)
ONLY = ("-k", "not serving or (minilm and (fp32 or int8))")
MORE = 17  # multiplications: about a fifth of its time


def main() -> None:
    """Make the project, judge its last commit, write what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--into", type=Path, default=Path("docs/examples"))
    into = parser.parse_args().into.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "project")
        folder.mkdir()
        bench = Bench(folder / "cache")
        shutil.copy(bench.model.tokenizer, folder / "tokenizer.json")
        (folder / "pyproject.toml").write_text(TABLES)
        (folder / ".gitignore").write_text(IGNORED + "report.*\n")
        git(folder, "init", "--quiet")
        add_work(bench.model.onnx, folder / "support.onnx", 0)
        commit(folder)
        print(heading("the example of the documentation"))
        print(run(folder, *ASKED, "--gate-refresh-baselines").output)
        commit(folder)
        add_work(bench.model.onnx, folder / "support.onnx", MORE)
        commit(folder)
        written = ("--gate-report-html=report.html", "--gate-report-markdown=report.md")
        print(run(folder, *ASKED, *LOAD, *written, *ONLY).output)
        for made, kept in {"html": "report", "json": "report", "md": "comment"}.items():
            shutil.copy(folder / f"report.{made}", into / f"{kept}.{made}")


if __name__ == "__main__":
    main()
