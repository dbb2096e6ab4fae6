"""Faults planted into the TensorRT code itself: what catches each of them.

Every row of `data/tensorrt_faults.toml` changes one line of the real source, and names a drill that
the code as it is passes and the changed code does not. Most of these faults would be garbage or a
crash on hardware.
"""

import gc
import os
import re
import shutil
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import enginegate
from enginegate.cache import Store
from enginegate.engines import BuildHints
from enginegate.engines.api import embed_all
from enginegate.engines.build import build_engine, execution_flags
from enginegate.engines.onnxruntime import open_onnx
from enginegate.errors import EngineError
from enginegate.machine.gpus import find_gpus
from enginegate.models import Exported, Kind, ModelSpec
from enginegate.models.workload import default_corpus, hashed_tokenizer, make_workload
from enginegate.variants import Precision, Variant

from .tiny import write_bert

RAN = {Precision.FP16: "f16", Precision.BF16: "bf16", Precision.FP32: "f32"}
ROLES = {"input_ids": "ids", "attention_mask": "mask"}
RELOADED = (
    "enginegate.engines.int8",
    "enginegate.engines.tensorrt.inspector",
    "enginegate.engines.tensorrt.timing_cache",
    "enginegate.engines.tensorrt.device",
    "enginegate.engines.tensorrt.bindings_device",
    "enginegate.engines.tensorrt.pycuda_device",
    "enginegate.engines.tensorrt.log",
    "enginegate.engines.tensorrt.builder",
    "enginegate.engines.tensorrt.runner",
    "enginegate.engines.tensorrt.backend",
    "tensorrt",
)


PLUGIN = Path(enginegate.__file__).parents[1]
GIVEN_UP = ("streams", "events", "graphs", "host")
FREED = [*("execution context", "engine", "runtime"), *["memory"] * 3]


class Range:
    """A GPU to drill on, with a model, its reference, and a store of engines."""

    def __init__(self, state, folder, model):
        self.state, self.folder, self.model = state, folder, model
        self.workload = make_workload("corpus", default_corpus(), hashed_tokenizer(200, 8), ROLES)
        spec = ModelSpec("tiny", Kind.ONNX, str(model), vocab_size=200, seq_len=8)
        self.exported = Exported(spec, model, "hash", "here", None, ROLES, "sentence_embedding")

    def build(self, precision=Precision.FP32, store="store", **demanded):
        variant = Variant("tiny", "tensorrt", precision)
        demand = BuildHints(timings=self.folder / "timings", **demanded)
        target = Store(self.folder / store)
        return build_engine(target, variant, self.exported, self.workload, demand)

    def ran(self, built):
        """Types that ran, and the flags for them."""
        with built.load(self.workload, threads=1) as engine:
            return dict(engine.executed.matmuls), execution_flags(built, engine.executed)

    def end_process(self):
        """What happens then: nothing is on a stack, and the context is given up."""
        package = os.environ["ENGINEGATE_CUDA"]
        if package == "pycuda":
            from enginegate.engines.tensorrt.pycuda_device import primary_context
        else:
            from cuda.bindings.driver import cuDevicePrimaryCtxRelease

            from enginegate.engines.tensorrt.bindings_device import primary_context

            cuDevicePrimaryCtxRelease(0)
        primary_context.cache_clear()
        gc.collect()

    def change(self, **machine):
        """Another machine from now on."""
        vars(self.state).update(machine)
        if trt := sys.modules.get("tensorrt"):
            vars(trt)["__version__"] = self.state.tensorrt
        find_gpus.cache_clear()


@pytest.fixture
def firing_range(fake_gpu, tmp_path, tiny_onnx, monkeypatch):
    monkeypatch.setenv("ENGINEGATE_CUDA", "cuda-bindings")
    yield Range(fake_gpu, tmp_path, tiny_onnx)
    for name in RELOADED:
        sys.modules.pop(name, None)


