"""CUDA by pycuda, never by its `autoinit`: one context, shared with TensorRT.

The primary context is retained once in a process. pycuda's `detach` of it releases without taking
it from the driver's stack, where it would stay current although it is gone; and each new one would
be made from nothing. So it is pushed and popped, and released when the process ends.
"""

import atexit
import contextlib
import functools
from collections.abc import Iterator

import pycuda.driver as cuda

from enginegate.errors import EngineError
from enginegate.machine import first_gpu


@contextlib.contextmanager
def open_device() -> Iterator[None]:
    """Make the primary context of CUDA's device 0 current, which TensorRT uses too.

    Raises EngineError for every CUDA error that occurs inside.
    """
    first_gpu()
    try:
        primary_context().push()
        try:
            yield
        finally:
            cuda.Context.pop()
    except cuda.Error as error:
        raise EngineError(f"CUDA: {error}") from error


@functools.cache
def primary_context() -> cuda.Context:
    """The primary context of CUDA's device 0, retained until the process ends."""
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    atexit.register(primary_context.cache_clear)  # nothing on a stack: pycuda may release it
    return context
