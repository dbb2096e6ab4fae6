"""ONNX files of any size. One message holds 2 GB; of a larger model the weights lie beside it."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from enginegate.files import sha256_of, sha256_of_json

if TYPE_CHECKING:
    import onnx

LIMIT_BYTES = 2_000_000_000  # of weights in one message: protobuf's 2 GiB, less what is around them
_SMALL = 1024  # elements that shape inference may want to see
_INSIDE_BYTES = 1024  # of a weight that stays in the graph whatever the model's size
_PAGE_BYTES = 4096  # a weight begins at a page, to be mapped
_PART = 2**22  # values that are in memory together
_FLOAT = 1  # of TensorProto.DataType


@dataclass(frozen=True)
class Weight:
    """A weight that is read, or made, a part at a time as it is written.

    Attributes:
        name, data_type, dims: as in a TensorProto.
        parts: its values in order, in flat arrays of its type.
    """

    name: str
    data_type: int
    dims: tuple[int, ...]
    parts: Callable[[], Iterable[Any]]


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


def read_graph_of(path: Path) -> "onnx.ModelProto":
    """A model; its weights of type float that lie in files beside it stay there."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    model = onnx.load(str(path), load_external_data=False)
    outside = [tensor for tensor in model.graph.initializer if _is_outside(tensor)]
    floats = [tensor for tensor in outside if tensor.data_type == _FLOAT]
    for tensor in floats:
        tensor.data_location = onnx.TensorProto.DEFAULT
    load_external_data_for_model(model, str(path.parent))
    for tensor in floats:
        tensor.data_location = onnx.TensorProto.EXTERNAL
    return model


def _is_outside(tensor: "onnx.TensorProto") -> bool:
    return bool(tensor.data_location == 1)  # TensorProto.EXTERNAL


def values_of(tensor: "onnx.TensorProto", folder: Path) -> Any:
    """The values of a weight, flat; of one in a file in `folder`, pages of that file."""
    from onnx.external_data_helper import ExternalDataInfo
    from onnx.helper import tensor_dtype_to_np_dtype
    from onnx.numpy_helper import to_array

    count = math.prod(tensor.dims)
    if not _is_outside(tensor) or not count:
        return to_array(tensor).reshape(-1)
    found, dtype = ExternalDataInfo(tensor), tensor_dtype_to_np_dtype(tensor.data_type)
    path = folder / found.location
    return np.memmap(path, dtype, "r", offset=found.offset or 0, shape=(count,))


def parts_of_weight(tensor: "onnx.TensorProto", folder: Path) -> Iterator[Any]:
    """The values of a weight in order, in flat arrays of at most 4,194,304 each."""
    values = values_of(tensor, folder)
    yield from (values[start : start + _PART] for start in range(0, values.size, _PART))


def stored_weights(model: "onnx.ModelProto", folder: Path) -> "Iterator[Weight | onnx.TensorProto]":
    """The weights of a model as they are; only those of type float can be large."""
    for tensor in model.graph.initializer:
        parts = functools.partial(parts_of_weight, tensor, folder)
        floats = tensor.data_type == _FLOAT
        yield Weight(tensor.name, _FLOAT, tuple(tensor.dims), parts) if floats else tensor


def save_with_weights(
    model: "onnx.ModelProto",
    weights: "Sequence[Weight | onnx.TensorProto]",
    path: Path,
    *,
    outside: bool = False,
) -> None:
    """Write a model that has no weights, and them; over the limit they lie in `<name>.data`.

    They are never in memory all at once there, nor where they are to lie `outside` in any case.
    """
    import onnx

    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)
    large = outside or is_large(sum(map(_bytes_of, weights)))
    with data.open("wb") if large else contextlib.nullcontext() as file:
        model.graph.initializer.extend(_written(weight, file, data.name) for weight in weights)
    onnx.save(model, str(path))


def _written(
    weight: "Weight | onnx.TensorProto", file: BinaryIO | None, location: str
) -> "onnx.TensorProto":
    """A weight as the graph has it: whole, or as a place in the file that it was written to."""
    from onnx import TensorProto

    if isinstance(weight, TensorProto):
        return weight
    tensor = TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.dims)
    parts = (part.tobytes() for part in weight.parts())
    if file is None or _bytes_of(weight) < _INSIDE_BYTES:
        tensor.raw_data = b"".join(parts)
        return tensor
    start = file.seek(-file.tell() % _PAGE_BYTES, os.SEEK_CUR)
    file.writelines(parts)
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": location, "offset": start, "length": _bytes_of(weight)}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def is_large_file(path: Path) -> bool:
    """Tell if the weights of an ONNX file, wherever they lie, are over the limit."""
    import onnx

    return is_large(_size_bytes(onnx.load(str(path), load_external_data=False)))


def _size_bytes(model: "onnx.ModelProto") -> int:
    return sum(map(_bytes_of, model.graph.initializer))


def _bytes_of(tensor: "Weight | onnx.TensorProto") -> int:
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
