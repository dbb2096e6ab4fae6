"""The costs of a run's models and the rooflines of its engines, for its reports."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from enginegate.cache import Store
from enginegate.config import Options
from enginegate.diagnostics import (
    ELEMENT_BYTES,
    Cost,
    Device,
    Roofline,
    Setting,
    Traffic,
    cost_as_json,
    cost_of,
    engine_as_json,
    measured_device,
)
from enginegate.engines import Executed
from enginegate.errors import ModelError
from enginegate.models import Exported
from enginegate.report import cost_line, device_line, roofline_line
from enginegate.results import Result
from enginegate.variants import Precision

_TRAFFIC = Traffic.FUSED
_BYTES: Mapping[str, int] = MappingProxyType(
    {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i8": 1, "u8": 1}
)


@dataclass(frozen=True)
class EngineInfo:
    """How an engine of the run was made.

    Attributes:
        backend: that built it.
        precision: that was built.
        element_bytes: of the type that most of its matrix products ran in.
    """

    backend: str
    precision: Precision
    element_bytes: int


class ModelCosts:
    """Models and engines of a run; nothing is counted or measured until a report asks for it."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._models: dict[str, Exported] = {}
        self._engines: dict[str, EngineInfo] = {}
        self._costs: dict[str, Cost | str] = {}

    def note(
        self, name: str, model: Exported, backend: str, precision: Precision, executed: Executed
    ) -> None:
        """Remember an engine by the id of its variant, and its model."""
        self._models[model.spec.name] = model
        most = max(executed.matmuls, key=lambda kind: executed.matmuls[kind], default="")
        size = _BYTES.get(most, ELEMENT_BYTES[precision])
        self._engines[name] = EngineInfo(backend, precision, size)

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
            else cost_as_json(cost, model.seq_len)
            for name, cost, model in found
        }

    def lines(self) -> list[str]:
        """A line on the cost of each model, for the text report."""
        return [
            cost_line(name, self.cost(name), model.seq_len) for name, model in self._models.items()
        ]

    def roofline_lines(self, results: Iterable[Result]) -> Iterator[str]:
        """With --gate-roofline: the ceilings, and a line per engine. Raises EngineError."""
        if not self._options.roofline or not self._engines:
            return
        yield f"roofline: {device_line(self._device())}; traffic: {_TRAFFIC}"
        for result, roofline in self._rooflines(results):
            name = f"{result.variant.model} {result.variant.precision}"
            yield roofline_line(name, roofline, _measured(result))
            yield from (f"{name}: {warning}" for warning in _warnings(result, roofline))

    def rooflines(self, results: Iterable[Result]) -> dict[str, Any]:
        """With --gate-roofline: the rooflines of each model, by name, for the JSON report."""
        records: dict[str, Any] = {}
        for result, roofline in self._rooflines(results) if self._options.roofline else ():
            setting = roofline.setting
            device = {"device": setting.device.as_json(), "seq_len": setting.seq}
            record = {**device, "traffic": setting.traffic, "engines": []}
            engine = engine_as_json(result.variant.precision, roofline, _measured(result))
            records.setdefault(result.variant.model, record)["engines"].append(engine)
        return records

    def _device(self) -> Device:
        """Ceilings of all engines of this run; from the store but for the first time."""
        engines = {str(m.precision): (m.backend, m.precision) for m in self._engines.values()}
        return measured_device(Store(self._options.engine_cache), engines, self._options.threads)

    def _rooflines(self, results: Iterable[Result]) -> Iterator[tuple[Result, Roofline]]:
        """Of every engine in this process whose model can be counted."""
        for result in results:
            cost = self.cost(result.variant.model)
            if not result.variant.served and not isinstance(cost, str):
                made, seq = self._engines[result.variant.id], _timed_tokens(result)
                precision, size = str(made.precision), made.element_bytes
                setting = Setting(self._device(), precision, size, _TRAFFIC, seq)
                yield result, Roofline(cost, setting)


def _timed_tokens(result: Result) -> int:
    """Tokens of the texts that its largest batch is timed with."""
    context = result.context
    return context.timed[max(context.timed)] if context.timed else context.seq_len


def _measured(result: Result) -> dict[int, float]:
    """Seconds of the batch sizes that are timed with texts of that length."""
    timed, tokens = result.context.timed, _timed_tokens(result)
    alike = (speed for speed in result.speeds if timed.get(speed.batch, tokens) == tokens)
    return {speed.batch: speed.p50_s for speed in alike}


def _warnings(result: Result, roofline: Roofline) -> Iterator[str]:
    points = (roofline.point(*measured) for measured in _measured(result).items())
    return (point.warning for point in points if point.warning)