def plant(monkeypatch, module, old, new):
    """Put a module with one line changed in the place of the real one."""
    path = PLUGIN / Path(*module.split(".")).with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{module} does not hold this line once: {old}"
    for name in RELOADED:
        sys.modules.pop(name, None)
    changed = types.ModuleType(module)
    monkeypatch.setitem(sys.modules, module, changed)
    exec(compile(source.replace(old, new), str(path), "exec"), changed.__dict__)  # noqa: S102


def runs(range_):
    """Right numbers for several batches, types proven, times taken, all freed in order."""
    reference = open_onnx(range_.model, "sentence_embedding", range_.workload.batch(2), threads=1)
    wanted = embed_all(reference, range_.workload.evaluation)
    built = range_.build()
    with built.load(range_.workload, threads=1) as engine:
        small = engine.embed(range_.workload.batch(3))
        found = embed_all(engine, range_.workload.evaluation)
        assert np.abs(found - wanted).max() < 1e-6, "wrong embeddings"
        assert np.array_equal(small, found[:3]), "the first answer changed"
        phases = engine.runner.phases
        ran = engine.executed.matmuls
        flags = execution_flags(built, engine.executed)
    assert (ran, flags) == ({"f32": 1}, ()), f"ran {ran}"
    assert min(phases.h2d_s, phases.compute_s, phases.d2h_s, phases.enqueue_s) > 0, "no times"
    assert range_.state.freed[-6:] == FREED, f"freed {range_.state.freed}"
    assert range_.state.faults == [], range_.state.faults
    if os.environ["ENGINEGATE_CUDA"] == "cuda-bindings":
        assert "graph launched" in range_.state.log, "no graph"
        left = {name: vars(range_.state)[name] for name in GIVEN_UP if vars(range_.state)[name]}
        assert left == {}, f"not given up: {left}"


def sets_only_what_changed(range_):
    """Nothing for a call like the one before, each input's shape for another, never an address."""
    with range_.build().load(range_.workload, threads=1) as engine:
        engine.embed(range_.workload.batch(3))
        known = len(range_.state.log)
        for rows in (3, 3, 5):
            engine.embed(range_.workload.batch(rows))
        log = [entry for entry in range_.state.log[known:] if " of " in entry]
    assert log == [f"shape of {name}" for name in ROLES], f"set: {log}"


def keeps_one_context(range_):
    """Over builds and loads, with nothing left on a stack; gone when the process ends."""
    built = range_.build()
    for _ in range(3):
        range_.ran(built)
    state = range_.state
    assert (state.made, state.retained) == (1, 1), f"made {state.made}, {state.retained} retained"
    assert (state.contexts, state.pycuda_contexts) == ([], []), "a context stayed current"
    range_.end_process()
    assert state.retained == 0, "the primary context was not released"


def refuses(words, act):
    with pytest.raises(EngineError) as caught:
        act()
    assert re.search(words, str(caught.value)), f"said: {caught.value}"


def refuses_a_failed_build(range_):
    range_.state.fails = {"build"}
    refuses("cannot build tiny-fp32.onnx: out of device memory", range_.build)


def refuses_a_profile(range_):
    range_.state.fails = {"add_optimization_profile"}
    refuses("refuses the shapes", range_.build)


def refuses_a_bad_operator(range_):
    graph = onnx.load(str(range_.model))
    last = graph.graph.node[-1]
    last.op_type, last.name = "Hardmax", "bad"
    onnx.save(graph, str(range_.model))
    refuses(r"node \d+ 'bad' \(Hardmax\): no importer.*; use another opset", range_.build)


def load_with(range_, call):
    built = range_.build()
    range_.state.fails = {call}
    return lambda: range_.ran(built)


def refuses_without_a_context(range_):
    refuses("cannot make a context", load_with(range_, "create_execution_context"))


def refuses_without_an_address(range_):
    refuses("refuses the address of input_ids", load_with(range_, "set_tensor_address"))


