"""As fast as it was?"""

from enginegate.fixtures import Measure
from enginegate.gate import Gate


def test_not_slower(gate: Gate, measure: Measure, batch_size: int) -> None:
    """The engine's time beside the reference's has not grown since the baseline."""
    gate.check_speed(measure(batch_size))
