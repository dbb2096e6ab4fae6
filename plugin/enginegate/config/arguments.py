"""Every option, once: for pytest's parser, for the reading and for the tables of the docs."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from enginegate.config.serving import Arrivals, Driver, slo
from enginegate.config.settings import (
    Option,
    choice,
    count,
    count_or_zero,
    counts,
    path,
    program,
    raw,
    seconds,
    switch,
    text,
    words,
)
from enginegate.config.shard import shard
from enginegate.variants import Precision
from enginegate.verdicts import GateLevel, Refresh

if TYPE_CHECKING:
    import pytest

# fmt: off
GATE = (
    Option("precision", "P", raw,
           "precisions to judge: fp32, fp16, bf16, int8, best (comma-separated), or all",
           attribute="precisions", argparse={"action": "append"}, key=False),
    Option("model", "NAME", words, "models to judge, comma-separated", attribute="models"),
    Option("backend", "NAME", text, "{} (default), openvino, tensorrt, onnxruntime…", "auto"),
    Option("workload", "FILE", path, "your own texts: .txt or .jsonl, one a line"),
    Option("sts", "FILE", path, "labelled pairs of texts: .jsonl of a, b and score"),
    Option("rebuilds", "K", count, "build each engine K times more, and see how they differ", 0),
    Option("threads", "N", count, "threads an engine may use (default {})", 1),
    Option("tf32", "", switch, "fp32 on a GPU may multiply in TF32"),
    Option("batches", "N,N", counts, "batch sizes to time (default {})", (1, 8, 16, 32)),
    Option("replicates", "N", count, "times all engines are loaded anew (default {})", 12),
    Option("measure_s", "S", seconds, "seconds to spend on each batch size (default {})", 6.0),
    Option("max_time_per_variant", "S", seconds, "seconds until `undecided` (default {})",
           120.0, attribute="max_time_s"),
    Option("max_slowdown", "X", seconds, "largest slowdown that passes (default {})", 0.05),
    Option("max_slowdown_p99", "X", seconds, "the same of the p99 (default {})", 0.1),
    Option("gate", "LEVEL", choice, "strict, {} (default), warn or off", GateLevel.NORMAL,
           word="level"),
    Option("against", "REF|DIR", text, "measure beside saved engines", key=False),
    Option("against_python", "EXE", program, "measure beside the libraries of an interpreter",
           key=False),
    Option("measure_identical", "", switch, "time an engine though it is its baseline's own",
           key=False),
    Option("save_engines", "DIR", path, "save the built engines for a later --gate-against",
           key=False),
    Option("measure_seed", "N", raw, "seed of loading order and placement",
           attribute="seed", argparse={"type": int}, key=False),
    Option("baselines", "DIR", path, "folder of the baselines (default {})", "baselines/"),
    Option("refresh_baselines", "all|missing", choice, "measure anew and write the baselines",
           Refresh.NONE, attribute="refresh", argparse={"nargs": "?", "const": "all"}, key=False),
    Option("sessions", "N", count, "sessions of a refresh, in fresh processes (default {})", 3),
    Option("calibrate", "", switch, "measure what the gate is worth here", key=False),
    Option("dry_run", "", switch, "with --gate-refresh-baselines: write nothing", key=False),
    Option("accept_regressions", "", switch, "a refresh may write what regressed", key=False),
    Option("history", "", switch, "append to baselines/history, as a refresh does"),
    Option("require_baseline", "", switch, "fail where there is none to compare with", key=False),
    Option("shard", "K/N", shard, "run the K-th of N parts; K/NxM on each of M kinds of machines",
           key=False),
    Option("kind", "NAME", text, "name of this kind of machine among those of a fleet", key=False),
    Option("fleet", "auto|ADDRESS", text, "run the shards on the machines of a Ray cluster",
           key=False),
    Option("engine_cache", "DIR", path, "folder of exported models and built engines"),
    Option("blame", "", switch, "say which layers do the damage to the embeddings", key=False),
    Option("repair", "", switch, "keep the fewest layers in fp32 that it takes", key=False),
    Option("roofline", "", switch, "measure what this machine allows at most", key=False),
    Option("report_text", "FILE", path, "write the report as text", key=False),
    Option("report_json", "FILE", path, "write the report as JSON", key=False),
    Option("report_html", "FILE", path, "write the report as a page to look at", key=False),
    Option("report_markdown", "FILE", path, "write the report as a pull-request comment",
           key=False),
)
SERVING = (
    Option("serve", "triton|URL", text, "serve on Triton, or drive a server that runs", key=False),
    Option("concurrency", "SPEC", counts, "levels of load, 1:32 or 1,8,16 (default 1,2,4…32)",
           (1, 2, 4, 8, 16, 32)),
    Option("max_batch_size", "N", count, "most texts in one execution (default {})", 32),
    Option("preferred_batch_sizes", "N,N", counts, "sizes that the batcher waits for", ()),
    Option("max_queue_delay_us", "N", count_or_zero, "microseconds that it waits (default {})", 0),
    Option("instances", "N", count, "copies of the engine at the same time (default {})", 1),
    Option("load_driver", "NAME", choice, "{} (default) or perf_analyzer", Driver.OWN),
    Option("slo", "P=TIME", slo, "find the rate that holds a latency, such as p99=20ms"),
    Option("arrivals", "NAME", choice, "open-loop spacing: {} (default) or constant",
           Arrivals.POISSON),
    Option("rates", "N,N", words, "open-loop rates to measure, requests per second"),
    Option("model_repository", "DIR", path, "write the engines as a model repository too",
           key=False),
    Option("serve_timeout", "S", seconds, "seconds until a server must be ready (default {})",
           60.0),
)
# fmt: on
_GROUPS = (
    ("enginegate", "enginegate: may this engine ship?", GATE),
    ("enginegate serving", "enginegate: what load does this engine carry?", SERVING),
)
_SWITCH = {"action": "store_true", "default": None}  # None: not given, the table is asked
_VALUED = {option.flag for option in (*GATE, *SERVING) if option.metavar}
PRECISION = "--precision"


def add_options(parser: "pytest.Parser") -> None:
    """Add the plugin's options to pytest's."""
    for name, title, options in _GROUPS:
        group = parser.getgroup(name, title)
        for option in options:
            group.addoption(option.flag, **_described(option))


def add_precision(parser: "pytest.Parser") -> None:
    """Add `--precision`, unless another plugin or a conftest.py has it."""
    import pytest

    try:
        _, unknown = parser.parse_known_and_unknown_args([f"{PRECISION}={Precision.FP32}"])
    except pytest.UsageError:  # theirs takes no such value
        return
    if unknown:
        parser.getgroup("enginegate").addoption(PRECISION, **_described(GATE[0]))


def join_values(args: Iterable[str]) -> list[str]:
    """The arguments with each of our options and its value in one word, `--flag=value`."""
    joined: list[str] = []
    for word in map(str, args):
        if joined and _takes(joined[-1], word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _takes(flag: str, word: str) -> bool:
    if flag == PRECISION:  # it may be somebody else's
        return set(word.lower().split(",")) <= {*Precision, "all"}
    return flag in _VALUED and not word.startswith("-")


def _described(option: Option) -> dict[str, Any]:
    """The arguments of addoption but the flag."""
    kind = {"metavar": option.metavar, **option.argparse} if option.metavar else _SWITCH
    return {"dest": option.dest, "help": option.help.format(option.written), **kind}
