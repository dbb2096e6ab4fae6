"""Same embeddings?"""

from enginegate.gates import Gate


def test_same_embeddings(gate: Gate) -> None:
    """The engine's embeddings of real texts stay within the limits around the reference's."""
    gate.check_embeddings()
