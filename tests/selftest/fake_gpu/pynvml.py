"""A fake nvidia-ml-py on the fake device: names and arguments of its pynvml module."""

from fake_device import STATE

NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0


class NVMLError(Exception):
    pass


def nvmlInit():  # noqa: N802
    if "nvml" in STATE.fails:
        raise NVMLError("Driver Not Loaded")


def nvmlDeviceGetHandleByPciBusId(pciBusId):  # noqa: N802, N803
    if pciBusId != STATE.pci:
        raise NVMLError("Not Found")
    return "handle"


def nvmlDeviceGetClockInfo(handle, type):  # noqa: A002, N802
    return {NVML_CLOCK_SM: STATE.sm_mhz, NVML_CLOCK_MEM: 2619}[type]


def nvmlDeviceGetMaxClockInfo(handle, type):  # noqa: A002, N802
    return 1980


def nvmlDeviceGetCurrentClocksEventReasons(handle):  # noqa: N802
    return STATE.throttling


def nvmlDeviceGetTemperature(handle, sensor):  # noqa: N802
    return 61


def nvmlDeviceGetPowerUsage(handle):  # noqa: N802
    return 312_500


def nvmlDeviceGetEnforcedPowerLimit(handle):  # noqa: N802
    return STATE.power_limit_mw
