"""Nothing is lost and nothing is left: damaged files, damaged entries, stopped and killed runs."""

import dataclasses
import fnmatch
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from enginegate.baselines.history import Note, read_history
from enginegate.cache import MANIFEST, Store
from enginegate.cli import main
from enginegate.errors import (
    BaselineError,
    EngineGateError,
    FileError,
    ModelError,
    OptionError,
)
from enginegate.files import (
    SUFFIX,
    locked,
    parse_json,
    reading,
    scratch_folder,
    sweep,
    write_atomic,
)
from enginegate.models.sources import locate
from enginegate.models.spec import Kind, ModelSpec, specs_from
from enginegate.session import again
from enginegate.verdicts import Exit

DAMAGED = {
    "brackets": ("[" * 200_000, "brackets are nested too deep"),
    "5,000 digits": ("9" * 5_000, "a number of 5000 digits is too large"),
    "1e400": ("1e400", "the number 1e400 is too large"),
    "10^400": ("1" + "0" * 400, "a number of 401 digits is too large"),
    "NaN": ("NaN", "NaN is not JSON"),
    "half a character": ('{"a": "\\ud800"}', "surrogates not allowed"),
    "cut short": ('{"a": ', "Expecting value: line 1"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_json_is_one_error(name):
    text, said = DAMAGED[name]
    with pytest.raises(ValueError, match=said):
        parse_json(text)


def test_what_sessions_tell_each_other_holds_no_nan(tmp_path):
    path = tmp_path / "speeds.json"
    again._write(path, {"p50_s": [0.1]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        again._write(path, {"p50_s": [float("nan")]})
    assert again._read(path) == {"p50_s": [0.1]}


def test_whole_json_is_read():
    assert parse_json('{"a": [1, -2.5, "\\ud83d\\ude00"]}') == {"a": [1, -2.5, "\U0001f600"]}


@pytest.mark.parametrize("error", [KeyError("a"), TypeError("b"), OverflowError("c"), OSError(5)])
def test_whatever_damage_brings_about_names_the_file_and_the_way_out(tmp_path, error):
    with (
        pytest.raises(BaselineError, match=r"x\.json.*; restore it"),
        reading(tmp_path / "x.json", "baseline", "restore it", BaselineError),
    ):
        raise error


HISTORIES = {
    "not UTF-8": b"\xff\xfe",
    "brackets": b"[" * 200_000,
    "a missing key": b'{"date": "2026-01-01"}',
    "wrong types": json.dumps({f.name: [] for f in dataclasses.fields(Note)}).encode(),
    "a number": b"7",
}


@pytest.mark.parametrize("name", HISTORIES)
def test_a_damaged_history_is_one_error(tmp_path, name):
    path = tmp_path / "history" / "here" / "tiny.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(HISTORIES[name])
    with pytest.raises(BaselineError, match=r"history .*tiny\.jsonl is not valid .*with git"):
        read_history(tmp_path, "tiny")


def test_a_damaged_history_is_kept_and_keeps_no_report_back(project):
    project.judge("--gate-history")
    (path,) = project.path.glob("baselines/history/*/tiny.jsonl")
    path.write_bytes(b"\xff")
    reports = (
        "--gate-report-json=r.json",
        "--gate-report-text=r.txt",
        "--gate-report-markdown=r.md",
    )
    result = project.judge("--gate-history", "--gate-report-html=r.html", *reports)
    assert result.ret == Exit.ERROR
    result.stdout.fnmatch_lines(["ERROR: history *tiny.jsonl is not valid *; remove the line*"])
    assert path.read_bytes() == b"\xff"
    for name in ("r.json", "r.txt", "r.md", "r.html"):
        assert (project.path / name).stat().st_size > 0


def test_a_fault_of_our_own_in_one_report_keeps_no_other_back(project, monkeypatch):
    def broken(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr("enginegate.session.finish.run_markdown", broken)
    result = project.judge(
        "--gate-report-markdown=r.md", "--gate-report-json=r.json", "--gate-report-text=r.txt"
    )
    assert result.ret == Exit.ERROR
    result.stdout.fnmatch_lines(["ERROR: *r.md failed with RuntimeError (planted) in *the rest*"])
    assert not (project.path / "r.md").exists()
    assert json.loads((project.path / "r.json").read_text())["results"]
    assert (project.path / "r.txt").exists()


def test_halves_of_characters_are_written_as_escapes(tmp_path):
    write_atomic(tmp_path / "a.txt", "a\udcffb")
    assert (tmp_path / "a.txt").read_text() == "a\\udcffb"


def test_a_full_disk_and_a_read_only_folder_name_the_file_and_the_way_out(tmp_path, fill_disk):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.json", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(FileError, match=r"cannot write .*free space"):
            write_atomic(path, "new")
    fill_disk()
    with pytest.raises(FileError, match=r"cannot write .*b\.json: No space left on device; .*free"):
        write_atomic(tmp_path / "b.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def spoil_manifest(**changes):
    def spoil(folder):
        path = folder / MANIFEST
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def instead(make):
    def spoil(folder):
        folder.rename(folder.with_name("moved"))
        make(folder)

    return spoil


ENTRIES = {
    "properties changed": spoil_manifest(properties={"hint": "bf16"}),
    "properties of another type": spoil_manifest(properties=7),
    "files of another type": spoil_manifest(files=[1]),
    "another key": spoil_manifest(key={"a": 2}),
    "no hash, as of an older version": spoil_manifest(sha256=""),
    "a list": lambda folder: (folder / MANIFEST).write_text("[1, 2]"),
    "brackets": lambda folder: (folder / MANIFEST).write_text("[" * 200_000),
    "not UTF-8": lambda folder: (folder / MANIFEST).write_bytes(b"\xff"),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "a folder for a manifest": lambda f: ((f / MANIFEST).unlink(), (f / MANIFEST).mkdir()),
    "a file more": lambda folder: (folder / "more").write_text(""),
    "a file less": lambda folder: (folder / "engine").unlink(),
    "a link to nowhere for a file": lambda f: (
        (f / "engine").unlink(),
        (f / "engine").symlink_to("nowhere"),
    ),
    "a file in its place": instead(lambda folder: folder.write_text("junk")),
    "a link in its place": instead(lambda folder: folder.symlink_to("moved")),
    "a link to nowhere in its place": instead(lambda folder: folder.symlink_to("nowhere")),
    "an empty folder": instead(lambda folder: folder.mkdir()),
    "an entry of another key": instead(
        lambda folder: (
            Store(folder.parents[1]).get_or_build("engine", {"a": 2}, build).folder.rename(folder)
        )
    ),
}


def build(folder):
    (folder / "engine").write_text("engine")
    return {"hint": "f32", "by batch": {1: 0.5, 16: 0.25}}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_damaged_entry_is_built_again(tmp_path, name):
    store = Store(tmp_path)
    first = store.get_or_build("engine", {"a": 1}, build)
    ENTRIES[name](first.folder)
    again = store.get_or_build("engine", {"a": 1}, build)
    assert (again.built, again.properties) == (True, first.properties)
    assert "cached entry" in again.note
    assert "it was built again" in again.note
    assert (again.folder / "engine").read_text() == "engine"
    assert not store.get_or_build("engine", {"a": 1}, build).built
    assert not list(tmp_path.glob(f"*/.*{SUFFIX}"))


HANG = """
import time, pytest
def test_first(measure, batch_size, gate):
    gate.check_speed(measure(batch_size))
def test_last(engine):
    open("ready", "w").close()
    time.sleep(600)
"""
BRIEF = ("--precision=fp32", "--gate-measure-s=0.04", "--gate-max-time-per-variant=6")


@pytest.mark.parametrize(
    ("number", "by"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C*")]
)
def test_a_stopped_run_reports_what_it_knows_and_says_so(project, number, by):
    project.write("test_hang.py", HANG)
    names = ("json", "html", "markdown", "text")
    reports = [f"--gate-report-{name}=r.{name}" for name in names]
    command = [sys.executable, "-m", "pytest", "test_hang.py", "--gate-refresh-baselines"]
    run = subprocess.Popen(
        [*command, *BRIEF, *reports], cwd=project.path, stdout=subprocess.PIPE, text=True
    )
    while not (project.path / "ready").exists() and run.poll() is None:
        time.sleep(0.1)
    run.send_signal(number)
    said, _ = run.communicate()
    assert run.returncode == pytest.ExitCode.INTERRUPTED
    assert "INTERRUPTED (" in said
    whole = json.loads((project.path / "r.json").read_text())
    assert whole["interrupted"].startswith(by.removesuffix("*"))
    assert [len(result["speeds"]) for result in whole["results"]] == [2]
    for name in names[1:]:
        text = (project.path / f"r.{name}").read_text()
        assert "INTERRUPTED" in text
        assert "1 may ship" not in text
    assert not list(project.path.glob("baselines/*/tiny.json"))


def test_a_run_that_comes_to_its_end_says_nothing_of_it(project):
    before = signal.getsignal(signal.SIGTERM)
    result = project.judge("--gate-report-json=r.json")
    assert "interrupted" not in json.loads((project.path / "r.json").read_text())
    assert "INTERRUPTED" not in result.stdout.str()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_a_plugin_stops_is_not_green(project):
    """As pytest-timeout does at the end of --session-timeout."""
    project.write("conftest.py", (project.path / "conftest.py").read_text() + STOP)
    result = project.judge("--gate-report-json=r.json")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    whole = json.loads((project.path / "r.json").read_text())
    assert whole["interrupted"] == "session-timeout: 1 sec exceeded"


STOP = """
def pytest_runtest_teardown(item):
    item.session.shouldfail = "session-timeout: 1 sec exceeded"
"""


def test_sigterm_is_left_alone_without_a_precision_and_to_who_has_it(project):
    project.write(
        "test_signal.py",
        "import signal\ndef test(): assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n",
    )
    assert project.run("test_signal.py").ret == 0

    def own(*_):
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        project.judge("-k", "embeddings")
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


HOLDER = """
import contextlib, sys, time
from pathlib import Path
from enginegate.files import locked, scratch_file, scratch_folder
here = Path(sys.argv[1])
with scratch_folder("enginegate-", here) as f, scratch_file(here / "r.json"), locked(here / "b"):
    (f / "inside").write_text("x")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """A living process that holds a folder, a file and a lock in the folder given."""
    monkeypatch.setenv("ENGINEGATE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "held").mkdir()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "held")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def held(tmp_path):
    places = ((tmp_path / "held", ".*"), (tmp_path / "held", "enginegate-*"))
    return (*places, (tmp_path / "cache" / "locks", "*"))


def test_what_a_living_run_holds_is_left_and_what_a_killed_one_left_is_swept(
    tmp_path, holder, monkeypatch
):
    monkeypatch.setattr("enginegate.files.scratch._YOUNG_S", 0)
    assert [path for place in held(tmp_path) for path in sweep(*place)] == []
    holder.kill()
    holder.wait()
    assert len([path for place in held(tmp_path) for path in sweep(*place)]) == 3
    assert list((tmp_path / "held").iterdir()) == []
    assert list((tmp_path / "cache" / "locks").iterdir()) == []


def test_what_is_young_or_anothers_is_not_swept(tmp_path, monkeypatch):
    left = tmp_path / f"enginegate-a{SUFFIX}"
    left.mkdir()
    (tmp_path / f"enginegate-b{SUFFIX}").symlink_to(left)
    assert list(sweep(tmp_path, "enginegate-*")) == []
    os.utime(left, (1, 1))
    monkeypatch.setattr("enginegate.files.scratch.os.getuid", lambda: os.geteuid() + 1)
    assert list(sweep(tmp_path, "enginegate-*")) == []
    monkeypatch.undo()
    assert list(sweep(tmp_path, "enginegate-*")) == [left]


def test_a_lock_lies_in_the_cache_folder_and_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setenv("ENGINEGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("enginegate.files.scratch._LOCK_WAIT_S", 0)
    with locked(tmp_path / "a.json"):
        assert len(list((tmp_path / "cache" / "locks").iterdir())) == 1
        with (
            pytest.raises(TimeoutError, match="another run has been writing"),
            locked(tmp_path / "a.json"),
        ):
            pass
    assert list((tmp_path / "cache" / "locks").iterdir()) == []


def test_the_next_run_sweeps_what_a_killed_one_left(project, monkeypatch):
    temporary = project.path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("ENGINEGATE_CACHE", str(project.path / "own"))
    left = [
        temporary / f"enginegate-server-1{SUFFIX}",
        temporary / f"enginegate-against-1{SUFFIX}",
        project.path / "cache" / "server" / f".building-1{SUFFIX}",
        project.path / "cache" / "engine" / f".tensorrt-1{SUFFIX}",
        project.path / "own" / "locks" / f"1{SUFFIX}",
        project.path / "baselines" / "here" / f".tiny.json.1{SUFFIX}",
        project.path / f".r.json.1{SUFFIX}",
    ]
    for path in left:
        path.mkdir(parents=True)
        os.utime(path, (1, 1))
    with scratch_folder("enginegate-", temporary) as mine:
        os.utime(mine, (1, 1))
        project.judge("-k", "embeddings", "--gate-report-json=r.json")
        assert [path.name for path in left if path.exists()] == []
        assert mine.exists()


def without(monkeypatch, *packages):
    """As where the packages are not installed, and one has left an empty folder behind."""
    from importlib.machinery import ModuleSpec
    from importlib.util import find_spec

    left = ModuleSpec(packages[0], None, is_package=True)
    gone = {**dict.fromkeys(packages), packages[0]: left}
    monkeypatch.setattr(
        "enginegate.engines.registry.find_spec",
        lambda name: gone[name] if name in gone else find_spec(name),
    )


@pytest.mark.parametrize("backend", ["auto", "openvino", "onnxruntime", "faulty"])
def test_a_missing_extra_is_one_error_at_the_start(project, monkeypatch, backend):
    without(monkeypatch, "onnxruntime", "openvino", "nncf")
    result = project.run("--precision=fp32", f"--gate-backend={backend}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line]
    assert line.startswith("ERROR: backend ")
    assert "onnxruntime not installed: pip install 'pytest-enginegate[cpu]'" in line


def test_the_doctor_says_what_the_run_would_and_lists_every_extra(monkeypatch, capsys):
    import importlib.metadata

    main(["doctor"])
    assert "a run would end at once" not in capsys.readouterr().out
    without(monkeypatch, "onnxruntime", "openvino", "nncf")
    main(["doctor"])
    said = capsys.readouterr().out
    assert "a run would end at once: backend openvino cannot run here: openvino, nncf" in said
    extras = importlib.metadata.metadata("pytest-enginegate").get_all("Provides-Extra")
    assert [line.split()[1] for line in said.splitlines() if line.startswith("extra ")] == extras
    assert "onnxruntime-gpu" in said


def broken_zip(folder):
    (folder / "model.zip").write_bytes(b"junk")


def cut_zip(folder):
    with zipfile.ZipFile(folder / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}" * 10_000)
    whole = (folder / "model.zip").read_bytes()
    (folder / "model.zip").write_bytes(whole[:40] + b"\xff" * 20 + whole[60:])


PACKAGES = {
    "missing": ("absent", None, "the package 'absent', which is not installed: pip install absent"),
    "missing.sub": ("absent.sub", None, "'absent.sub', which is not installed"),
    "no name": ("../x", None, "'../x', which is not installed"),
    "empty": ("", None, "the package '', which is not installed"),
    "no zip": ("carrier", lambda folder: None, "there is no *model.zip; install it again"),
    "broken zip": ("carrier", broken_zip, "model.zip is damaged (File is not a zip file); install"),
    "damaged zip": ("carrier", cut_zip, "model.zip is damaged (*); install it again"),
}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_carries_no_model_is_one_error(tmp_path, monkeypatch, name):
    package, spoil, said = PACKAGES[name]
    if spoil:
        (tmp_path / "carrier").mkdir()
        (tmp_path / "carrier" / "__init__.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
        spoil(tmp_path / "carrier")
    spec = ModelSpec(name="mine", kind=Kind.TRANSFORMERS, source=f"package:{package}")
    with pytest.raises(ModelError) as caught:
        locate(spec, Store(tmp_path / "cache"))
    assert fnmatch.fnmatch(str(caught.value), f"model mine*{said.replace('[', '[[]')}*")
    monkeypatch.undo()


NAMES = {"300 characters": "x" * 300, "NUL": "a\0b", "nobody's home": "~no-such-user/x", "": ""}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", Kind)
def test_a_source_that_can_be_nothing_is_one_error(tmp_path, name, kind):
    with pytest.raises(OptionError, match=rf"enginegate\.models\.mine\]: {kind} = "):
        specs_from({"mine": {kind: NAMES[name]}}, tmp_path)


def test_every_error_of_ours_is_of_the_family():
    from enginegate import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert all(issubclass(kind, EngineGateError) for kind in kinds)
