"""A fake cuda.bindings.driver: calls of 12.9 and 13.5, a tuple with the result code first."""

import ctypes
import enum
import functools

import fake_device
import numpy as np
from fake_device import STATE, CudaError, Misuse

_NON_BLOCKING = 1


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_UNKNOWN = 999


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


def _answers(call):
    """The result after its code, as the real one: never an exception."""

    @functools.wraps(call)
    def called(*arguments):
        try:
            found = call(*arguments)
        except CudaError as error:
            STATE.said = str(error).partition(" failed: ")[2].encode()
            return (CUresult.CUDA_ERROR_UNKNOWN, *[None] * _GIVES.get(call.__name__, 0))
        given = found if isinstance(found, tuple) else () if found is None else (found,)
        return (CUresult.CUDA_SUCCESS, *given)

    return called


_GIVES = {"cuStreamCreate": 1, "cuEventCreate": 1, "cuMemAlloc": 1, "cuMemHostAlloc": 1}
_GIVES |= {"cuStreamEndCapture": 1, "cuGraphInstantiate": 1, "cuEventElapsedTime": 1}


def cuGetErrorString(error):  # noqa: N802
    return CUresult.CUDA_SUCCESS, STATE.said


@_answers
def cuInit(Flags):  # noqa: N802, N803
    STATE.log.append("init")


@_answers
def cuDeviceGet(ordinal):  # noqa: N802
    if "init" not in STATE.log:
        raise CudaError("cuDeviceGet failed: initialization error")
    return ordinal


@_answers
def cuDevicePrimaryCtxRetain(dev):  # noqa: N802
    fake_device.retain()
    return "primary"


@_answers
def cuDevicePrimaryCtxRelease(dev):  # noqa: N802
    fake_device.release()


@_answers
def cuCtxPushCurrent(ctx):  # noqa: N802
    STATE.contexts.append(ctx)


@_answers
def cuCtxPopCurrent():  # noqa: N802
    return STATE.contexts.pop()


@_answers
def cuStreamCreate(Flags):  # noqa: N802, N803
    fake_device.need_context("cuStreamCreate")
    if Flags != _NON_BLOCKING:
        raise Misuse("a stream that waits for the default one, which others use")
    return fake_device.make_stream()


@_answers
def cuStreamSynchronize(hStream):  # noqa: N802, N803
    fake_device.synchronize(hStream)


@_answers
def cuStreamDestroy(hStream):  # noqa: N802, N803
    fake_device.close("stream", hStream)


@_answers
def cuEventCreate(Flags):  # noqa: N802, N803
    fake_device.need_context("cuEventCreate")
    return fake_device.make_event()


@_answers
def cuEventRecord(hEvent, hStream):  # noqa: N802, N803
    STATE.events[hEvent].record(hStream)


@_answers
def cuEventElapsedTime(hStart, hEnd):  # noqa: N802, N803
    start_s, end_s = STATE.events[hStart].time_s, STATE.events[hEnd].time_s
    if start_s is None or end_s is None:
        raise CudaError("cuEventElapsedTime failed: device not ready")
    return 1000 * (end_s - start_s)


@_answers
def cuEventDestroy(hEvent):  # noqa: N802, N803
    fake_device.close("event", hEvent)


@_answers
def cuMemAlloc(bytesize):  # noqa: N802
    return fake_device.allocate(bytesize)


@_answers
def cuMemFree(dptr):  # noqa: N802
    fake_device.free(dptr)


@_answers
def cuMemGetInfo():  # noqa: N802
    used = sum(memory.size for memory in STATE.memory.values())
    return (80 << 30) - used, 80 << 30


@_answers
def cuMemHostAlloc(bytesize, Flags):  # noqa: N802, N803
    fake_device.need_context("cuMemHostAlloc")
    array = fake_device.pin(np.empty(bytesize, np.uint8))
    STATE.host[array.ctypes.data] = array
    return array.ctypes.data


@_answers
def cuMemFreeHost(p):  # noqa: N802
    fake_device.need_context("cuMemFreeHost")
    fake_device.need_health("cuMemFreeHost")
    if any(STATE.streams.values()):
        raise Misuse("host memory freed while a stream uses it")
    if STATE.host.pop(p, None) is None:
        raise Misuse("host memory freed twice")
    STATE.closed.append("host memory")


def _host(address, size):
    """The page-locked bytes at an address, of which any part may be copied."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


@_answers
def cuMemcpyHtoDAsync(dstDevice, srcHost, ByteCount, hStream):  # noqa: N802, N803
    fake_device.copy_in(dstDevice, _host(srcHost, ByteCount), hStream)


@_answers
def cuMemcpyDtoHAsync(dstHost, srcDevice, ByteCount, hStream):  # noqa: N802, N803
    fake_device.copy_out(_host(dstHost, ByteCount), srcDevice, hStream)


@_answers
def cuStreamBeginCapture(hStream, mode):  # noqa: N802, N803
    fake_device.begin_capture(hStream)


@_answers
def cuStreamEndCapture(hStream):  # noqa: N802, N803
    return fake_device.end_capture(hStream)


@_answers
def cuGraphInstantiate(hGraph, flags):  # noqa: N802, N803
    return fake_device.instantiate(hGraph)


@_answers
def cuGraphLaunch(hGraphExec, hStream):  # noqa: N802, N803
    fake_device.need_context("cuGraphLaunch")
    STATE.log.append("graph launched")
    for work in STATE.graphs[hGraphExec]:
        fake_device.enqueue(hStream, work)


@_answers
def cuGraphExecDestroy(hGraphExec):  # noqa: N802, N803
    fake_device.close("graph", hGraphExec)


@_answers
def cuGraphDestroy(hGraph):  # noqa: N802, N803
    fake_device.close("graph", hGraph)
