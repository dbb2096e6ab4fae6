"""Serving on a real Triton: its environment, the repository, the server, and what a client asks."""
