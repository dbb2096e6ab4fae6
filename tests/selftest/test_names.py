"""A model's name can name a file and nothing else, wherever it is read."""

import json

import pytest

from enginegate.baselines.history import append_history, read_history
from enginegate.baselines.store import Baselines, Update, read_content
from enginegate.engines.saved import saved_engine
from enginegate.errors import BaselineError, OptionError
from enginegate.models import Kind, ModelSpec, specs_from
from enginegate.variants import Precision, Variant, name_fault

from .reports import MACHINE, renamed, result

NAMES = ("a", "minilm", "Qwen3-Embedding-0.6B", "_x", "1.5", "a..b", "x" * 100)
NO_NAMES = (
    *(
        "",
        ".",
        "..",
        "...",
        ".hidden",
        "-rf",
        "../../x",
        "/abs",
        "a/b",
        "a\\b",
        "a b",
        "a\n",
        "a\0b",
    ),
    *("~", "a:b", "C:x", "*", "größe", "\u202ea", "\ud800", "x" * 101, "@all", "a|b", "$HOME"),
    *("calibration", "Calibration"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_taken_everywhere(name, tmp_path):
    assert name_fault(name) == ""
    assert ModelSpec(name, Kind.ONNX, "x.onnx").name == name
    assert Baselines(tmp_path, MACHINE).path(name).parent == tmp_path / MACHINE.id


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_what_is_no_name_is_refused_everywhere_and_nothing_is_written(name, tmp_path):
    root = tmp_path / "deep" / "baselines"
    baselines, spoiled = Baselines(root, MACHINE), renamed([result()], name)
    ways = (
        lambda: ModelSpec(name, Kind.ONNX, "x.onnx"),
        lambda: specs_from({name: {"onnx": "x.onnx"}}, tmp_path),
        lambda: baselines.save(name, [Update(spoiled[0], replace=True)]),
        lambda: baselines.load(name),
        lambda: baselines.other_machines(name),
        lambda: append_history(spoiled, root, MACHINE.id, tmp_path),
        lambda: saved_engine(root, Variant(name, "openvino", Precision.FP32)),
    )
    for way in ways:
        with pytest.raises(OptionError, match=r"no name of a model|cannot be named") as caught:
            way()
        assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


def saved_baseline(root, model):
    return Baselines(root, MACHINE).save(model, [Update(result(model=model), replace=True)])


@pytest.mark.parametrize(
    ("inside", "said"),
    [("../../x", "is no name of a model"), ("Mine", "it is of Mine, not of mine")],
)
def test_a_stored_name_is_checked_as_it_is_read(tmp_path, inside, said):
    path = saved_baseline(tmp_path, "mine")
    assert read_content(path)["model"] == "mine"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": inside}))
    with pytest.raises(BaselineError, match=said):
        Baselines(tmp_path, MACHINE).load("mine")


def test_a_history_is_looked_for_by_its_name_alone(tmp_path):
    append_history([result(model="mine")], tmp_path, MACHINE.id, tmp_path)
    assert len(read_history(tmp_path, "mine")) == 2
    for name in ("*", "../history/*/mine", "m?ne"):
        with pytest.raises(BaselineError, match="no history of"):
            read_history(tmp_path, name)


def test_names_that_some_disks_take_for_one_are_a_usage_error(project):
    table = '[tool.enginegate.models.{}]\nonnx = "tiny.onnx"\nvocab_size = 200\n'
    project.write("pyproject.toml", table.format("mine") + table.format("Mine"))
    run = project.run("--precision", "fp32", "--collect-only")
    assert run.ret == 4
    run.stderr.fnmatch_lines(["ERROR: models mine, Mine differ only in capitals*"])
    assert (
        project.run("--precision", "fp32", "--collect-only", "--gate-model", "mine,mine").ret == 0
    )


@pytest.mark.parametrize("name", ["../../x", "/abs", "calibration"])
def test_a_hostile_table_is_a_usage_error(project, name):
    project.write("pyproject.toml", f'[tool.enginegate.models."{name}"]\nonnx = "tiny.onnx"\n')
    run = project.judge()
    assert run.ret == 4
    run.stderr.fnmatch_lines(["ERROR: *"])
