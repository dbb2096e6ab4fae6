"""Is it the model?"""

from enginegate.gate import ModelGate


def test_reference_is_the_model(model_gate: ModelGate) -> None:
    """The reference gives the embeddings that the model's own authors compute."""
    model_gate.check_reference()
