"""The command line's options. Apart from their reading, so that having the plugin costs nothing."""

import pytest


def add_options(parser: pytest.Parser) -> None:
    """Add the plugin's options to pytest's."""
    group = parser.getgroup("enginegate", "may this engine ship?")
    add = group.addoption
    add(
        "--precision",
        action="append",
        default=[],
        metavar="P",
        help="precisions to judge: fp32, fp16, bf16, int8, best (comma-separated), or all",
    )
    add("--model", metavar="NAME", help="models to judge, comma-separated")
    add("--backend", metavar="NAME", help="auto (default), openvino, tensorrt, onnxruntime…")
    add("--workload", metavar="FILE", help="your own texts: .txt or .jsonl, one a line")
    add("--sts", metavar="FILE", help="labelled pairs of texts: .jsonl of a, b and score")
    add("--rebuilds", metavar="K", help="build each engine K times more, and see how they differ")
    add("--threads", metavar="N", help="threads an engine may use (default 1)")
    add("--tf32", action="store_true", default=None, help="fp32 on a GPU may multiply in TF32")
    add("--batches", metavar="N,N", help="batch sizes to time (default 1,8,16,32)")
    add("--replicates", metavar="N", help="times all engines are loaded anew (default 8)")
    add("--measure-s", metavar="S", help="seconds to spend on each batch size (default 8)")
    add("--max-time-per-variant", metavar="S", help="seconds until `undecided` (default 120)")
    add("--max-slowdown", metavar="X", help="largest slowdown that passes (default 0.05)")
    add("--max-slowdown-p99", metavar="X", help="the same of the p99 (default 0.1)")
    add("--gate", metavar="LEVEL", help="strict, normal (default), warn or off")
    add("--against", metavar="REF|DIR", help="measure beside saved engines")
    add("--against-python", metavar="EXE", help="measure beside the libraries of an interpreter")
    add("--save-engines", metavar="DIR", help="save the built engines for a later --against")
    add("--measure-seed", type=int, metavar="N", help="seed of loading order and placement")
    add("--baselines", metavar="DIR", help="folder of the baselines (default baselines/)")
    add(
        "--refresh-baselines",
        nargs="?",
        const="all",
        metavar="all|missing",
        help="measure anew and write the baselines",
    )
    add("--calibrate", action="store_true", help="measure what the gate is worth here")
    add("--dry-run", action="store_true", help="with --refresh-baselines: write nothing")
    add("--accept-regressions", action="store_true", help="a refresh may write what regressed")
    add("--history", action="store_true", default=None, help="append to baselines/history")
    add("--require-baseline", action="store_true", help="fail where there is none to compare with")
    add("--engine-cache", metavar="DIR", help="folder of exported models and built engines")
    add("--blame", action="store_true", help="say which layers do the damage to the embeddings")
    add("--repair", action="store_true", help="keep the fewest layers in fp32 that it takes")
    _add_serving(parser)
    add("--roofline", action="store_true", help="measure what this machine allows at most")
    add("--report-text", metavar="FILE", help="write the report as text")
    add("--report-json", metavar="FILE", help="write the report as JSON")
    add("--report-html", metavar="FILE", help="write the report as a page to look at")
    add("--report-markdown", metavar="FILE", help="write the report as a pull-request comment")


def _add_serving(parser: pytest.Parser) -> None:
    group = parser.getgroup("enginegate serving", "what load does this engine carry?")
    add = group.addoption
    add("--serve", metavar="triton|URL", help="serve on Triton, or drive a server that runs")
    add("--concurrency", metavar="SPEC", help="levels of load, 1:32 or 1,8,16 (default 1,2,4…32)")
    add("--max-batch-size", metavar="N", help="most texts in one execution (default 32)")
    add("--preferred-batch-sizes", metavar="N,N", help="sizes that the batcher waits for")
    add("--max-queue-delay-us", metavar="N", help="microseconds that it waits (default 0)")
    add("--instances", metavar="N", help="copies of the engine at the same time (default 1)")
    add("--load-driver", metavar="NAME", help="own (default) or perf_analyzer")
    add("--slo", metavar="P=TIME", help="find the rate that holds a latency, such as p99=20ms")
    add("--arrivals", metavar="NAME", help="open-loop spacing: poisson (default) or constant")
    add("--rates", metavar="N,N", help="open-loop rates to measure, requests per second")
    add("--model-repository", metavar="DIR", help="write the engines as a model repository too")
    add("--serve-timeout", metavar="S", help="seconds until a server must be ready (default 60)")
