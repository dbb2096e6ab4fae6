"""Cliffs: the reference report's sweeps, simulated batchers with known causes, and their words."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from enginegate.config.serving import Deployment
from enginegate.errors import ServingError
from enginegate.report.sweep_files import read_sweep_csv
from enginegate.report.wording.sweeps import (
    analysis_lines,
    compare_engines,
    level_line,
)
from enginegate.serving.analysis.cliffs import analyse, littles_error, new_cliffs, noise
from enginegate.serving.records import Cause, Cliff, Latency, Level, StoredLoad

from .batcher import (
    Server,
    batch_to_send,
    client_figures,
    level_of,
    noisy,
    sweep_of,
    undelayed,
)

REFERENCE = read_sweep_csv(Path(__file__).parent / "data" / "reference_sweep.csv")
DELAYED = Deployment(32, (16,), 10_000)


def plain(concurrency, per_s, **more):
    """A level whose latency follows from Little's law."""
    return Level(concurrency, per_s, Latency(concurrency / per_s, *5 * [math.nan]), **more)


def words(levels, deployment=None):
    return "\n".join(analysis_lines(analyse(levels, deployment), levels))


def scaled(levels, **factors):
    """The levels, those named `at_N` with their throughput times a factor."""
    return [plain(x.concurrency, x.throughput_per_s * factors.get(f"at_{x.concurrency}", 1))
            for x in levels]  # fmt: skip


# The reference report


def test_the_int8_break_of_the_reference_is_found_and_queue_delay_suspected():
    (cliff,) = analyse(REFERENCE["int8"], None).cliffs
    assert (cliff.first, cliff.last, cliff.cause) == (3, 15, Cause.QUEUE_DELAY)
    assert not cliff.proven
    assert cliff.promised_per_s == {}  # client figures alone do not tell


def test_the_int8_break_in_words():
    text = words(REFERENCE["int8"])
    assert "cliff at concurrency 3-15: 286 infer/sec at its lowest" in text
    assert "suspected cause: queue delay; latency stays at 10.1 to 11.0 ms" in text
    assert (
        "a queue delay of about 10 ms (one execution included) and a preferred batch of 16" in text
    )
    assert "between 1109 (at 2) and 5735 (at 16) infer/sec" in text


def test_what_queue_delay_does_not_explain_in_the_reference_is_said():
    (note,) = analyse(REFERENCE["int8"], None).notes
    assert note.startswith("concurrency 1, 2 below the break at 3-15 does not wait")
    assert "queue delay alone does not explain it" in note


def test_a_sweep_that_ends_inside_the_break_is_suspected_to_its_end():
    (cliff,) = analyse(REFERENCE["int8"][:12], None).cliffs
    assert (cliff.first, cliff.last, cliff.cause) == (3, 12, Cause.QUEUE_DELAY)
    assert "a preferred batch of 13 or more" in cliff.evidence
    assert "at least at 1109 (at 2) infer/sec" in cliff.advice


@pytest.mark.parametrize("engine", ["fp16", "fp32", "best", "onnx"])
def test_the_other_reference_engines_have_no_cliff(engine):
    assert analyse(REFERENCE[engine], None).cliffs == ()


def test_onnx_is_saturated_from_two():
    analysis = analyse(REFERENCE["onnx"], None)
    assert analysis.saturated_from == 2
    assert analysis.saturation_per_s == pytest.approx(605, rel=0.01)
    assert "saturated from concurrency 2 on: about 605 infer/sec" in words(REFERENCE["onnx"])


def test_a_sweep_that_still_grows_is_not_called_saturated():
    levels = REFERENCE["fp16"][:12]
    assert analyse(levels, None).saturated_from is None
    assert "not saturated at the largest concurrency" in words(levels)


def test_reference_engines_compared_in_words():
    first, *pairs = compare_engines(REFERENCE)
    assert first.endswith("best 11218, fp16 11034, int8 8100, fp32 6576, onnx 626")
    assert "fp16 equals best within a few per cent (-1.8% typically)" in pairs
    int8 = "int8's largest throughput (8100 infer/sec) is below fp16's (11034)"
    assert f"{int8}, and so is its throughput at each of 32 concurrencies" in pairs
    assert "fp32's largest throughput (6576 infer/sec) is below int8's (8100)" in pairs


