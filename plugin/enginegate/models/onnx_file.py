"""ONNX files of any size. One message holds 2 GB; of a larger model the weights lie beside it."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from enginegate.files import sha256_of, sha256_of_json

if TYPE_CHECKING:
    import onnx

LIMIT_BYTES = 2_000_000_000  # of weights in one message: protobuf's 2 GiB, less what is around them
_SMALL = 1024  # elements that shape inference may want to see


def is_large(size_bytes: int) -> bool:
    """Tell if weights of that size have to lie beside the graph."""
    return size_bytes > LIMIT_BYTES


def save_onnx(model: "onnx.ModelProto", path: Path) -> None:
    """Write a model; over the limit its weights go to `<name>.data` beside, and leave `model`."""
    import onnx

    large = is_large(_size_bytes(model))
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)  # onnx would append to it
    if large:
        onnx.save(model, str(path), save_as_external_data=True, location=data.name)
    else:
        onnx.save(model, str(path))


def is_large_file(path: Path) -> bool:
    """Tell if the weights of an ONNX file, wherever they lie, are over the limit."""
    import onnx

    return is_large(_size_bytes(onnx.load(str(path), load_external_data=False)))


def _size_bytes(model: "onnx.ModelProto") -> int:
    return sum(map(_bytes_of, model.graph.initializer))


def _bytes_of(tensor: "onnx.TensorProto") -> int:
    from onnx.helper import tensor_dtype_to_np_dtype

    item_bytes = int(tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return int(math.prod(tensor.dims)) * item_bytes


def typed(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The model's graph with the types of all values, inferred anew, without its large weights."""
    from onnx import ModelProto, helper
    from onnx.shape_inference import infer_shapes

    skeleton = ModelProto(ir_version=model.ir_version, functions=model.functions)
    skeleton.opset_import.extend(model.opset_import)
    graph, source = skeleton.graph, model.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    declared = {value.name for value in source.input}
    for tensor in source.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            kind, shape = tensor.data_type, list(tensor.dims)
            graph.input.append(helper.make_tensor_value_info(tensor.name, kind, shape))
    return infer_shapes(skeleton)


def opset_of(model: "onnx.ModelProto") -> int:
    """The version of ONNX's own operators."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def beside(path: Path) -> list[Path]:
    """The files of weights that `save_onnx`, or torch's exporter, wrote beside a model."""
    return sorted(path.parent.glob(f"{path.name}.*"))


def sha256_of_files(path: Path, others: Iterable[Path]) -> str:
    """One hash of a model and the files of its weights; the file's own if there are none."""
    files = [path, *others]
    return sha256_of(path) if len(files) == 1 else sha256_of_json([sha256_of(f) for f in files])
