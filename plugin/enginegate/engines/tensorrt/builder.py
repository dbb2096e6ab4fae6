"""ONNX to a serialised TensorRT plan: one strongly typed network for TensorRT 10.12 and 11.

Types are those of the ONNX file; no builder flag changes them, except that TF32 is cleared unless
it is allowed. Both majors take the same calls.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import tensorrt as trt

from enginegate.engines.tensorrt.log import Log, the_log
from enginegate.engines.tensorrt.timing_cache import TimingCacheFile
from enginegate.errors import EngineError

_STRONGLY_TYPED = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
_REFUSED = -1
_ADVICE = {
    "UNSUPPORTED_NODE": "use another opset or export without this operator, see docs/gpu.md",
    "UNSUPPORTED_GRAPH": "export with fixed control flow, see docs/gpu.md",
    "INVALID_NODE": "check the file with onnx.checker; a conversion may have broken it",
}
_NO_ADVICE = "export the model again, or report it with the ONNX file's opset"

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]  # of an input: smallest, usual, largest


def build_plan(
    onnx: Path, profiles: Sequence[Profile], cache: TimingCacheFile, *, tf32: bool
) -> tuple[bytes, list[str]]:
    """The plan of an ONNX file for this GPU, and TensorRT's warnings; its CUDA context is current.

    `profiles` are in order of their batch sizes. Raises EngineError with what the parser or the
    builder said.
    """
    log = the_log()
    log.warnings()  # of what was before
    builder = trt.Builder(log)
    network = builder.create_network(_STRONGLY_TYPED)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        raise log.error(f"TensorRT cannot parse {onnx.name}: {'; '.join(_parser_errors(parser))}")
    config = builder.create_builder_config()
    _configure(config, tf32=tf32)
    for profile in profiles:
        _add_profile(builder, config, profile, log)
    kept = _attach_cache(config, cache, log)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise log.error(f"TensorRT cannot build {onnx.name}")
    cache.write(bytes(kept.serialize()))
    return bytes(plan), log.warnings()


def _parser_errors(parser: trt.OnnxParser) -> Iterator[str]:
    """Every error of the parser: node, operator, what is wrong, what to do."""
    for index in range(parser.num_errors):
        error: trt.ParserError = parser.get_error(index)
        advice = _ADVICE.get(error.code().name, _NO_ADVICE)
        yield (
            f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): "
            f"{error.desc()}; {advice}"
        )


def _configure(config: trt.IBuilderConfig, *, tf32: bool) -> None:
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # set by default
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else nothing can be proven


def _add_profile(
    builder: trt.Builder, config: trt.IBuilderConfig, wanted: Profile, log: Log
) -> None:
    profile = builder.create_optimization_profile()
    for name, shapes in wanted.items():
        profile.set_shape(name, *map(trt.Dims, shapes))
    if config.add_optimization_profile(profile) == _REFUSED:
        raise log.error(f"TensorRT refuses the shapes {dict(wanted)}")


def _attach_cache(config: trt.IBuilderConfig, cache: TimingCacheFile, log: Log) -> trt.ITimingCache:
    """Timings of earlier builds on this machine, or an empty cache where they are of another."""
    for content in (cache.read(), b""):
        kept = config.create_timing_cache(content)
        if kept is not None and config.set_timing_cache(kept, ignore_mismatch=False):
            return kept
    raise log.error("TensorRT takes no timing cache, not even an empty one")


def runtime_version() -> str:
    """Version of TensorRT. Raises EngineError for one that this plugin cannot use."""
    major, minor = (int(part) for part in trt.__version__.split(".")[:2])
    if (major, minor) < (10, 12):
        raise EngineError(
            f"TensorRT {trt.__version__} is too old: 10.12 or newer is needed, which has int64 "
            "inputs and strongly typed networks; pip install --upgrade tensorrt"
        )
    return str(trt.__version__)
