"""Same embeddings?"""

from enginegate.gate import Gate


def test_same_embeddings(gate: Gate) -> None:
    """The engine's embeddings of real texts stay within the limits around the reference's."""
    gate.check_embeddings()


def test_independent_of_the_batch(gate: Gate) -> None:
    """An embedding does not change with batch-mates, position, batch size or padding."""
    gate.check_invariance()
