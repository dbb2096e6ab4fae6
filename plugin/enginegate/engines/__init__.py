"""Engines: built, loaded, proven."""

from enginegate.engines.api import (
    ACCELERATORS,
    EMBEDDED_AT_ONCE,
    ONNX_FILE,
    PLAN_FILE,
    PLANS,
    PROFILES,
    Backend,
    BuildHints,
    Embeddings,
    Engine,
    Executed,
    Keeping,
    Keeps,
    Profiles,
    check_shape,
    embed_all,
)
from enginegate.engines.build import (
    Built,
    build_engine,
    choose_best,
    execution_flags,
    keeping_of,
    kept_notes,
)
from enginegate.engines.doctor import HEADER, advice, findings
from enginegate.engines.measure import GpuTimes, call_s, gpu_times, median_call_s
from enginegate.engines.profile import Kernel, Profile
from enginegate.engines.ranges import OutOfRange, Ranges, find_ranges
from enginegate.engines.reference import open_reference, run_reference
from enginegate.engines.registry import (
    Registration,
    TritonModel,
    check_installed,
    check_runnable,
    get_backend,
    offered,
    register,
    registration,
    resolve,
    runtime_packages,
)
from enginegate.engines.saved import SAVING, check_beside, engines_of, save_engine, saved_engine

__all__ = [
    "ACCELERATORS", "EMBEDDED_AT_ONCE", "HEADER", "ONNX_FILE", "PLANS", "PLAN_FILE", "PROFILES",
    "SAVING", "Backend", "BuildHints", "Built", "Embeddings", "Engine", "Executed", "GpuTimes",
    "Keeping", "Keeps", "Kernel", "OutOfRange", "Profile", "Profiles", "Ranges", "Registration",
    "TritonModel", "advice", "build_engine", "call_s", "check_beside", "check_installed",
    "check_runnable", "check_shape", "choose_best", "embed_all", "engines_of",
    "execution_flags", "find_ranges", "findings", "get_backend", "gpu_times", "keeping_of",
    "kept_notes", "median_call_s", "offered", "open_reference", "register", "registration",
    "resolve", "run_reference", "runtime_packages", "save_engine", "saved_engine",
]  # fmt: skip
