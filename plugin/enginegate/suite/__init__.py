"""A ready suite: `pytest --pyargs enginegate.suite --precision fp16`."""