def refuses_a_failed_run(range_):
    refuses("cannot run the engine: CUDA error 700", load_with(range_, "execute_async_v3"))


def refuses_a_damaged_plan(range_):
    built = range_.build()
    (built.entry.folder / "engine.plan").write_bytes(b"junk")
    refuses("cannot load .*magic tag.*|cannot load .*engine.plan", lambda: range_.ran(built))


def refuses_a_plan_of_another(range_, **machine):
    built = range_.build()
    range_.change(**machine)
    refuses(r"was built by tensorrt .*, this is .*: a plan runs only", lambda: range_.ran(built))


def refuses_a_plan_of_another_gpu(range_):
    refuses_a_plan_of_another(range_, gpu="NVIDIA Other")


def refuses_a_plan_of_another_tensorrt(range_):
    refuses_a_plan_of_another(range_, tensorrt="11.3.0.99")


def takes_a_plan_of_another_driver(range_):
    """To compare drivers; a build of this one is another engine all the same."""
    built = range_.build()
    range_.change(driver=13010)
    assert range_.ran(built) == ({"f32": 1}, ())
    assert range_.build().entry.folder != built.entry.folder, "the plan of another driver"


def refuses_an_old_tensorrt(range_):
    import tensorrt as trt

    trt.__version__ = "8.6.1"
    refuses("8.6.1 is too old: 10.12 or newer is needed, which has int64", range_.build)


def refuses_a_batch_beyond_the_profile(range_):
    built = range_.build(largest_batch=32)
    with built.load(range_.workload, threads=1) as engine:
        too_many = range_.workload.batch(33)
        refuses(
            r"outside the engine's profile, from \(1, 1\) to \(32, 8\)",
            lambda: engine.embed(too_many),
        )
        assert len(engine.embed(range_.workload.batch(32))) == 32


def refuses_other_inputs(range_):
    built = range_.build()
    with built.load(range_.workload, threads=1) as engine:
        batch = range_.workload.batch(2)
        narrow = {name: values.astype(np.int32) for name, values in batch.items()}
        refuses("needs input_ids as int64, not", lambda: engine.embed(narrow))
        refuses("needs attention_mask", lambda: engine.embed({"input_ids": batch["input_ids"]}))


def takes_the_largest_batch(range_):
    built = range_.build(usual_batch=4, largest_batch=64)
    with built.load(range_.workload, threads=1) as engine:
        assert len(engine.embed(range_.workload.batch(64))) == 64


def runs_every_batch_size_in_its_own_profile(range_):
    """And between two of them in the one that goes so far."""
    reference = open_onnx(range_.model, "sentence_embedding", range_.workload.batch(2), threads=1)
    built = range_.build(batches=(1, 8), usual_batch=32, largest_batch=64)
    with built.load(range_.workload, threads=1) as engine:
        assert engine.runner.usual_shapes == [(1, 8), (8, 8), (32, 8)]
        for rows, profile in ((1, 0), (2, 1), (8, 1), (9, 2), (64, 2), (1, 0)):
            batch = range_.workload.batch(rows)
            off = np.abs(engine.embed(batch) - reference.embed(batch)).max()
            assert off < 1e-6, f"wrong embeddings of {rows}"
            assert range_.state.profiles[-1] == profile, f"{rows} rows in {range_.state.profiles}"
        refuses(
            r"profile, from \(1, 1\) to \(64, 8\)", lambda: engine.embed(range_.workload.batch(65))
        )


def timing_file(range_):
    (path,) = (range_.folder / "timings").iterdir()
    return path


def forgets_timings_of_another_gpu(range_):
    range_.build()
    mine = timing_file(range_)
    range_.change(gpu="NVIDIA Other")
    range_.build(store="other")
    (other,) = set((range_.folder / "timings").iterdir()) - {mine}
    shutil.copy(mine, other)
    range_.build(store="third")
    assert other.read_bytes() != mine.read_bytes()


