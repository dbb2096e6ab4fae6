"""`enginegate sweep` on the reference report's own figures, and on files that are none."""

from pathlib import Path

import pytest

from enginegate.cli import main

REFERENCE = Path(__file__).parent / "data" / "reference_sweep.csv"


def test_the_reference_sweep_in_words(capsys):
    assert main(["sweep", str(REFERENCE)]) == 0
    said = capsys.readouterr().out
    assert "int8: cliff at concurrency 3-15" in said
    assert "int8: suspected cause: queue delay" in said
    assert "onnx: saturated from concurrency 2 on" in said
    for engine in ("fp16", "fp32", "best"):
        assert f"{engine}: cliff" not in said
    assert "int8's largest throughput (8100 infer/sec) is below fp16's (11034)" in said
    assert "fp16 equals best within a few per cent" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the sweep"),
        ("a,b\n1,2\n", "line 1: the columns are"),
        ("engine,concurrency,infer_per_sec,avg_latency_usec\nx,1,-5,7\n", "line 2: all three"),
    ],
)
def test_a_file_that_is_no_sweep_is_one_clear_error(tmp_path, capsys, content, message):
    path = tmp_path / "sweep.csv"
    if content is not None:
        path.write_text(content)
    assert main(["sweep", str(path)]) == 1
    assert message in capsys.readouterr().err
