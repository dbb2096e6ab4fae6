"""All that a model is made of counts in its hash, and nothing outside of its folder is read."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginegate.cache import Store
from enginegate.engines import run_reference
from enginegate.errors import ModelError
from enginegate.files import sha256_of, sha256_of_json
from enginegate.models import specs_from
from enginegate.models.ready import ready_onnx

WEIGHTS = b"\0" * 16
BATCH = {name: np.ones((2, 8), np.int64) for name in ("input_ids", "attention_mask")}


def outside(location="w.bin"):
    """A tensor whose values lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def node(**attributes):
    return helper.make_node("Constant", [], ["c"], **attributes)


def subgraph(tensor):
    branch = helper.make_graph([], "branch", [], [], [tensor])
    return helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)


def sparse(tensor):
    places = numpy_helper.from_array(np.arange(4), "places")
    return helper.make_sparse_tensor(tensor, places, [9])


def function(tensor):
    opset = helper.make_opsetid("", 17)
    return helper.make_function("own", "f", [], ["c"], [node(value=tensor)], [opset])


PLACES = {
    "a weight": lambda model, tensor: model.graph.initializer.append(tensor),
    "a constant": lambda model, tensor: model.graph.node.append(node(value=tensor)),
    "a subgraph": lambda model, tensor: model.graph.node.append(subgraph(tensor)),
    "a constant in a subgraph": lambda model, tensor: model.graph.node.append(
        helper.make_node("Loop", [], [], body=helper.make_graph([node(value=tensor)], "b", [], []))
    ),
    "a function": lambda model, tensor: model.functions.append(function(tensor)),
    "a sparse weight": lambda model, tensor: model.graph.sparse_initializer.append(sparse(tensor)),
    "a sparse constant": lambda model, tensor: model.graph.node.append(
        node(sparse_value=sparse(tensor))
    ),
    "a list of tensors": lambda model, tensor: model.graph.node.append(node(values=[tensor])),
}


@pytest.fixture
def folder(tmp_path, load_tiny):
    (tmp_path / "model").mkdir()
    load_tiny.write_tiny_onnx(tmp_path / "model" / "tiny.onnx")
    return tmp_path / "model"


def with_data(folder, place="a constant", location="w.bin"):
    model = onnx.load(folder / "tiny.onnx")
    PLACES[place](model, outside(location))
    (folder / "tiny.onnx").write_bytes(model.SerializeToString())
    return folder


def read(folder):
    spec = specs_from({"tiny": {"onnx": "tiny.onnx"}}, folder)["tiny"]
    return ready_onnx(spec, Store(folder.parent / "cache"))


def test_without_data_outside_the_hash_is_as_it_always_was(folder):
    assert read(folder).sha256 == sha256_of_json([sha256_of(folder / "tiny.onnx")])


def test_weights_outside_count_as_they_always_did(folder):
    with_data(folder, "a weight")
    (folder / "w.bin").write_bytes(WEIGHTS)
    files = (folder / "tiny.onnx", folder / "w.bin")
    assert read(folder).sha256 == sha256_of_json([sha256_of(file) for file in files])


@pytest.mark.parametrize("place", PLACES)
def test_data_outside_counts_wherever_its_tensor_is(folder, place):
    with_data(folder, place)
    with pytest.raises(ModelError, match=r"keeps weights in .*w\.bin, which does not exist"):
        read(folder)
    (folder / "w.bin").write_bytes(WEIGHTS)
    before = read(folder).sha256
    assert before == read(folder).sha256
    (folder / "w.bin").write_bytes(WEIGHTS[:-1] + b"\1")
    assert read(folder).sha256 != before


@pytest.mark.parametrize(
    "location",
    [
        "../w.bin",
        "a/../../w.bin",
        "/etc/hostname",
        "..\\w.bin",
        "C:\\w.bin",
        "C:w.bin",
        "\\\\h\\s\\w",
    ],
)
def test_a_location_outside_the_folder_is_one_error(folder, location):
    (folder.parent / "w.bin").write_bytes(WEIGHTS)
    with_data(folder, location=location)
    with pytest.raises(ModelError, match="is not a path inside the model's folder: put the file"):
        read(folder)


@pytest.mark.parametrize("location", ["x" * 300, "a\0b", ".", ""])
def test_a_location_that_no_disk_has_is_one_error(folder, location):
    with_data(folder, location=location)
    with pytest.raises(ModelError, match="which does not exist"):
        read(folder)


def test_a_link_out_of_the_folder_is_one_error_and_one_inside_is_followed(folder):
    with_data(folder)
    (folder.parent / "w.bin").write_bytes(WEIGHTS)
    (folder / "w.bin").symlink_to("../w.bin")
    with pytest.raises(ModelError, match="leads out of the model's folder to"):
        read(folder)
    (folder / "w.bin").unlink()
    (folder / "real.bin").write_bytes(WEIGHTS)
    (folder / "w.bin").symlink_to("real.bin")
    assert read(folder).sha256


def test_a_linked_folder_is_not_out_of_itself(folder):
    with_data(folder)
    (folder / "w.bin").write_bytes(WEIGHTS)
    (folder.parent / "link").symlink_to(folder)
    assert read(folder.parent / "link").sha256 == read(folder).sha256


def in_hub_cache(folder, target):
    """The folder as a snapshot in the hub's cache, whose files are links."""
    snapshot = folder.parent / "models--a--b" / "snapshots" / "rev"
    snapshot.mkdir(parents=True)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    (folder / "tiny.onnx").rename(blobs / "1")
    (blobs / "2").write_bytes(WEIGHTS)
    (snapshot / "tiny.onnx").symlink_to("../../blobs/1")
    (snapshot / "w.bin").symlink_to(target)
    return snapshot


def test_the_links_of_the_hubs_cache_are_followed_and_no_others(folder):
    (folder.parent / "w.bin").write_bytes(WEIGHTS)
    snapshot = in_hub_cache(with_data(folder), "../../blobs/2")
    found = read(snapshot)
    assert "cache" in found.onnx.parts
    assert (found.onnx.parent / "w.bin").read_bytes() == WEIGHTS
    assert not (found.onnx.parent / "w.bin").is_symlink()
    assert found.weights == "from tiny.onnx"
    (snapshot / "w.bin").unlink()
    (snapshot / "w.bin").symlink_to("../../../w.bin")
    with pytest.raises(ModelError, match="leads out of the model's folder to"):
        read(snapshot)


def test_linked_weights_are_read_by_the_runtimes(folder):
    plain = run_reference(read(folder).onnx, BATCH)
    model = onnx.load(folder / "tiny.onnx")
    sizes: dict[str, Any] = {
        "save_as_external_data": True,
        "location": "w.bin",
        "size_threshold": 1000,
    }
    onnx.save(model, folder / "tiny.onnx", **sizes)
    assert read(folder).onnx == folder / "tiny.onnx"
    kept = (folder / "w.bin").read_bytes()
    snapshot = in_hub_cache(folder, "../../blobs/2")
    (snapshot / "w.bin").write_bytes(kept)
    found = read(snapshot)
    assert np.array_equal(run_reference(found.onnx, BATCH), plain)
    onnx.load(found.onnx)
