"""CUDA by pycuda, never by its `autoinit`: one context, shared with TensorRT."""

import contextlib
from collections.abc import Iterator

import pycuda.driver as cuda

from enginegate.errors import EngineError
from enginegate.machine import first_gpu


@contextlib.contextmanager
def open_device() -> Iterator[None]:
    """Retain the primary context of CUDA's device 0, which TensorRT uses too; current meanwhile.

    Raises EngineError for every CUDA error that occurs inside.
    """
    first_gpu()
    try:
        with _primary_context():
            yield
    except cuda.Error as error:
        raise EngineError(f"CUDA: {error}") from error


@contextlib.contextmanager
def _primary_context() -> Iterator[None]:
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    try:
        yield
    finally:
        context.detach()  # releases it, and makes the one before it current again
