"""Bad input gives one clear message, pytest's usage error where it is one, and loses nothing."""

import json

import pytest

from enginegate.verdicts import Exit

USAGE = 4
SERVE = ("--precision", "fp32", "--gate-serve", "triton")

BAD_OPTIONS = {
    ("--precision", "fp8"): "unknown precision 'fp8': use fp32, fp16, bf16, int8, best, or all",
    (
        "--precision",
        "fp32",
        "--gate-backend",
        "tflite",
    ): "unknown backend 'tflite': use auto, openvino",
    ("--precision", ","): "no precision named: use fp32, fp16, bf16, int8, best, or all",
    ("--precision", "bf16"): "backend faulty does not build bf16: it offers fp32, int8",
    (
        "--precision",
        "fp32",
        "--gate-model",
        "nope",
    ): "unknown model nope: defined are distilbert*tiny",
    (
        "--precision",
        "fp32",
        "--gate-threads",
        "many",
    ): "--gate-threads 'many' is not a positive int",
    (
        "--precision",
        "fp32",
        "--gate-measure-s",
        "-1",
    ): "--gate-measure-s '-1' is not a positive float",
    (
        "--precision",
        "fp32",
        "--gate-workload",
        "no.txt",
    ): "cannot read workload *no.txt*.txt or .jsonl",
    ("--precision", "fp32", "--gate-replicates", "2"): "--gate-replicates 2: at least 3 are needed",
    (
        "--precision",
        "fp32",
        "--gate-refresh-baselines",
        "tests",
    ): "--gate-refresh-baselines 'tests' is not",
    (
        "--precision",
        "fp32",
        "--gate-serve",
        "tritn",
    ): "--gate-serve 'tritn' is neither `triton` nor an address",
    (
        "--precision",
        "fp32",
        "--gate-serve",
        "http://host/m",
    ): "--gate-serve 'http://host/m' is neither*",
    (*SERVE, "--gate-concurrency", "8:1"): "--gate-concurrency '8:1' is an empty range",
    (*SERVE, "--gate-slo", "p42=1ms"): "--gate-slo 'p42=1ms' is not a figure and a time",
    (*SERVE, "--gate-max-batch-size", "4", "--gate-preferred-batch-sizes", "8"): (
        "--gate-preferred-batch-sizes 8 is more than --gate-max-batch-size 4"
    ),
    (
        *SERVE,
        "--gate-load-driver",
        "ab",
    ): "--gate-load-driver 'ab' is not one of own, perf_analyzer",
    (*SERVE, "--gate-calibrate"): "--gate-calibrate judges engines in this process",
    ("--precision", "fp32", "--gate-serve", "http://h:1/m", "--gate-instances", "2"): (
        "--gate-instances needs a server that is started: use --gate-serve triton"
    ),
    ("--precision", "fp32", "-n", "2"): "engines cannot be timed beside each other: run without -n",
}


@pytest.mark.parametrize("arguments", BAD_OPTIONS, ids=" ".join)
def test_a_bad_option_is_a_usage_error(project, arguments):
    result = project.run(*arguments)
    assert result.ret == USAGE
    result.stderr.fnmatch_lines([f"ERROR: {BAD_OPTIONS[arguments]}*"])


BAD_TABLES = {
    'onnx = "a"\nfactory = "b"': "needs exactly one of transformers",
    "seq_len = 8": "needs exactly one of transformers",
    'onnx = "a"\nseq_length = 8': "has unknown keys ['seq_length']",
    'onnx = "a"\nseq_len = 1': "seq_len = 1 is not a whole number, 2 or more",
    'onnx = "a"\ninputs = "ids"': "inputs = 'ids' is not a table of roles",
    'onnx = "a"\nlimits = {fp8 = {}}': "is not a table of numbers for each precision",
    'onnx = "a"\nlimits = {fp16 = {cosine_p1 = "x"}}': "is not a table of numbers",
    'transformers = "a"\npooling = "max"': "pooling = 'max' is not one of first, last, mean",
}


@pytest.mark.parametrize("table", BAD_TABLES)
def test_a_bad_model_table_is_a_usage_error(project, table):
    project.write("pyproject.toml", f"[tool.enginegate.models.mine]\n{table}\n")
    result = project.judge()
    assert result.ret == USAGE
    assert BAD_TABLES[table] in result.stderr.str()


def test_unknown_settings_are_a_usage_error(project):
    project.write("pyproject.toml", "[tool.enginegate]\nthread = 2\n")
    result = project.judge()
    assert result.ret == USAGE
    result.stderr.fnmatch_lines(["*has unknown keys [[]'thread'[]]*"])