def forgets_damaged_timings(range_):
    range_.build()
    path = timing_file(range_)
    path.write_bytes(path.read_bytes()[:-3])
    range_.build(store="other")


def flags_types_that_were_not_asked_for(range_):
    range_.state.run_instead = "f32"
    ran, flags = range_.ran(range_.build(Precision.FP16))
    assert ran == {"f32": 1}, f"ran {ran}"
    assert flags[0].startswith("fp16 requested, f32 ran: "), flags


def flags_tf32_where_it_is_allowed(range_):
    ran, flags = range_.ran(range_.build(tf32=True))
    assert ran == {"tf32": 1}, f"ran {ran}"
    assert "--gate-tf32 allows it" in flags[0]


def sees_the_kernels_of_the_usual_batch(range_):
    range_.state.run_instead_of_many = "f32"
    ran, flags = range_.ran(range_.build(Precision.FP16, usual_batch=8, batches=(1,)))
    assert ran == {"f16 or f32": 1}, f"ran {ran}"
    assert flags


def with_attention(range_):
    """The same range with a model that attends."""
    write_bert(range_.model, layers=2)
    return range_


def proves_an_attention(range_):
    """Eight kernels for sixteen products: q, k and v are one, so are both of an attention."""
    for precision, kind in RAN.items():
        ran, flags = with_attention(range_).ran(range_.build(precision))
        assert ran == {kind: 16}, f"{precision} ran {ran}"
        assert flags == ()


def keeps_the_types_on_tensorrt_10(range_):
    range_.change(tensorrt="10.16.1.11")
    assert range_.ran(range_.build(Precision.FP16)) == ({"f16": 1}, ())


def closes_after_an_error(range_):
    with pytest.raises(ZeroDivisionError), range_.build().load(range_.workload, 1):
        raise ZeroDivisionError
    assert range_.state.alive == {"runtime": 0, "engine": 0, "execution context": 0}
    assert (range_.state.contexts, range_.state.memory) == ([], {})


def tells_what_tensorrt_warned_of(range_):
    range_.state.warns = ("layernorm in FP16 may overflow",) * 2
    built = range_.build(Precision.FP16)
    assert built.notes == ("TensorRT warns: layernorm in FP16 may overflow",), built.notes
    range_.state.warns = tuple("abcdefg")
    told = range_.build(Precision.BF16).notes
    assert len(told) == 6, told
    assert told[-1] == "TensorRT warns: 2 more warnings"


def closes_after_a_kernel_failed(range_):
    """Every step is taken, and the error is the kernel's, not that of a step of closing."""
    built = range_.build()

    def run():
        with built.load(range_.workload, threads=1) as engine:
            range_.state.sticks_at = "an illegal memory access was encountered"
            range_.state.freed.clear()
            engine.embed(range_.workload.batch(2))

    refuses("CUDA: cuStreamSynchronize failed: an illegal memory access", run)
    assert range_.state.freed == FREED, f"freed {range_.state.freed}"
    assert range_.state.contexts == [], "a context stayed current"


def says_that_closing_failed(range_):
    """A kernel's error that nobody waited for."""
    built = range_.build()

    def run():
        with built.load(range_.workload, threads=1):
            range_.state.sticky = "unspecified launch failure"

    refuses("CUDA: cuStreamSynchronize failed: unspecified launch failure", run)


def leaves_an_attention_in_fp16(range_):
    """Its products have no weights: 12 of 16 in int8, which is what was asked for."""
    ran, flags = with_attention(range_).ran(range_.build(Precision.INT8))
    assert ran == {"i8": 12, "f16": 4}, f"ran {ran}"
    assert flags == (), f"elsewhere: {flags}"


