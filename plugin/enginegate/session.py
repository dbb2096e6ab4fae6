"""One run: what it prepares once, what it found, and what it leaves behind."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator

from enginegate.accuracy import DEFAULT_LIMITS, Limits, compare
from enginegate.baselines import Baseline, Baselines
from enginegate.build import Built, execution_flags
from enginegate.engines import (
    Embeddings,
    Executed,
    check_installed,
    get_backend,
    offered,
    resolve,
)
from enginegate.errors import EmbeddingError, EngineGateError, ModelError
from enginegate.files import write_atomic
from enginegate.machine import this_machine
from enginegate.models import Exported
from enginegate.options import Options
from enginegate.prepare import Preparation, Progress, Reference
from enginegate.render import render_json, render_text
from enginegate.results import Accuracy, Context, Result, Speed
from enginegate.stats import Change, change_between, quantile
from enginegate.table import refreshed_line, spent_line
from enginegate.timing import Samples
from enginegate.variants import Precision, Variant
from enginegate.verdict import Judgement, Verdict, judge_accuracy, judge_change
from enginegate.workload import Workload

_FEWEST_FOR_P99 = 100
_TIGHT = DEFAULT_LIMITS[Precision.FP16]


class Session:
    """State of one pytest run with `--precision`."""

    def __init__(self, options: Options, progress: Progress) -> None:
        backend = resolve(options.backend)
        check_installed(backend)
        precisions = offered(backend, options.precisions)
        self.options = dataclasses.replace(options, backend=backend, precisions=precisions)
        self.baselines = Baselines(options.baselines, this_machine())
        self.results: dict[str, Result] = {}
        self.lines: list[str] = []
        self.problems: list[str] = []
        self._asked: dict[str, Variant] = {}
        self._started_s = time.monotonic()
        self._measured_s = 0.0
        self.prepare = Preparation(self.options, progress)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Count what happens inside as measurement."""
        start_s = time.monotonic()
        yield
        self._measured_s += time.monotonic() - start_s

    def start(
        self, built: Built, executed: Executed, model: Exported, workload: Workload
    ) -> Result:
        """Open the record of a variant."""
        variant = dataclasses.replace(built.variant, model=model.spec.name)
        result = Result(
            variant=variant,
            context=self._context(model, workload),
            backend=get_backend(built.backend).version(),
            chosen=built.precision,
            executed=executed.matmuls,
            ran=executed.summary,
            flags=execution_flags(built, executed),
            notes=tuple(note for note in (*built.notes, model.note) if note),
            size_bytes=built.size_bytes,
        )
        self._refuse_second(built.variant, variant.id)
        return self._record(result)

    def _refuse_second(self, asked: Variant, name: str) -> None:
        """Two models of one name would overwrite each other's figures."""
        if self._asked.setdefault(name, asked) != asked:
            raise ModelError(
                f"two models of this run are both named {name}: a `model` fixture that is "
                "overridden serves one model, so name only one with --model"
            )

    def _context(self, model: Exported, workload: Workload) -> Context:
        return Context(
            weights=model.weights,
            tokenizer="tokenizer.json" if model.tokenizer else "hashed words",
            workload=workload.name,
            workload_sha256=workload.sha256,
            texts=workload.shape[0],
            seq_len=workload.shape[1],
            model_sha256=model.sha256,
            reference=f"{get_backend('onnxruntime').version()} fp32",
            threads=self.options.threads,
        )

    def judge_embeddings(
        self, result: Result, embeddings: Embeddings, reference: Reference, limits: Limits
    ) -> Result:
        """Record how far the embeddings are off, and whether that is allowed."""
        try:
            deltas = compare(embeddings, reference.embeddings)
            tight = limits if result.variant.precision is not Precision.INT8 else _TIGHT
            accuracy = Accuracy(deltas, limits, judge_accuracy(deltas, limits, tight))
        except EmbeddingError as error:
            accuracy = Accuracy(None, limits, Judgement(Verdict.FAIL, (str(error),)))
        return self._record(dataclasses.replace(result, accuracy=accuracy))

    def judge_speed(self, result: Result, samples: Samples) -> Speed:
        """Record the timings of one batch size, and what they say against the baseline."""
        change, judgement = None, Judgement(Verdict.NO_BASELINE)
        baseline, missing = self._baseline(result)
        if baseline is None or samples.batch not in baseline.cells:
            judgement = missing or Judgement(Verdict.NO_BASELINE, ("no such batch size in it",))
        else:
            change = change_between(samples.replicates, baseline.cells[samples.batch])
            judgement = judge_change(change, self.options.max_slowdown)
        speed = _speed(samples, change, judgement)
        latest = self.results[result.variant.id]
        self._record(dataclasses.replace(latest, speeds=(*latest.speeds, speed)))
        return speed

    def _baseline(self, result: Result) -> tuple[Baseline | None, Judgement | None]:
        """The comparable baseline of a variant, or the verdict on there being none."""
        model, context = result.variant.model, result.context
        baseline = self.baselines.load(model).get(result.variant.key)
        if baseline is not None:
            difference = baseline.difference(context)
            return (None, _incomparable(difference)) if difference else (baseline, None)
        if others := self.baselines.other_machines(model):
            return None, _incomparable(f"baselines are of {', '.join(others)}, this is another")
        path = os.path.relpath(self.baselines.path(model))
        reason = f"none in {path}; write it with --refresh-baselines"
        return None, Judgement(Verdict.NO_BASELINE, (reason,))

    def _record(self, result: Result) -> Result:
        self.results[result.variant.id] = result
        return result

    def finish(self, *, interrupted: bool) -> None:
        """Write baselines and reports; what cannot be written goes to `problems`."""
        if self.results:
            elapsed_s = time.monotonic() - self._started_s
            self.lines.append(spent_line(self._measured_s, elapsed_s - self._measured_s))
        if self.options.refresh_baselines:
            self._attempt(self._refuse_refresh if interrupted else self._refresh)
        self._attempt(self._write_reports)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except EngineGateError as error:
            self.problems.append(str(error))
        except OSError as error:
            self.problems.append(f"cannot write {error.filename}: {error.strerror}")

    def _refuse_refresh(self) -> None:
        self.lines.append("baselines: the run was interrupted, none was written")

    def _refresh(self) -> None:
        for model in dict.fromkeys(r.variant.model for r in self.results.values()):
            results = [r for r in self.results.values() if r.variant.model == model]
            ready = [result for result in results if self._is_complete(result)]
            old = self.baselines.load(model)
            if ready:
                path = os.path.relpath(self.baselines.save(model, ready))
                self.lines.append(f"baselines: wrote {path}")
            for result in results:
                before = old.get(result.variant.key)
                self.lines.append(refreshed_line(result, before, written=result in ready))

    def _is_complete(self, result: Result) -> bool:
        measured = {speed.batch for speed in result.speeds}
        return result.embeddings_passed and measured >= set(self.options.batches)

    def _write_reports(self) -> None:
        results = list(self.results.values())
        if self.options.report_text:
            write_atomic(self.options.report_text, render_text(results) + "\n")
        if self.options.report_json:
            write_atomic(self.options.report_json, render_json(results, this_machine()))


def _incomparable(reason: str) -> Judgement:
    return Judgement(Verdict.INCOMPARABLE, (reason,))


def _speed(samples: Samples, change: Change | None, judgement: Judgement) -> Speed:
    p50_s = quantile(samples.candidate_s, 0.5)
    enough = len(samples.candidate_s) >= _FEWEST_FOR_P99
    return Speed(
        batch=samples.batch,
        replicates=samples.replicates,
        p50_s=p50_s,
        p99_s=quantile(samples.candidate_s, 0.99) if enough else None,
        texts_per_s=samples.batch / p50_s,
        reference_ratio=quantile(samples.reference_s, 0.5) / p50_s,
        change=change,
        judgement=judgement,
    )
