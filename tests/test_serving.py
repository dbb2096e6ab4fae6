"""Does it carry the load?"""

from enginegate.fixtures import MeasureLoad
from enginegate.gate import Gate


def test_served_embeddings(served: Gate) -> None:
    """A server gives the engine's own embeddings, and they are close to the reference's."""
    served.check_embeddings()


def test_carries_the_load(served: Gate, measure_load: MeasureLoad) -> None:
    """No cliff, no smaller capacity and no slower level than the baseline's."""
    served.check_load(measure_load())
