"""A fake pycuda.driver: names, arguments and errors of pycuda 2026.1."""

import fake_device
import numpy as np
from fake_device import STATE, Misuse

_NON_BLOCKING = 1


class Error(Exception):
    """Base of pycuda's errors."""


class LogicError(Error):
    pass


def _answering(call, *arguments):
    """What a call gives, its error as one of pycuda's."""
    try:
        return call(*arguments)
    except fake_device.CudaError as error:
        raise LogicError(str(error)) from error


def init(flags=0):
    if STATE.cuda_init:
        raise LogicError("cuInit failed: no CUDA-capable device is detected")
    STATE.log.append("init")


class Context:
    """The primary context, retained. Steps of both stacks are those of pycuda's `cuda.hpp`."""

    def __init__(self):
        fake_device.retain()
        self._boot, self._valid = STATE.boot, True

    def push(self):
        if STATE.pycuda_contexts:
            STATE.contexts.pop()
        STATE.contexts.append("primary")
        STATE.pycuda_contexts.append(self)

    def detach(self):
        """Release it. The driver keeps it on its stack, where it is put if it was not on top."""
        if not self._valid:
            raise LogicError("context::detach failed: invalid device context")
        active = _current() is self
        if not active:
            STATE.contexts.append("primary")
        fake_device.release()
        self._valid = False
        if active and _current():
            STATE.contexts.append("primary")

    def __del__(self):
        if self._valid and self._boot == STATE.boot:
            fake_device.release()

    @staticmethod
    def pop():
        if not STATE.pycuda_contexts:
            raise LogicError("context::pop failed: cannot pop non-current context")
        STATE.contexts.pop()
        STATE.pycuda_contexts.pop()
        if _current():
            STATE.contexts.append("primary")

    @staticmethod
    def synchronize():
        for handle in STATE.streams:
            fake_device.synchronize(handle)


def _current():
    """The latest valid context; those that were detached are forgotten on the way."""
    while STATE.pycuda_contexts and not STATE.pycuda_contexts[-1]._valid:
        STATE.pycuda_contexts.pop()
    return STATE.pycuda_contexts[-1] if STATE.pycuda_contexts else None


class Device:
    def __init__(self, number):
        if "init" not in STATE.log:
            raise LogicError("cuDeviceGet failed: initialization error")

    def name(self):
        return STATE.gpu

    def retain_primary_context(self):
        return Context()

    def make_context(self, flags=0):
        raise Misuse("a context of its own is not the one that TensorRT uses")

    @staticmethod
    def count():
        return STATE.gpus


class DeviceAllocation:
    def __init__(self, size):
        self._address = fake_device.allocate(size)

    def __int__(self):
        return self._address

    def __index__(self):
        return self._address

    def free(self):
        _answering(fake_device.free, self._address)


def mem_alloc(bytes):  # noqa: A002
    return DeviceAllocation(bytes)


def mem_get_info():
    used = sum(memory.size for memory in STATE.memory.values())
    return (80 << 30) - used, 80 << 30


class Stream:
    def __init__(self, flags=0):
        fake_device.need_context("cuStreamCreate")
        if flags != _NON_BLOCKING:
            raise Misuse("a stream that waits for the default one, which others use")
        self.handle = fake_device.make_stream()

    def synchronize(self):
        _answering(fake_device.synchronize, self.handle)


class Event:
    def __init__(self, flags=0):
        fake_device.need_context("cuEventCreate")
        self._moment = fake_device.Moment()

    def record(self, stream=None):
        self._moment.record(stream.handle)
        return self

    def time_till(self, end):
        start_s, end_s = self._moment.time_s, end._moment.time_s
        if start_s is None or end_s is None:
            raise LogicError("cuEventElapsedTime failed: device not ready")
        return 1000 * (end_s - start_s)


def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
    return fake_device.pin(np.empty(shape, dtype, order))


def memcpy_htod_async(dest, src, stream=None):
    fake_device.copy_in(int(dest), src, stream.handle)


def memcpy_dtoh_async(dest, src, stream=None):
    fake_device.copy_out(dest, int(src), stream.handle)
