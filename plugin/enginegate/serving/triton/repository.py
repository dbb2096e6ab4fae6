"""An ordinary Triton model repository, as a deployment has it: `<name>/config.pbtxt`, `<name>/1`.

Triton's Python backend runs the very engine that the tests run. Where the registration of the
engine's backend says how a backend of Triton's own runs its file, the same configuration names
that instead.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from enginegate.cache import MANIFEST
from enginegate.config import Deployment
from enginegate.engines import ACCELERATORS, PROFILES, Built, TritonModel, get_backend, registration
from enginegate.files import readable_json, write_atomic
from enginegate.models import Batch, Exported, beside
from enginegate.variants import Precision

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

REFERENCE_BACKEND = "onnxruntime"
_MODEL = Path(__file__).with_name("model.py")
_VERSION = "1"


@dataclass(frozen=True)
class Served:
    """A model as clients see it, whatever runs it.

    Attributes:
        name: its name on the server.
        inputs: its inputs, [batch, seq_len] each, with KServe's name of their type.
        output: name of its output, float32 [batch, dim].
        seq_len: tokens per text.
        dim: components of an embedding.
        deployment: how the server runs it.
    """

    name: str
    inputs: Mapping[str, str]
    output: str
    seq_len: int
    dim: int
    deployment: Deployment


def served_as(
    name: str, exported: Exported, evaluation: Batch, dim: int, deployment: Deployment
) -> Served:
    """What an exported model looks like on a server, for texts as long as those of `evaluation`."""
    seq_len = next(iter(evaluation.values())).shape[1]
    inputs = {i: "INT32" if i in exported.int32 else "INT64" for i in exported.inputs}
    return Served(name, inputs, exported.output, seq_len, dim, deployment)


def write_engine(root: Path, served: Served, built: Built, probe: Batch) -> None:
    """Write a built engine as a model of the backend of Triton's own for it, if there is one.

    Else as one of Triton's Python backend; `probe` is run when that loads.
    """
    if model := registration(built.backend).triton:
        _write_file(root, served, built, model)
    else:
        _write_loaded(root, served, built, probe)


def write_reference(root: Path, served: Served, exported: Exported, probe: Batch) -> None:
    """Write the reference, ONNX Runtime in fp32, as a model of Triton's Python backend."""
    version = _write_python(root, served, probe)
    folder = version / "engine"
    folder.mkdir()
    backend = get_backend(REFERENCE_BACKEND)
    properties = backend.build(exported, Precision.FP32, probe, folder)
    _write_what_to_load(version, REFERENCE_BACKEND, properties)


def _write_file(root: Path, served: Served, built: Built, model: TritonModel) -> None:
    config = _config(served, gpu=registration(built.backend).gpu)
    config.platform, config.backend = model.platform, model.backend
    _accelerate(config, model, built)
    if registration(built.backend).gpu:
        _warm_up(config, served)
    engine, version = built.entry.folder / model.file, _write_config(root, config)
    shutil.copy(engine, version / model.name)
    for weights in beside(engine):  # under their own names, which the graph tells
        shutil.copy(weights, version)


def _accelerate(config: "ModelConfig", model: TritonModel, built: Built) -> None:
    """Hand what the engine was built for to what builds it again there; graphs for a plan."""
    named: list[tuple[str, dict[str, str]]] = []
    if model.accelerator:
        named.append((model.accelerator, {}))
    for name, parameters in built.entry.properties.get(ACCELERATORS, named):
        accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
        accelerators.add(name=name, parameters=parameters)
    if model.platform == "tensorrt_plan":
        config.optimization.cuda.graphs = True
        profiles = built.entry.properties.get(PROFILES, 1)
        config.instance_group[0].profile.extend(map(str, range(profiles)))


def _warm_up(config: "ModelConfig", served: Served) -> None:
    """Let the server run the smallest and the largest batch before the first request.

    All zeros: a random number would be no word.
    """
    for size in dict.fromkeys((1, served.deployment.max_batch_size)):
        warm_up = config.model_warmup.add(name=f"batch {size}", batch_size=size)
        for taken in config.input:
            given = warm_up.inputs[taken.name]
            given.data_type, given.zero_data = taken.data_type, True
            given.dims.extend(taken.dims)


def _write_loaded(root: Path, served: Served, built: Built, probe: Batch) -> None:
    version = _write_python(root, served, probe)
    skipped = shutil.ignore_patterns(MANIFEST)
    shutil.copytree(built.entry.folder, version / "engine", ignore=skipped)
    _write_what_to_load(version, built.backend, built.entry.properties)


def _write_python(root: Path, served: Served, probe: Batch) -> Path:
    config = _config(served, gpu=False)
    config.backend = "python"
    config.parameters["threads"].string_value = str(served.deployment.threads)
    version = _write_config(root, config)
    shutil.copy(_MODEL, version / "model.py")
    arrays: dict[str, Any] = dict(probe)
    np.savez(version / "probe.npz", **arrays)
    return version


def _write_what_to_load(version: Path, backend: str, properties: Mapping[str, Any]) -> None:
    target = registration(backend).target
    what = {"backend": backend, "target": target, "properties": dict(properties)}
    write_atomic(version / "engine.json", readable_json(json.loads(json.dumps(what))))


def _write_config(root: Path, config: "ModelConfig") -> Path:
    """Write `config.pbtxt`; the folder of the model's only version, empty."""
    from google.protobuf import text_format

    folder = root / str(config.name)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / _VERSION).mkdir(parents=True)
    write_atomic(folder / "config.pbtxt", text_format.MessageToString(config))
    return folder / _VERSION


def _config(served: Served, *, gpu: bool) -> "ModelConfig":
    from tritonclient.grpc.model_config_pb2 import TYPE_FP32, DataType, ModelConfig

    config = ModelConfig(name=served.name, max_batch_size=served.deployment.max_batch_size)
    for name, kind in served.inputs.items():
        data_type = DataType.Value(f"TYPE_{kind}")
        config.input.add(name=name, data_type=data_type, dims=[served.seq_len])
    config.output.add(name=served.output, data_type=TYPE_FP32, dims=[served.dim])
    _batch_dynamically(config, served.deployment)
    _run_instances(config, served.deployment.instances, gpu=gpu)
    return config


def _batch_dynamically(config: "ModelConfig", deployment: Deployment) -> None:
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = deployment.max_queue_delay_us
    batching.preferred_batch_size.extend(deployment.preferred_batch_sizes)
    batching.SetInParent()


def _run_instances(config: "ModelConfig", count: int, *, gpu: bool) -> None:
    from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup as Group

    if gpu:  # the one that the engine was built on
        config.instance_group.add(count=count, kind=Group.KIND_GPU, gpus=[0])
    else:
        config.instance_group.add(count=count, kind=Group.KIND_CPU)
