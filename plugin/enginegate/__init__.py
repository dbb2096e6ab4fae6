"""Decide, by evidence, whether a compiled embedding engine may ship.

Same embeddings, not slower: the answer of one pytest run.
"""

__version__ = "0.1.0"
