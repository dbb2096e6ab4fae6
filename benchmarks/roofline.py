"""The roofline of this machine, with what the shipped models' engines reach of it.

    python benchmarks/roofline.py [--cache DIR]

Prints the ceilings of one thread; for each model and precision a row per batch size with the floor,
the measured median and the efficiency; and, with texts of one token, up to which batch each model
is predicted to be memory-bound and at which batch its measured time begins to grow.
"""

import argparse
import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls
from small_model import heading

from enginegate.cache import Store
from enginegate.diagnostics.roofline.ceilings import measured_device
from enginegate.diagnostics.roofline.device import ELEMENT_BYTES
from enginegate.diagnostics.roofline.flops import cost_of
from enginegate.diagnostics.roofline.roofline import Roofline, Setting, Traffic
from enginegate.engines.build import build_engine
from enginegate.engines.onnxruntime import run_onnx
from enginegate.files import default_cache
from enginegate.models.export import export_model, tokenize_with
from enginegate.models.spec import SHIPPED
from enginegate.models.workload import make_workload, read_texts
from enginegate.report.text import aligned
from enginegate.report.wording.roofline import cost_line, device_line
from enginegate.variants import Precision, Variant

PRECISIONS = (Precision.FP32, Precision.BF16, Precision.INT8)
BATCHES = (1, 8, 32, 128)
SHORT = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
TURN_S, ROUNDS = 0.1, 3
BREAKS = 400  # batch sizes at which a line may break, geometric
FLAT = 0.25  # of the later slope: up to that, the first piece counts as flat


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", type=Path, default=default_cache())
    given = parser.parse_args()
    store = Store(given.cache)
    loaded = contextlib.ExitStack()
    models = {name: load(store, spec, loaded) for name, spec in SHIPPED.items()}
    device = measured_device(store, {str(p): ("openvino", p) for p in PRECISIONS}, 1)
    print(heading())
    print(device_line(device))
    for name, (model, workload, engines) in models.items():
        cost = cost_of(model.onnx, model.output)
        print(f"\n{cost_line(name, cost, model.seq_len)}")
        lines(cost, device, engines, workload, model.seq_len)


def load(store, spec, loaded):
    """The model, its workload and its loaded engines by precision."""
    model = export_model(spec, store, run_onnx)
    tokenize = tokenize_with(model)
    workload = make_workload(*read_texts(None), tokenize, model.inputs)
    engines = {}
    for precision in PRECISIONS:
        built = build_engine(store, Variant(spec.name, "openvino", precision), model, workload)
        engines[precision] = loaded.enter_context(built.load(workload, 1))
    return model, workload, engines


def lines(cost, device, engines, workload, seq):
    header = ["", "batch", "FLOP/byte", "floor ms", "measured ms", "GFLOP/s", "efficiency"]
    rows, knees = [header], []
    for precision, engine in engines.items():
        roof = roofline(cost, device, precision, seq)
        times = measure(engine, {n: workload.batch(n) for n in BATCHES})
        rows += [row(precision, roof.point(n, times[n])) for n in BATCHES]
        knees.append(knee_line(cost, device, precision, engine, workload))
    print(*aligned(rows), *knees, sep="\n")


def roofline(cost, device, precision, seq):
    setting = Setting(device, str(precision), ELEMENT_BYTES[precision], Traffic.FUSED, seq)
    return Roofline(cost, setting)


def row(precision, point):
    reached = point.warning or f"{100 * point.efficiency:.0f} %"
    figures = (1e3 * point.floor_s, 1e3 * point.measured_s, point.flops_per_s / 1e9)
    shown = [f"{value:.3g}" for value in (point.intensity, *figures)]
    return [str(precision), str(point.batch), *shown, reached]


def knee_line(cost, device, precision, engine, workload):
    """Predicted and measured knee with texts of one token."""
    roof = roofline(cost, device, precision, 1)
    whole = {
        n: {k: np.ascontiguousarray(v[:, :1]) for k, v in batch.items()}
        for n, batch in ((n, workload.batch(n)) for n in SHORT)
    }
    times = measure(engine, whole)
    seconds = [times[n] for n in SHORT]
    knee = find_knee(SHORT, seconds)
    shown = ", ".join(f"{n}: {1e3 * s:.3g}" for n, s in times.items())
    how = "flat before" if knee.flat_before else "growing from the first"
    return (
        f"{precision}, texts of one token: predicted {roof.bound(cost.of('backbone'))} (weights "
        f"{roof.memory.name}); measured knee at batch {knee.batch:.1f} ({how}: "
        f"{1e6 * knee.before_s:.0f} us a text, then {1e6 * knee.after_s:.0f}; error "
        f"{100 * knee.error:.1f} %); floor / measured at batch 1: "
        f"{100 * roof.floor_s(1) / times[1]:.0f} %; ms by batch {shown}"
    )


@dataclass(frozen=True)
class Knee:
    """A line that breaks once, at `batch`: seconds that a text costs before and after.

    `error` is the root mean square of the relative residuals.
    """

    batch: float
    before_s: float
    after_s: float
    error: float

    @property
    def flat_before(self):
        """If not, time grows from the first batch on."""
        return self.before_s <= FLAT * self.after_s


def find_knee(batches, seconds):
    """The broken line through measured times that fits best in relative terms.

    `t = a + b n + c max(0, n - k)`, none of a, b, c negative, by weighted least squares for each k
    from the second batch size to the last but one.
    """
    sizes, times = np.asarray(batches, np.float64), np.asarray(seconds, np.float64)
    breaks = np.geomspace(sizes[1], sizes[-2], BREAKS)
    return min((broken(sizes, times, float(at)) for at in breaks), key=lambda knee: knee.error)


def broken(sizes, times, at):
    columns = np.stack([np.ones_like(sizes), sizes, np.maximum(0, sizes - at)], axis=1)
    (_, before, more), residual = nnls(columns / times[:, None], np.ones_like(times))
    return Knee(at, float(before), float(before + more), float(residual) / math.sqrt(len(times)))


def measure(engine, inputs):
    """Median seconds of a call by batch size, all sizes in turn, round by round."""
    taken = {n: [] for n in inputs}
    for _ in range(ROUNDS):
        for n, batch in inputs.items():
            engine.embed(batch)
            end = time.perf_counter() + TURN_S / 2
            while True:
                start = time.perf_counter()
                engine.embed(batch)
                taken[n].append(time.perf_counter() - start)
                if time.perf_counter() > end:
                    break
    return {n: float(np.median(times)) for n, times in taken.items()}


if __name__ == "__main__":
    main()
