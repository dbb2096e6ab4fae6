"""Quantisation of OpenVINO graphs by NNCF, and taking single layers out of it again.

A quantiser is a FakeQuantize operation on an edge; it belongs to the node that reads the edge.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from enginegate.models import Batch, take

_QUANTIZER = "FakeQuantize"


def quantize(graph: Any, calibration: Batch) -> Any:
    """The graph with quantisers on activations and weights, ranges from `calibration` [texts, seq].

    The weights stay in fp32 beside their quantisers, so that these can still be taken out.
    """
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters

    rows = len(next(iter(calibration.values())))
    items = [take(calibration, slice(row, row + 1)) for row in range(rows)]
    return nncf.quantize(
        graph,
        nncf.Dataset(items),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=rows,
        advanced_parameters=AdvancedQuantizationParameters(
            backend_params={"compress_weights": False}
        ),
    )


def without_quantizers(graph: Any, nodes: frozenset[str]) -> Any:
    """A copy of the graph in which what the given nodes read is not quantised."""
    copy = graph.clone()
    for names, edge in list(_quantized_edges(copy)):
        if names & nodes:
            edge.replace_source_output(edge.get_source_output().get_node().input_value(0))
    return copy


def quantized_nodes(graph: Any) -> frozenset[str]:
    """The nodes that read a quantised value, by the name of their output in the ONNX file."""
    return frozenset(name for names, _ in _quantized_edges(graph) for name in names)


def _quantized_edges(graph: Any) -> Iterator[tuple[frozenset[str], Any]]:
    """Every input that a quantiser feeds, with the names of the ONNX node that reads it.

    An ONNX node may become several operations, of which only the last carries its output's names.
    """
    owners: dict[str, frozenset[str]] = {}
    for operation in reversed(graph.get_ordered_ops()):
        names = frozenset(name for output in operation.outputs() for name in output.get_names())
        owner = names or _owner_of_reader(operation, owners)
        owners[operation.get_name()] = owner
        for edge in operation.inputs():
            if edge.get_source_output().get_node().get_type_name() == _QUANTIZER:
                yield owner, edge


def _owner_of_reader(operation: Any, owners: Mapping[str, frozenset[str]]) -> frozenset[str]:
    readers = (edge for output in operation.outputs() for edge in output.get_target_inputs())
    return next((owners[reader.get_node().get_name()] for reader in readers), frozenset())
