"""The numbers inside a model, and which of them fp16 cannot hold.

One pass over the fp32 graph measures every value that an fp16 engine would have in fp16.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enginegate.cache import Store
from enginegate.engines.registry import get_backend
from enginegate.errors import EngineError, EngineGateError
from enginegate.models import Batch, Exported, Layer, hash_of, read_layers
from enginegate.variants import Precision

LARGEST_FP16 = 65504.0
SMALLEST_FP16 = 2.0**-24
MOST_LOST = 0.5  # share of a value's numbers that may become zero
_RECIPE = 2  # raise when the same key would be measured otherwise


@dataclass(frozen=True)
class ValueRange:
    """The numbers of one value, over all texts.

    Attributes:
        node: first output of the node that makes it; its own name for a weight.
        kind: the operation that makes it, or `weight`.
        made: whether the node that makes it has it in fp16; never of a weight.
        takers: first outputs of the nodes that take it in fp16, be it moved by others before.
        lowest, highest: its smallest and largest number.
        lost_share: share of its numbers other than zero that fp16 makes zero.
    """

    node: str
    kind: str
    made: bool
    takers: tuple[str, ...]
    lowest: float
    highest: float
    lost_share: float

    def holders(self, kept: Collection[str]) -> set[str]:
        """The nodes that have it in fp16, with more nodes kept in fp32."""
        return {*([self.node] if self.made else []), *self.takers} - set(kept)

    @property
    def fits(self) -> bool:
        """Tell if fp16 can hold it."""
        return self.largest <= LARGEST_FP16 and self.lost_share <= MOST_LOST

    @property
    def largest(self) -> float:
        """Its largest magnitude."""
        return max(-self.lowest, self.highest)


@dataclass(frozen=True)
class OutOfRange:
    """A layer with numbers that fp16 cannot hold.

    Attributes:
        layer: its name.
        kind: the operation in it, or `weight`.
        value: name of its result, or of the weight.
        largest: the largest magnitude there.
        lost_share: share of the numbers other than zero that become zero.
    """

    layer: str
    kind: str
    value: str
    largest: float
    lost_share: float

    @property
    def words(self) -> str:
        """The fault in a few words."""
        where = f"in {self.layer} ({self.kind} {self.value})"
        if self.largest > LARGEST_FP16:
            return f"overflow {where}: {self.largest:,.6g} > {LARGEST_FP16:,.0f}"
        return (
            f"underflow {where}: {self.lost_share:.0%} of the numbers are below "
            f"{SMALLEST_FP16:.1e} and become zero, more than {MOST_LOST:.0%}"
        )


@dataclass(frozen=True)
class Ranges:
    """What a model's numbers are in fp16.

    Attributes:
        values: how many values and weights were measured.
        largest: the largest magnitude of all.
        layer: where that is.
        beyond: what fp16 cannot hold, in order of execution, once a layer and operation.
        keep: the layers that make or take it in fp16: kept in fp32, nothing is beyond.
    """

    values: int
    largest: float
    layer: str
    beyond: tuple[OutOfRange, ...] = ()
    keep: tuple[str, ...] = ()

    @property
    def fault(self) -> str:
        """The first that fp16 cannot hold, and how many more; empty if there is none."""
        if not self.beyond:
            return ""
        more = len(self.beyond) - 1
        others = f"; and {more} more" if more else ""
        return f"fp16 cannot hold the model's numbers: {self.beyond[0].words}{others}"


def find_ranges(
    store: Store,
    model: Exported,
    batch: Batch,
    kept: Collection[str] = (),
    precision: Precision = Precision.FP16,
) -> Ranges:
    """The model's numbers in fp16 over these texts, measured once and kept in the store.

    An engine of another `precision` than fp16 has all in fp16 but for what multiplies matrices.
    `kept` are nodes that are kept in fp32 beside those that every engine keeps. Raises EngineError
    where the model cannot be measured.
    """
    key = {
        "recipe": _RECIPE,
        "model": model.sha256,
        "tokens": hash_of(batch),
        "runtime": get_backend("onnxruntime").version(),
    }

    def measure(_folder: Path) -> Mapping[str, Any]:
        from enginegate.engines.probing import measured_ranges

        try:
            return {"values": [asdict(found) for found in measured_ranges(model.onnx, batch)]}
        except EngineGateError:
            raise
        except Exception as error:  # the runtime raises its own, unrelated kinds
            raise EngineError(
                f"the numbers inside {model.spec.name} cannot be measured, so nothing is known of "
                f"its range in fp16: {error}; report it, or judge another precision"
            ) from error

    stored = store.get_or_build("ranges", key, measure).properties["values"]
    found = [ValueRange(**{**one, "takers": tuple(one["takers"])}) for one in stored]
    others = () if precision is Precision.FP16 else _multiplying(model.onnx)
    return judged_ranges(found, read_layers(model.onnx), {*kept, *others})


def _multiplying(path: Path) -> Iterator[str]:
    """First outputs of the nodes that multiply matrices."""
    import onnx

    from enginegate.engines.half import MATMULS

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return (node.output[0] for node in nodes if node.op_type in MATMULS)


def judged_ranges(
    values: Sequence[ValueRange], layers: Sequence[Layer], kept: Collection[str] = ()
) -> Ranges:
    """The layers whose numbers fp16 cannot hold; what is in fp32 on both of its sides may be."""
    names = {node: layer.name for layer in layers for node in layer.nodes}
    in_half = [value for value in values if value.holders(kept)]
    unfit = [value for value in in_half if not value.fits]
    beyond: dict[tuple[str, str], OutOfRange] = {}
    for value in unfit:
        layer = _layer_of(value, names)
        found = OutOfRange(layer, value.kind, value.node, value.largest, value.lost_share)
        beyond.setdefault((layer, value.kind), found)
    holders = {names.get(node, node) for value in unfit for node in value.holders(kept)}
    keep = tuple(layer.name for layer in layers if layer.name in holders)
    widest = max(in_half, key=lambda value: value.largest, default=None)
    if widest is None:
        return Ranges(0, 0.0, "")
    layer = _layer_of(widest, names)
    return Ranges(len(in_half), widest.largest, layer, tuple(beyond.values()), keep)


def _layer_of(value: ValueRange, names: Mapping[str, str]) -> str:
    known = (names[node] for node in (value.node, *value.takers) if node in names)
    return next(known, value.node)
