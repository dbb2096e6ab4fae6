"""Other programs: git, and child processes that take orders and answer."""

import contextlib
import sys

import pytest

from enginegate.machine import NO_PROGRAM, Child, git
from enginegate.serving.measure import processor_s

LONG_S = 60.0  # of what takes no time on a quiet machine
ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


@contextlib.contextmanager
def child(script):
    with contextlib.closing(Child([sys.executable, "-c", script])) as started:
        yield started


def test_every_order_has_its_answer_whatever_its_length():
    with child(ECHO) as echo:
        for length in (1, 1 << 18, 2):
            echo.order(said="x" * length)
            assert echo.answer(LONG_S) == {"said": "x" * length}


def test_answers_that_come_together_are_told_apart():
    with child("import os; os.write(1, b'1\\n2\\n3\\n'); input()") as three:
        for number in (1, 2, 3):
            assert three.has_answer(LONG_S)
            assert three.answer() == number
        assert not three.has_answer(0)


def test_a_child_that_keeps_silent():
    with child("input()") as silent, pytest.raises(TimeoutError, match="does not answer"):
        silent.answer(0)


def test_a_child_that_has_ended_takes_orders_and_gives_its_status():
    with child("raise SystemExit(3)") as ended:
        assert ended.has_answer(LONG_S)
        ended.order(do="this")
        with pytest.raises(EOFError, match="ended with status 3"):
            ended.answer()


BUSY = """import sys, time
while time.process_time() < 0.3: pass
print(1, flush=True)
sys.stdin.read()"""
STARTS_IT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BUSY!r}])"


def test_processor_time_is_also_that_of_what_a_process_started():
    with child(STARTS_IT) as parent:
        assert parent.answer(LONG_S) == 1
        assert processor_s(parent._process.pid) >= 0.25
    assert processor_s(parent._process.pid) == 0


def test_git_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git(tmp_path, "status").returncode == NO_PROGRAM


def test_git_in_a_folder_that_is_none_of_its_own(tmp_path):
    assert git(tmp_path / "missing", "status").returncode not in (0, NO_PROGRAM)
