"""Second opinions on a reference, so that no engine is blamed for what it does by itself."""

from pathlib import Path

import numpy as np

from enginegate.accuracy import limits_for, probe_of_engine, probe_stability
from enginegate.cache import Store
from enginegate.engines import Embeddings, Engine, get_backend, run_reference
from enginegate.machine import this_machine
from enginegate.models import Exported, Workload, take, together
from enginegate.results import DOUBT
from enginegate.variants import Precision

_RECIPE = 1  # raise when the same reference would be doubted otherwise
_TRIED_TEXTS = 32


def second_opinions(
    store: Store, engine: Engine, model: Exported, workload: Workload, embeddings: Embeddings
) -> tuple[str, ...]:
    """Sentences against the reference, from the store where it was tried before; usually none."""
    key = {
        "recipe": _RECIPE,
        "model": model.sha256,
        "workload": workload.sha256,
        "texts": list(workload.texts),
        "runtime": get_backend("onnxruntime").version(),
        "machine": this_machine().as_json(),
    }

    def build(_folder: Path) -> dict[str, list[str]]:
        found = [_unoptimised(model, workload, embeddings), _unstable(engine, model, workload)]
        return {"doubts": [DOUBT + doubt for doubt in found if doubt]}

    return tuple(store.get_or_build("opinions", key, build).properties["doubts"])


def _unoptimised(model: Exported, workload: Workload, embeddings: Embeddings) -> str:
    """What the runtime's own changes of the graph do to it, if that is more than rounding.

    Not asked of a quantised file: fused, its integers round otherwise, and rightly so.
    """
    if model.nature.is_quantised:
        return ""
    some = together(workload.evaluation, _TRIED_TEXTS)[:_TRIED_TEXTS]
    found = run_reference(model.onnx, take(workload.evaluation, some), optimised=False)
    expected = embeddings[some]
    change = float(np.abs(found - expected).max() / np.abs(expected).max())
    limit = limits_for(Precision.FP32, {}).max_abs_relative
    if change <= limit:
        return ""
    return (
        f"without ONNX Runtime's graph optimisations it changes by {change:.3g} of its largest "
        f"component > {limit:g}, which is that runtime's doing or the model's own ill condition, "
        "and no engine's; try another version of onnxruntime"
    )


def _unstable(engine: Engine, model: Exported, workload: Workload) -> str:
    """What its batch does to it, by the probe of every engine."""
    own = Precision.INT8 if model.nature.is_quantised else Precision.FP32
    limit = limits_for(own, {}).invariance
    probe = probe_of_engine(engine.embed, workload)
    broken = probe_stability(probe, limit)[0].broken
    return f"the fault is the file's, not an engine's: {broken}" if broken else ""
