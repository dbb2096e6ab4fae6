"""The costs of a run's models, for its reports."""

from collections.abc import Callable, Iterable
from typing import Any

from enginegate.cost.flops import (
    BACKBONE,
    HEAD,
    Cost,
    Layer,
    cost_of,
    matmul_flops,
    thop_flops,
    true_flops,
)
from enginegate.cost.polynomial import Polynomial
from enginegate.errors import ModelError
from enginegate.models import Exported

Count = Callable[[Iterable[Layer]], Polynomial]

_COUNTS: dict[str, Count] = {"true": true_flops, "matmul": matmul_flops, "thop": thop_flops}


class Ledger:
    """Models of a run; their graphs are read when a report asks for their costs."""

    def __init__(self) -> None:
        self._models: dict[str, Exported] = {}
        self._costs: dict[str, Cost | str] = {}

    def note(self, model: Exported) -> None:
        """Remember a model."""
        self._models[model.spec.name] = model

    def cost(self, name: str) -> Cost | str:
        """The cost of a model, or why it cannot be counted: that fails no run."""
        if name not in self._costs:
            model = self._models[name]
            try:
                self._costs[name] = cost_of(model.onnx, model.output)
            except ModelError as error:
                self._costs[name] = str(error)
        return self._costs[name]

    def costs(self) -> dict[str, Any]:
        """The cost of one text of each model, by name, for the JSON report."""
        found = ((name, self.cost(name), model) for name, model in self._models.items())
        return {
            name: {"not_counted": cost}
            if isinstance(cost, str)
            else cost_as_json(cost, model.spec.seq_len)
            for name, cost, model in found
        }

    def lines(self) -> list[str]:
        """A line on the cost of each model, for the text report."""
        return [
            cost_line(name, self.cost(name), model.spec.seq_len)
            for name, model in self._models.items()
        ]


def cost_line(name: str, cost: Cost | str, seq_len: int) -> str:
    """The FLOPs of one text in words, by both counts."""
    if isinstance(cost, str):
        return f"{name}: FLOPs not counted: {cost}"
    least = "at least " if cost.uncounted else ""
    lacking = f"; not counted: {', '.join(cost.uncounted)}" if cost.uncounted else ""
    true, thop = (_by_part(cost, count, seq_len) for count in (true_flops, thop_flops))
    return (
        f"{name}: FLOPs of a text of {seq_len} tokens: {least}{true}; thop counts {thop}{lacking}"
    )


def _by_part(cost: Cost, count: Count, seq_len: int) -> str:
    whole, head = (count(layers)(1, seq_len) for layers in (cost.layers, cost.of(HEAD)))
    return f"{whole:,} (head {head:,})"


def cost_as_json(cost: Cost, seq_len: int) -> dict[str, Any]:
    """All counts at one text of `seq_len` tokens, and the formulas for every other size."""
    parts = {"total": cost.layers, BACKBONE: cost.of(BACKBONE), HEAD: cost.of(HEAD)}
    return {
        "seq_len": seq_len,
        "parameters": sum(layer.parameters for layer in cost.layers),
        "flops": {
            name: {part: count(layers)(1, seq_len) for part, layers in parts.items()}
            for name, count in _COUNTS.items()
        },
        "formulas": {
            name: {part: str(count(layers)) for part, layers in parts.items()}
            for name, count in _COUNTS.items()
        },
        "uncounted": list(cost.uncounted),
        "layers": [_layer(layer, seq_len) for layer in cost.layers],
    }


def _layer(layer: Layer, seq_len: int) -> dict[str, Any]:
    flops = layer.flops(1, seq_len)
    return {
        "name": layer.name,
        "block": layer.block,
        "part": layer.part,
        "kinds": list(layer.kinds),
        "parameters": layer.parameters,
        "flops": {
            "true": flops,
            "matmul": layer.matmul(1, seq_len),
            "thop": layer.thop(1, seq_len),
        },
        "flops_per_token": flops / seq_len,
    }
