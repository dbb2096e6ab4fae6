"""Contracts of import-linter that it does not bring itself."""

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output


class FacesContract(Contract):
    """A module of another package is imported from that package's face, its `__init__`."""

    type_name = "faces"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Look at every import of the graph."""
        broken = [
            f"{importer} imports {imported}, not {face}"
            for importer in sorted(graph.modules)
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if (face := _passed_face(importer, imported))
        ]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each import that passes a face."""
        for line in check.metadata["broken"]:
            output.print_error(line)


def _passed_face(importer: str, imported: str) -> str:
    """The face that an import passes by; empty if it passes none."""
    ours, theirs = importer.split("."), imported.split(".")
    inside = len(theirs) > 2 and ours[0] == theirs[0]
    return "" if not inside or ours[:2] == theirs[:2] else ".".join(theirs[:2])