def scales_every_column(range_):
    """Columns of very different size: each is off by half a step of its own at most."""
    from enginegate.engines.int8 import to_int8

    write_bert(range_.model, hidden=16)
    model = onnx.load(str(range_.model))
    (tensor,) = [t for t in model.graph.initializer if t.name == "layer.0/up/w"]
    wanted = numpy_helper.to_array(tensor) * np.geomspace(1e-2, 1, 64, dtype=np.float32)
    tensor.CopyFrom(numpy_helper.from_array(wanted, tensor.name))
    onnx.save(model, str(range_.model))
    to_int8(range_.model, range_.folder / "q.onnx", range_.workload.calibration)
    found = {t.name: t for t in onnx.load(range_.folder / "q.onnx").graph.initializer}
    steps, scales = (
        numpy_helper.to_array(
            next(t for n, t in found.items() if n.startswith(f"{tensor.name}/{k}"))
        )
        for k in ("int8", "scales")
    )
    off = np.abs(steps * scales.astype(np.float32) - wanted) / np.abs(wanted).max(axis=0)
    assert off.max() < 1 / 200, f"off by {off.max()}"


def runs_without_a_graph(range_):
    """What cannot be captured runs as it is, and the mode says why."""
    range_.state.fails = {"capture"}
    with range_.build().load(range_.workload, threads=1) as engine:
        first, second = (engine.embed(range_.workload.batch(3)) for _ in range(2))
        mode = engine.mode
    assert np.array_equal(first, second)
    graph = "pycuda has none"
    if os.environ["ENGINEGATE_CUDA"] == "cuda-bindings":
        graph = "cuStreamEndCapture failed: operation not permitted when capturing"
    assert mode.startswith(f"transfers in, CUDA graph off ({graph}), stream synchronised after")
    assert "graph launched" not in range_.state.log


def _fail() -> None:
    raise ZeroDivisionError


def captures_after_an_error(range_):
    """An inference that TensorRT refuses inside of a capture ends the capture too."""
    from enginegate.engines.tensorrt.device import open_device

    with open_device() as cuda:
        if not cuda.has_graphs:
            return
        stream = cuda.stream()
        with pytest.raises(ZeroDivisionError):
            cuda.capture(stream, _fail)
        stream.synchronize()
        cuda.capture(stream, lambda: None).close()
        stream.close()


def answers_every_shape_from_its_own_graph(range_):
    """In turns, as texts of an evaluation and of a last batch are."""
    reference = open_onnx(range_.model, "sentence_embedding", range_.workload.batch(2), threads=1)
    with range_.build(usual_batch=2).load(range_.workload, threads=1) as engine:
        for rows in (5, 2, 5, 32, 2, 5):
            batch = range_.workload.batch(rows)
            off = np.abs(engine.embed(batch) - reference.embed(batch)).max()
            assert off < 1e-6, f"wrong embeddings of {rows}"


FAULTS = tomllib.loads(
    (Path(__file__).parent / "data" / "tensorrt_faults.toml").read_text(encoding="utf-8")
)["fault"]


@pytest.mark.parametrize("cuda", ["cuda-bindings", "pycuda"])
@pytest.mark.parametrize("drill", sorted({fault["drill"] for fault in FAULTS}))
def test_the_code_as_it_is_passes_every_drill(firing_range, monkeypatch, drill, cuda):
    monkeypatch.setenv("ENGINEGATE_CUDA", cuda)
    globals()[drill](firing_range)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"].replace(" ", "-"))
def test_a_planted_fault_is_caught(firing_range, monkeypatch, fault):
    import fake_device

    monkeypatch.setenv("ENGINEGATE_CUDA", fault.get("cuda", "cuda-bindings"))

    def attempt():
        plant(monkeypatch, f"enginegate.{fault['module']}", fault["line"], fault["planted"])
        globals()[fault["drill"]](firing_range)

    firing_range.state.misused = True
    with pytest.raises((Exception, fake_device.Misuse, pytest.fail.Exception)) as caught:
        attempt()
    said = " / ".join(str(error) for error in chain_of(caught.value))
    assert re.search(fault["caught_by"], said, re.DOTALL), f"caught by: {said}"


def chain_of(error):
    """The error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