def test_a_level_reads_as_in_the_reference_report():
    line = "Concurrency: 8, throughput: 761.961 infer/sec, latency 10496 usec"
    assert level_line(REFERENCE["int8"][7]) == line


def test_littles_law_holds_in_the_reference_and_a_lost_request_shows():
    errors = [littles_error(level) for levels in REFERENCE.values() for level in levels]
    assert max(map(abs, errors)) < 0.02
    fewer = [plain(n, 1000.0) for n in range(1, 9)]
    fewer[4] = replace(fewer[4], latency=replace(fewer[4].latency, mean_s=0.004))
    assert "not the concurrency within 10 % at concurrency 5" in words(fewer)


# CSV files


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["engine,concurrency"], r"line 1: the columns are \['engine', 'concurrency'\]"),
        ([None, "int8,1,x,3"], "line 2: could not convert string to float: 'x'"),
        ([None, "int8,1,5,3", "int8,2,nan,3"], "line 3: all three numbers must be above 0"),
        ([None, "int8,1,5,3", "int8,2,5"], "line 3: .*; each line must hold engine,"),
        ([None, "int8,1,5,3", "int8,1,5,3"], "line 3: concurrency 1 of int8 is there twice"),
    ],
)
def test_a_damaged_csv_is_refused_with_its_line(tmp_path, lines, message):
    header = "engine,concurrency,infer_per_sec,avg_latency_usec"
    path = tmp_path / "sweep.csv"
    path.write_text("\n".join(line or header for line in lines))
    with pytest.raises(ServingError, match=message):
        read_sweep_csv(path)


def test_a_missing_csv_is_refused(tmp_path):
    with pytest.raises(ServingError, match="cannot read the sweep"):
        read_sweep_csv(tmp_path / "none.csv")


# The simulated batcher, by hand


@pytest.mark.parametrize(
    ("waiting", "oldest_s", "sent"),
    [(15, 0.0, 0), (16, 0.0, 16), (20, 0.0, 16), (15, 0.010, 15), (40, 0.010, 32)],
)
def test_what_the_simulated_batcher_sends(waiting, oldest_s, sent):
    assert batch_to_send(Server(DELAYED, 1e-3, 1e-4), waiting, oldest_s) == sent


@pytest.mark.parametrize(
    ("deployment", "clients", "cycle_s"),
    [
        (DELAYED, 1, 0.010 + 0.0011 + 0.0005),  # delay, one execution, turnaround
        (DELAYED, 8, 0.010 + 0.0018 + 0.0005),
        (DELAYED, 16, 0.0026 + 0.0005),  # sent at once, and all come back together
        (DELAYED, 32, 2 * 0.0026),  # two batches in turn hide the turnaround
        (Deployment(32), 1, 0.0011 + 0.0005),
        (Deployment(32), 2, 2 * 0.0011),  # one runs, one waits
        (Deployment(32, instances=2), 2, 0.0011 + 0.0005),
        (Deployment(4), 16, 4 * 0.0014),  # four batches of the largest size in turn
    ],
)
def test_the_simulation_agrees_with_arithmetic(deployment, clients, cycle_s):
    level = level_of(Server(deployment, 1e-3, 1e-4, 5e-4), clients)
    assert level.throughput_per_s == pytest.approx(clients / cycle_s, rel=0.02)
    assert abs(littles_error(level)) < 0.02


@pytest.mark.parametrize(("preferred", "waiting"), [((16,), 8), ((2, 16), 1), ((1, 2, 16), 0)])
def test_only_below_the_smallest_preferred_size_a_loop_waits(preferred, waiting):
    """As seen on Triton 2.51: no such list makes the reference's levels 1 and 2 fast and 3 slow."""
    server = Server(replace(DELAYED, preferred_batch_sizes=preferred), 1e-3, 1e-4, 2e-4)
    levels = sweep_of(server, range(1, 9), requests=200)
    slow = [level.concurrency for level in levels if level.latency.mean_s > 0.01]
    assert slow == list(range(1, waiting + 1))


# Detection


SERVERS = [
    Server(Deployment(32, (preferred,), delay_us), fixed_s, each_s, 3e-4, 0.3)
    for preferred in (4, 8, 16)
    for delay_us in (3_000, 10_000)
    for fixed_s, each_s in ((2e-4, 5e-5), (5e-4, 1e-4), (1e-3, 2e-5))
]


