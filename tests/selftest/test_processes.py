"""Other programs: git, and child processes that take orders and answer."""

import contextlib
import sys

import pytest

from enginegate.machine import NO_PROGRAM, Child, git

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
    with child("print(1, 2, 3, sep=chr(10), flush=True); input()") as three:
        assert [three.answer() for _ in range(3)] == [1, 2, 3]
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


def test_git_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git(tmp_path, "status").returncode == NO_PROGRAM


def test_git_in_a_folder_that_is_none_of_its_own(tmp_path):
    assert git(tmp_path / "missing", "status").returncode not in (0, NO_PROGRAM)
