"""NVIDIA GPUs: what the driver has, memory and streams on one, and what state it is in."""
