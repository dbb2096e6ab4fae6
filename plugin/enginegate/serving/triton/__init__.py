"""A Triton server: its packages, model repository, processes, and what it says."""
