"""Conversions of an ONNX file to lower precision, for every runtime that takes ONNX."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16

from enginegate.workload import Batch, take

_CALIBRATION_ROWS = 8


def to_fp16(source: Path, target: Path) -> None:
    """Convert weights and arithmetic to fp16; inputs and outputs keep their types."""
    converted = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True)
    onnx.save(converted, str(target))


def quantize_qdq(source: Path, target: Path, calibration: Batch) -> None:
    """Explicit Q/DQ around every MatMul: int8 symmetric, ranges from `calibration` [texts, seq]."""
    quantize_static(
        str(source),
        str(target),
        _Reader(calibration),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
        },
    )


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the calibration texts a few rows at a time."""

    def __init__(self, calibration: Batch) -> None:
        self._batches = _batches(calibration)

    def get_next(self) -> Batch | None:
        return next(self._batches, None)


def _batches(batch: Batch) -> Iterator[Batch]:
    rows = len(next(iter(batch.values())))
    for start in range(0, rows, _CALIBRATION_ROWS):
        yield take(batch, slice(start, start + _CALIBRATION_ROWS))
