"""The rig of a served engine: what it does for every replicate, without a server."""

import contextlib
import random
from types import SimpleNamespace
from typing import Any

import pytest

from enginegate.serving import measure
from enginegate.speed import CANDIDATE, CONTROL, SECOND_CONTROL

ALL = {CANDIDATE, CONTROL, SECOND_CONTROL}


@pytest.fixture
def done(monkeypatch):
    """What a rig has done, in turn, to a server and clients that only take it down."""
    seen = []

    @contextlib.contextmanager
    def client(exchange):
        yield SimpleNamespace(start=lambda: seen.append(("client", exchange)))
        seen.append(("ended", exchange))

    monkeypatch.setattr(measure, "open_generator", client)
    monkeypatch.setattr(measure, "_exchange", lambda _served, endpoint: endpoint)
    return seen


@pytest.fixture
def rig(done):
    served: Any = SimpleNamespace(
        write_yardsticks=lambda: done.append(("written", "")),
        load_anew=lambda names: done.extend(("loaded", name) for name in names),
        started=SimpleNamespace(endpoint=lambda name, _protocol: name),
    )
    return measure.served_rig(served, [1], random.Random(0))


def test_every_replicate_has_fresh_clients_and_models_loaded_anew(rig, done):
    assert done == [("written", "")]
    for _ in range(3):
        done.clear()
        with rig.open_arms([1], rig.rng) as arms:
            assert set(arms) == ALL
            steps = [step for step, _ in done]
            assert steps == ["client"] * 3 + ["loaded"] * 3  # they start while the models load
        for step in ("client", "loaded", "ended"):
            assert {name for s, name in done if s == step} == ALL


def test_the_order_of_loading_differs(rig, done):
    orders = set()
    for _ in range(20):
        done.clear()
        with rig.open_arms([1], rig.rng):
            orders.add(tuple(name for step, name in done if step == "loaded"))
    assert len(orders) > 1
