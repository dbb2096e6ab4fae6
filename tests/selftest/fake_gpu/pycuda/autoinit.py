"""Importing the real one makes a context of its own, which TensorRT then does not share."""

from fake_device import Misuse

raise Misuse("pycuda.autoinit imported: retain the primary context instead")
