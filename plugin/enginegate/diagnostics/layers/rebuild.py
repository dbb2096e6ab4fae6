"""One engine built again and again, each time with other layers kept in fp32."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from enginegate.engines import (
    Backend,
    Built,
    Embeddings,
    Engine,
    Keeping,
    embed_all,
    get_backend,
    keeping_of,
)
from enginegate.files import scratch_folder
from enginegate.models import Exported, Workload, probe_of, take

BLAME_TEXTS = 64  # enough to rank layers by, few enough for a minute


@dataclass(frozen=True)
class Rebuilder:
    """Makes engines that are thrown away after use.

    Attributes:
        backend: builds and loads them.
        keeping: how they are built.
        workload: what they embed.
        threads: threads an engine may use.
    """

    backend: Backend
    keeping: Keeping
    workload: Workload
    threads: int

    def embed(self, nodes: frozenset[str]) -> Embeddings:
        """Embeddings of the first texts, float32 [BLAME_TEXTS, dim], those nodes in fp32."""
        with self.loaded(nodes) as engine:
            found = embed_all(engine, take(self.workload.evaluation, slice(BLAME_TEXTS)))
        return self.workload.used(found)

    @contextlib.contextmanager
    def loaded(self, nodes: frozenset[str]) -> Iterator[Engine]:
        """The engine with those nodes in fp32; gone afterwards."""
        with scratch_folder() as folder:
            properties = self.keeping.build(nodes, folder)
            probe = probe_of(self.workload)
            with self.backend.load(folder, properties, probe, self.threads) as engine:
                yield engine


def rebuilder_of(built: Built, model: Exported, workload: Workload, threads: int) -> Rebuilder:
    """The rebuilder of an engine: its own ONNX graph if it is one, else by its backend's recipe.

    Raises EngineError where neither can be done.
    """
    backend = get_backend(built.backend)
    keeping = keeping_of(built, model, workload.calibration)
    return Rebuilder(backend, keeping, workload, threads)