MODELS = {
    'onnx = "missing.onnx"\nvocab_size = 9': "*missing.onnx does not exist*",
    'onnx = "junk.onnx"\nvocab_size = 9': "*junk.onnx is not an ONNX model*export it again*",
    'onnx = "tiny.onnx"': "*has no tokenizer: give `tokenizer`*or `vocab_size`*",
    'onnx = "tiny.onnx"\ntokenizer = "nowhere"': "tokenizer of model mine not found: *",
    'onnx = "tiny.onnx"\ntokenizer = "junk.onnx"': "*junk.onnx is not a tokenizer.json*",
    'onnx = "tiny.onnx"\nvocab_size=9\noutput = "x"': "*has outputs [[]'sentence_*: say*",
    'onnx = "tiny.onnx"\nvocab_size=9\ninputs = {a = "ids"}': "*inputs [[]'input_ids', *role*",
    'transformers = "no/such-model"': "*neither a folder nor to be had from the hub*",
    'transformers = "half"': "model mine: folder *half is not whole*fetch it again",
    'sentence_transformers = "half"': "model mine: folder *half is not whole*fetch it again",
    'transformers = "bare"': "model mine has no tokenizer: give `tokenizer`*or `vocab_size`*",
    'transformers = "bare"\ntokenizer = "half"': "tokenizer of model mine not found in *",
    'factory = "nowhere:make"': "*factory 'nowhere:make' failed with ModuleNotFoundError*",
}


@pytest.mark.parametrize("table", MODELS)
def test_a_bad_model_is_one_clear_error(project, table, monkeypatch, save_small_bert):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    project.write("junk.onnx", "junk")
    (project.path / "half").mkdir()
    project.write("half/config.json", json.dumps({"model_type": "bert"}))
    save_small_bert(project.path / "bare")
    settings = (
        f'[tool.enginegate]\nengine_cache = "cache"\n[tool.enginegate.models.mine]\n{table}\n'
    )
    project.write("pyproject.toml", settings)
    result = project.judge("--gate-backend", "onnxruntime", "-k", "embeddings", "--tb=short")
    result.assert_outcomes(errors=1, deselected=5)
    result.stdout.fnmatch_lines([MODELS[table]])
    assert "Traceback" not in result.stdout.str()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "workload *empty.txt holds 0 distinct texts: at least 8 are needed*"),
        ("few.jsonl", '{"text": "a"}\n' * 9, "workload *few.jsonl holds 1 distinct texts*"),
        ("bad.jsonl", "{", "workload *bad.jsonl, line 1 is not JSON*"),
        ("bad.jsonl", '{"body": "a"}', "workload *bad.jsonl, line 1: give a string or*"),
    ],
)
def test_a_bad_workload_is_a_usage_error(project, name, content, message):
    project.write(name, content)
    result = project.judge("--gate-workload", name)
    assert result.ret == USAGE
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


BROKEN = {
    "junk": lambda text: "junk",
    "50 MB of junk": lambda text: "x" * (50 << 20),
    "a merge conflict": lambda text: text + "<<<<<<< HEAD\n",
    "cut short": lambda text: text[: len(text) // 2],
    "a future schema": lambda text: text.replace('"schema": 2', '"schema": 99'),
    "schema 1": lambda text: text.replace('"schema": 2', '"schema": 1'),
    "a negative ratio": lambda text: text.replace('"p50": [ ', '"p50": [ -1, ', 1),
    "a negative time": lambda text: text.replace('"p50_s": ', '"p50_s": -', 1),
    "not a number": lambda text: text.replace('"p50": [ ', '"p50": [ NaN, ', 1),
    "wrong types": lambda text: text.replace('"variants": {', '"variants": 7, "x": {'),
}
SAID = {
    "50 MB of junk": "50 MB, at most 16 MB are read",
    "a merge conflict": "line * is a merge conflict marker: resolve it first",
    "a future schema": "written by a newer enginegate: schema 99, this one reads 2; upgrade*",
    "schema 1": "written by an older enginegate: schema 1, this one reads 2; it must be measured*",
    "a negative time": "$.variants*.p50_s: -* is less than or equal to the minimum of 0",
    "not a number": "NaN is not JSON",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_corrupt_baseline_is_one_clear_error_and_is_not_overwritten(project, fault):
    project.store()
    path = project.baseline()
    broken = BROKEN[fault](path.read_text())
    path.write_text(broken)
    result = project.judge("-k", "fp32-1")
    result.assert_outcomes(failed=1, deselected=3)
    said = SAID.get(fault, "*")
    expected = f"baseline *tiny.json is not valid ({said}*git checkout*--gate-refresh-baselines"
    result.stdout.fnmatch_lines([expected])
    assert result.ret == Exit.ERROR
    refreshed = project.judge("--gate-refresh-baselines")
    assert refreshed.ret != 0
    assert path.read_text() == broken


def test_a_full_disk_fails_the_refresh_and_leaves_the_old_baseline(project, fill_disk):
    project.store()
    before = project.baseline().read_text()
    fill_disk()
    result = project.judge("--gate-refresh-baselines")
    assert result.ret == Exit.ERROR
    result.stdout.fnmatch_lines(["ERROR: cannot write *No space left on device*"])
    assert project.baseline().read_text() == before
    assert [p.name for p in project.baseline().parent.iterdir()] == ["tiny.json"]


def test_an_unwritable_cache_is_one_clear_error(project):
    project.write("cache", "a file where the folder should be")
    result = project.judge("-k", "embeddings")
    result.assert_outcomes(errors=1, deselected=3)
    result.stdout.fnmatch_lines(["cannot write the engine cache *--gate-engine-cache*"])


def test_an_unwritable_report_fails_the_run(project):
    result = project.judge("-k", "embeddings", "--gate-report-text", "tiny.onnx/report.txt")
    assert result.ret == Exit.ERROR
    result.stdout.fnmatch_lines(["ERROR: cannot write *"])