@pytest.mark.parametrize("sd", [0.0, 0.03, 0.08])
def test_every_delay_is_proven_by_the_servers_figures(sd):
    rng = np.random.default_rng(5)
    for server in SERVERS:
        levels = noisy(sweep_of(server, requests=200), sd, rng)
        (cliff,) = analyse(levels, server.deployment).cliffs
        assert (cliff.first, cliff.cause, cliff.proven) == (1, Cause.QUEUE_DELAY, True)
        assert cliff.last == server.deployment.preferred_batch_sizes[0] - 1


@pytest.mark.parametrize("sd", [0.0, 0.03])
def test_every_long_delay_is_suspected_from_the_clients_figures(sd):
    rng = np.random.default_rng(6)
    for server in SERVERS:
        preferred = server.deployment.preferred_batch_sizes[0]
        levels = client_figures(noisy(sweep_of(server, requests=200), sd, rng))
        (cliff,) = analyse(levels, None).cliffs
        assert (cliff.first, cliff.last) == (1, preferred - 1)
        if server.deployment.max_queue_delay_us == 10_000:
            assert (cliff.cause, cliff.proven) == (Cause.QUEUE_DELAY, False)
            assert f"preferred batch of {preferred}" in cliff.evidence


def test_a_sweep_that_ends_inside_the_delay_is_proven_by_the_servers_figures():
    levels = sweep_of(SERVERS[-1], range(1, 9), 200)
    assert analyse(client_figures(levels), None).cliffs == ()  # flat latency: nothing to see
    (cliff,) = analyse(levels, SERVERS[-1].deployment).cliffs
    assert (cliff.first, cliff.last, cliff.proven) == (1, 8, True)


def test_clean_noisy_sweeps_raise_at_most_one_false_alarm_in_200():
    rng = np.random.default_rng(7)
    clean = [sweep_of(undelayed(server), requests=200) for server in SERVERS[:6]]
    sweeps = [noisy(clean[i % len(clean)], 0.03, rng) for i in range(200)]
    assert sum(bool(analyse(levels, Deployment(32)).cliffs) for levels in sweeps) <= 1


def test_noise_is_estimated_although_there_is_a_cliff():
    rng = np.random.default_rng(8)
    estimates = [noise(noisy(REFERENCE["int8"], 0.05, rng)) for _ in range(50)]
    assert 0.05 < np.mean(estimates) < 0.08  # its own 2.6 % come on top; the steps are of 160 %


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_a_single_noisy_level_is_no_cliff(factor):
    assert analyse(scaled(REFERENCE["fp16"], at_9=factor), None).cliffs == ()


def test_a_single_level_of_a_third_is_a_cliff_and_taken_for_noise():
    (cliff,) = analyse(scaled(REFERENCE["fp16"], at_9=0.3), None).cliffs
    assert (cliff.first, cliff.last, cliff.cause) == (9, 9, Cause.NOISE)
    assert "level 9 is alone" in cliff.evidence


def test_throughput_that_falls_and_stays_low_is_a_cliff():
    levels = [plain(n, 1000.0 * min(n, 8) if n < 20 else 5000.0) for n in range(1, 33)]
    (cliff,) = analyse(levels, None).cliffs
    assert (cliff.first, cliff.last, cliff.cause) == (20, 32, Cause.UNKNOWN)
    assert cliff.expected_per_s == 8000


# Causes


def test_a_break_where_the_clients_were_busy_is_theirs():
    levels = [
        plain(n, 1000.0 * n, client_share=0.5) if n < 9 else plain(n, 5000.0, client_share=0.98)
        for n in range(1, 17)
    ]
    (cliff,) = analyse(levels, None).cliffs
    assert (cliff.cause, cliff.first) == (Cause.CLIENT, 9)
    assert "98% of a processor" in cliff.evidence
    assert "more processes" in cliff.advice


def test_a_break_of_marked_levels_is_noise():
    marks = ("noisy machine: another process used 40% of the processors",)
    levels = [plain(n, 1000.0 * n / (3 if n in (5, 6) else 1)) for n in range(1, 17)]
    levels[4], levels[5] = (replace(level, marks=marks) for level in levels[4:6])
    (cliff,) = analyse(levels, None).cliffs
    assert (cliff.first, cliff.last, cliff.cause) == (5, 6, Cause.NOISE)
    assert "another process used 40%" in cliff.evidence


