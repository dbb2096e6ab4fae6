"""A fake pycuda.driver: names, arguments and errors of pycuda 2026.1."""

import fake_device
import numpy as np
from fake_device import STATE, Misuse


class Error(Exception):
    """Base of pycuda's errors."""


class LogicError(Error):
    pass


def init(flags=0):
    if STATE.cuda_init:
        raise LogicError("cuInit failed: no CUDA-capable device is detected")
    STATE.log.append("init")


class Context:
    """The primary context, retained."""

    def push(self):
        STATE.contexts.append(self)

    def detach(self):
        if any(STATE.streams.values()):
            raise Misuse("CUDA context released with work on a stream")
        alive = {kind: count for kind, count in STATE.alive.items() if count}
        if alive and len(STATE.contexts) == 1:
            raise Misuse(f"CUDA context released before TensorRT's objects: {alive}")
        STATE.contexts.remove(self)
        STATE.retained -= 1
        STATE.freed.append("context released")

    @staticmethod
    def pop():
        STATE.contexts.pop()

    @staticmethod
    def synchronize():
        for handle in STATE.streams:
            fake_device.synchronize(handle)


class Device:
    def __init__(self, number):
        if "init" not in STATE.log:
            raise LogicError("cuDeviceGet failed: initialization error")

    def name(self):
        return STATE.gpu

    def retain_primary_context(self):
        STATE.retained += 1
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
        fake_device.free(self._address)


def mem_alloc(bytes):  # noqa: A002
    return DeviceAllocation(bytes)


def mem_get_info():
    used = sum(memory.size for memory in STATE.memory.values())
    return (80 << 30) - used, 80 << 30


class Stream:
    def __init__(self, flags=0):
        fake_device.need_context("cuStreamCreate")
        self.handle = len(STATE.streams) + 1
        STATE.streams[self.handle] = []

    def synchronize(self):
        fake_device.synchronize(self.handle)


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
