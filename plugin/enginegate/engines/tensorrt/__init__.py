"""TensorRT plans: built, run, inspected."""
