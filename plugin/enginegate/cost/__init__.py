"""What the work of a model costs, and what the hardware allows."""
