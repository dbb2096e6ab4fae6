"""The house in figures: cycles between rooms, the session's size, lengths of functions, lines.

python benchmarks/house.py [REVISION]     also those of a git revision, to compare
"""

import ast
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path("plugin", "enginegate")


def modules(root: Path) -> dict[str, ast.Module]:
    """Every module of the package by its path inside it."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    return {str(f.relative_to(root / PACKAGE)): ast.parse(f.read_text("utf-8")) for f in files}


def room(path: str) -> str:
    """The room of a module: what lies directly in the package."""
    return Path(path).parts[0].removesuffix(".py")


def imported(tree: ast.Module) -> Iterator[str]:
    """Rooms that a module imports, wherever in it and for whatever."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "enginegate":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("enginegate."):
            yield str(node.module).split(".")[1]


def cycle(found: dict[str, ast.Module]) -> list[str]:
    """A cycle of imports between rooms; empty if there is none."""
    graph: dict[str, set[str]] = {}
    for path, tree in found.items():
        needs = graph.setdefault(room(path), set())
        needs.update(name for name in imported(tree) if name != room(path))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def lengths(found: dict[str, ast.Module]) -> list[int]:
    """Lines of every function and method, from `def` to its end."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for tree in found.values() for node in ast.walk(tree))
    return sorted((n.end_lineno or 0) - n.lineno + 1 for n in nodes if isinstance(n, kinds))


def session(found: dict[str, ast.Module]) -> str:
    """Lines of the class Session, and if it is frozen."""
    for tree in found.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == "Session":
                frozen = any("frozen=True" in ast.unparse(d) for d in node.decorator_list)
                size = (node.end_lineno or 0) - node.lineno + 1
                return f"{size} lines, {'frozen' if frozen else 'not frozen'}"
    return "none"


def figures(root: Path) -> list[tuple[str, str]]:
    """Name and value of each figure."""
    found = modules(root)
    sizes = lengths(found)
    files = (root / PACKAGE).rglob("*.py")
    lines = sum(len(f.read_text("utf-8").splitlines()) for f in files)
    names = sorted({room(path) for path in found} - {"__init__"})
    return [
        ("names at the root", str(len(names))),
        ("import cycle between rooms", " -> ".join(cycle(found)) or "none"),
        ("Session", session(found)),
        ("functions", str(len(sizes))),
        ("their median length", f"{statistics.median(sizes):g} lines"),
        ("their 90th percentile", f"{sizes[int(0.9 * len(sizes))]} lines"),
        ("lines of plugin/", str(lines)),
        ("modules", str(len(found))),
    ]


def checked_out(revision: str, folder: str) -> Path:
    """The files of a git revision."""
    files = subprocess.run(["git", "archive", revision, "plugin"], check=True, capture_output=True)
    subprocess.run(["tar", "x", "-C", folder], input=files.stdout, check=True)
    return Path(folder)


def main(revisions: list[str]) -> None:
    """Print the figures of the working tree, and of revisions beside them."""
    columns = [("now", figures(Path.cwd()))]
    for revision in revisions:
        with tempfile.TemporaryDirectory() as folder:
            columns.append((revision, figures(checked_out(revision, folder))))
    print(f"{'':28}" + "".join(f"{name[:24]:26}" for name, _ in columns))
    for row in zip(*(found for _, found in columns), strict=True):
        print(f"{row[0][0]:28}" + "".join(f"{value[:24]:26}" for _, value in row))


if __name__ == "__main__":
    main(sys.argv[1:])
