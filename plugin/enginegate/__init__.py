"""Decide, by evidence, whether a compiled embedding engine may ship.

Same embeddings, not slower, carries the load: the answer of one pytest run.
"""
