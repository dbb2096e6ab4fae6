"""The second driver, with a script that stands in for perf_analyzer."""

import sys

import pytest
from tests.selftest.kserve import tokens

from enginegate.config.serving import Endpoint, Protocol
from enginegate.errors import ServingError
from enginegate.serving.load.perf_analyzer import find_perf_analyzer, run_perf_analyzer


def test_perf_analyzer_missing_or_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ServingError, match="no perf_analyzer on PATH"):
        find_perf_analyzer()
    placeholder = tmp_path / "perf_analyzer"
    placeholder.write_text("")
    placeholder.chmod(0o755)
    with pytest.raises(ServingError, match=r"cannot be used: .*; the wheel of tritonclient 2.51"):
        find_perf_analyzer()


HEADER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,"
    "Server Compute Input,Server Compute Infer,Server Compute Output,Client Recv,p50 latency,"
    "p90 latency,p95 latency,p99 latency,Avg latency,request/response,response wait"
)
FIGURES = "4,5669.22,43,192,181,32,189,57,0,670,911,1002,1241,697,43,648"


def stand_in(folder, lines):
    """A program that leaves perf_analyzer's report, in the way the script says."""
    path = folder / "perf_analyzer"
    report = f"cat > \"$report\" <<'END'\n{HEADER}\n{FIGURES}\nEND\n"
    find = 'while [ "$1" ]; do [ "$1" = -f ] && report=$2; shift; done\n'
    path.write_text(f'#!/bin/sh\nall="$*"\n{find}{lines.replace("REPORT", report)}')
    path.chmod(0o755)
    return path


ENDPOINT = Endpoint(Protocol.HTTP, "127.0.0.1:1", "fake")


def test_perf_analyzer_figures_land_in_the_records(tmp_path):
    analyzer = stand_in(tmp_path, "REPORT\necho '    Request count: 17000'\n")
    found = run_perf_analyzer(analyzer, ENDPOINT, tokens(), 4)
    assert found.driver == "perf_analyzer"
    assert found.throughput_per_s == 5669.22
    assert found.requests == 17000
    assert found.latency.p99_s == pytest.approx(1241e-6)
    assert found.breakdown is not None
    assert sum(vars(found.breakdown).values()) == pytest.approx(697e-6)
    assert found.breakdown.client_s == pytest.approx(43e-6)
    assert found.marks == ()


@pytest.mark.parametrize(("concurrency", "how"), [(1, "--sync"), (2, "--async --max-threads 1")])
def test_perf_analyzer_takes_one_thread(tmp_path, concurrency, how):
    known = f'case "$all" in *"{how}"*) REPORT\n;; *) exit 3;; esac\n'
    found = run_perf_analyzer(stand_in(tmp_path, known), ENDPOINT, tokens(), concurrency)
    assert found.throughput_per_s > 0


def test_perf_analyzer_that_gets_no_stable_level_is_marked(tmp_path):
    failing = "echo Failed to obtain stable measurement; exit 2"
    lines = f'case "$all" in *1000000.0*) REPORT\n;; *) {failing};; esac\n'
    found = run_perf_analyzer(stand_in(tmp_path, lines), ENDPOINT, tokens(), 4)
    assert found.marks == ("unstable: perf_analyzer saw no three windows agree",)


def test_perf_analyzer_that_fails_is_quoted(tmp_path):
    analyzer = stand_in(tmp_path, "echo failed to get model metadata; exit 1\n")
    with pytest.raises(ServingError, match=r"(?s)status 1 and no figures.*model metadata"):
        run_perf_analyzer(analyzer, ENDPOINT, tokens(), 4)


def test_perf_analyzer_that_counts_no_answers(tmp_path):
    lines = 'REPORT\nsed -i s/5669.22/0/ "$report"\n'
    words = "no answers at concurrency 4; look into the server's log"
    with pytest.raises(ServingError, match=words):
        run_perf_analyzer(stand_in(tmp_path, lines), ENDPOINT, tokens(), 4)