def test_a_break_with_busy_instances_is_theirs():
    rng = np.random.default_rng(9)
    levels = sweep_of(Server(Deployment(32), 5e-4, 1e-4, 1e-4), requests=200)
    levels[19:] = [_slower(level, 3) for level in levels[19:]]
    (cliff,) = analyse(noisy(levels, 0.01, rng), Deployment(32)).cliffs
    assert (cliff.first, cliff.last, cliff.cause, cliff.proven) == (20, 32, Cause.SATURATED, True)


def _slower(level, factor):
    longer = replace(level.breakdown, compute_infer_s=factor * level.breakdown.compute_infer_s)
    latency = replace(level.latency, mean_s=factor * level.latency.mean_s)
    per_s = level.throughput_per_s / factor
    return replace(level, throughput_per_s=per_s, latency=latency, breakdown=longer)


def test_without_a_configured_delay_none_is_suspected():
    (cliff,) = analyse(client_figures(REFERENCE["int8"]), Deployment(32)).cliffs
    assert cliff.cause is Cause.UNKNOWN


# Advice


@pytest.mark.parametrize("turnaround", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_the_advice_gives_what_it_promises(turnaround, spread):
    """Within 15 % at every level, one instance; the turnaround in executions of one text."""
    for fixed_s, each_s in ((2e-4, 5e-5), (2e-4, 2e-4), (1e-3, 5e-5), (1e-3, 2e-4)):
        server = Server(DELAYED, fixed_s, each_s, turnaround * (fixed_s + each_s), spread)
        (cliff,) = analyse(sweep_of(server, range(1, 33, 2), 200), DELAYED).cliffs
        assert set(cliff.promised_per_s) == set(range(1, 16, 2))
        for clients, promised in cliff.promised_per_s.items():
            found = level_of(undelayed(server), clients, clients, 300).throughput_per_s
            assert promised == pytest.approx(found, rel=0.15)


def test_the_promise_is_told():
    server = Server(DELAYED, 5e-4, 1e-4, 3e-4)
    text = words(sweep_of(server, requests=200), DELAYED)
    assert "cause: queue delay; requests waited 10.0 ms in the queue" in text
    assert "batches of 1.0 to 15.0 ran, below the preferred 16" in text
    assert "set max_queue_delay_microseconds to 0 and leave preferred_batch_size out" in text
    assert "it should give 1111 at 1, 4444 at 8, 6000 at 15 infer/sec" in text


def test_nothing_is_promised_for_several_instances():
    server = Server(replace(DELAYED, instances=2), 5e-4, 1e-4, 3e-4)
    (cliff,) = analyse(sweep_of(server, requests=200), server.deployment).cliffs
    assert cliff.proven
    assert cliff.promised_per_s == {}


def test_with_the_advice_applied_the_cliff_is_gone():
    levels = sweep_of(undelayed(SERVERS[0]), requests=200)
    assert analyse(levels, undelayed(SERVERS[0]).deployment).cliffs == ()


# Comparing, and bad input


def test_a_cliff_is_new_if_most_of_its_levels_were_swept_and_sound():
    old = Cliff(3, 15, 1.0, 2.0, Cause.QUEUE_DELAY, True, "", "")
    wider, moved = replace(old, last=16), replace(old, first=15, last=20)
    other = replace(old, first=16, last=18)
    dense = StoredLoad(tuple(range(1, 33)), ((3, 15),))
    assert new_cliffs([old, wider, moved, other], dense) == (moved, other)
    assert new_cliffs([old], StoredLoad((1, 2, 32), ())) == ()


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([plain(1, 5.0), plain(1, 6.0)], "concurrency 1 was given twice"),
        ([replace(plain(2, 5.0), throughput_per_s=0.0)], "concurrency 2 has no throughput"),
        ([replace(plain(2, 5.0), throughput_per_s=math.nan)], "concurrency 2 has no throughput"),
    ],
)
def test_levels_that_are_none_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        analyse(levels, None)


def test_nothing_is_said_of_no_levels():
    assert analyse([], None).cliffs == ()
