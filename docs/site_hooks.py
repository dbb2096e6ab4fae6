"""mkdocs: files beside docs/ that its pages link to become part of the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
BESIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
RESULTS = "benchmarks/results"


def on_files(files: Files, config: Any) -> Files:
    """Add them under the paths that they have in the repository."""
    results = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / RESULTS).iterdir())
    for name in (*BESIDE, *results):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Their links, from where they lie on the site."""
    if page.file.src_uri in BESIDE:
        return re.sub(r"\]\(docs/", "](", markdown)
    whole_folder = markdown.replace(f"(../{RESULTS})", f"(../{RESULTS}/variance.txt)")
    return re.sub(r"\]\(\.\./", "](", whole_folder)
