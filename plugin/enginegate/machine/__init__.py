"""The machine a run is on."""

from enginegate.machine.checkout import Checkout, is_changed, this_checkout
from enginegate.machine.condition import Condition, describe_machine, disturbance
from enginegate.machine.fingerprint import (
    Machine,
    installed_version,
    library_versions,
    this_machine,
)
from enginegate.machine.gpus import Gpu, find_gpus, first_gpu, precisions_here
from enginegate.machine.nvml import GpuState, is_steady, power_limit, read_state, state_as_json
from enginegate.machine.processes import NO_PROGRAM, Child, git

__all__ = [
    "NO_PROGRAM", "Checkout", "Child", "Condition", "Gpu", "GpuState", "Machine",
    "describe_machine", "disturbance", "find_gpus", "first_gpu", "git", "installed_version",
    "is_changed", "is_steady", "library_versions", "power_limit", "precisions_here", "read_state",
    "state_as_json", "this_checkout", "this_machine",
]  # fmt: skip
