"""Engines behind a server: started, and checked before anything is timed."""

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from enginegate.cache import Store
from enginegate.config import Deployment, Endpoint, Protocol, ServeOptions
from enginegate.engines import Built, Embeddings, Engine, registration
from enginegate.errors import ServingError
from enginegate.machine import first_gpu
from enginegate.models import Exported, Workload, probe_of
from enginegate.serving.agreement import check_served, expected_embeddings
from enginegate.serving.load.embed import embed_served
from enginegate.serving.load.exchange import Exchange, make_exchange
from enginegate.serving.triton.client import check_model
from enginegate.serving.triton.environment import Progress, ServerEnvironment, server_environment
from enginegate.serving.triton.repository import served_as, write_engine, write_reference
from enginegate.serving.triton.server import Server, serve
from enginegate.speed import CANDIDATE, CONTROL, SECOND_CONTROL


@dataclass(frozen=True)
class ToServe:
    """An engine to serve.

    Attributes:
        built: its files.
        beside: the engine to compare its speed with; None for the reference.
        engine: the same engine in this process.
        model: what it was built from.
        texts: what it is judged on.
        dim: components of its embeddings.
    """

    built: Built
    beside: Built | None
    engine: Engine
    model: Exported
    texts: Workload
    dim: int


@dataclass(frozen=True)
class ServedEngine:
    """A served engine that answers.

    Attributes:
        source: what is served.
        endpoint: where.
        deployment: how it is run.
        server: None for one that ran already.
        embeddings: as the server answers them, float32 [texts, dim].
        difference: largest difference to those of the same engine in this process; None where
            they are not the same.
        fault: why they are not; empty if they are.
        exchange: its requests, with the answers that are expected.
        notes: what else to say about how it is served.
        timeout_s: longest that a model may take to load.
    """

    source: ToServe
    endpoint: Endpoint
    deployment: Deployment
    server: Server | None
    embeddings: Embeddings
    difference: float | None
    fault: str
    exchange: Exchange
    notes: tuple[str, ...]
    timeout_s: float

    @property
    def server_name(self) -> str:
        """The server's name in words."""
        running = f"{self.endpoint.protocol}://{self.endpoint.address}"
        return "triton, started for this run" if self.server else running

    def load_anew(self, models: Sequence[str]) -> None:
        """Load models of the server's repository, started in this order; none is loaded before.

        Raises ServingError with the server's reason.
        """
        server, limit_s = self.started, self.timeout_s
        with ThreadPoolExecutor(len(models)) as pool:
            # unloaded first, or Triton would leave them as they are
            list(pool.map(lambda name: server.unload(name, limit_s), models))
            list(pool.map(lambda name: server.load(name, limit_s), models))

    @contextlib.contextmanager
    def redeployed(self, name: str, deployment: Deployment) -> Iterator["ServedEngine"]:
        """The same engine on the same server, deployed otherwise, as a model named `name`.

        Meanwhile this one is unloaded, so that nothing runs beside it. Raises ServingError if it
        does not load.
        """
        server, source, known = self.started, self.source, self.exchange
        write_model(server.repository, name, source, source.built, deployment)
        endpoint = replace(self.endpoint, model=name)
        answers = (known.expected, known.tolerance)
        exchange = make_exchange(endpoint, source.texts.padded, known.output, *answers)
        server.unload(self.endpoint.model, self.timeout_s)
        try:
            server.load(name, self.timeout_s)
            yield replace(self, endpoint=endpoint, deployment=deployment, exchange=exchange)
            server.unload(name, self.timeout_s)
        finally:
            server.load(self.endpoint.model, self.timeout_s)

    def write_yardsticks(self) -> None:
        """Put two copies of what to compare with into the server's repository."""
        root, source = self.started.repository, self.source
        for name in (CONTROL, SECOND_CONTROL):
            write_model(root, name, source, source.beside, self.deployment)

    @property
    def started(self) -> Server:
        """The server; ServingError for one that ran already: there is no yardstick on it."""
        if self.server is None:
            raise ServingError("a server that ran already has no control to compare with")
        return self.server


@dataclass
class EngineServer:
    """Serves the engines of a run, one after the other.

    Attributes:
        options: how to serve.
        store: keeps the server's packages.
        progress: tells of long steps.
        server: the one that runs now, if any.
        log: the end of the log of the last one that failed.
    """

    options: ServeOptions
    store: Store
    progress: Progress
    server: Server | None = field(default=None, init=False)
    log: str = field(default="", init=False)

    @functools.cached_property
    def environment(self) -> ServerEnvironment:
        """The server's packages, made once."""
        return server_environment(self.store, self.progress)

    @contextlib.contextmanager
    def serve(self, source: ToServe) -> Iterator[ServedEngine]:
        """The engine on a server, its answers compared with those in this process.

        Raises ServingError for a server or a model that does not start, or is another than was
        tested.
        """
        self.log = ""
        with self._endpoint(source) as (endpoint, server):
            self.server = server
            try:
                with self.watched():
                    served = self._checked(source, endpoint)
                yield served
            finally:
                self.server = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the server's log if it fails inside, and say so if it has ended."""
        try:
            yield
        except ServingError:
            self.log = self.log_tail()
            if self.server:
                self.server.check_alive(failed=True)
            raise

    def log_tail(self) -> str:
        """The end of the log of the server that runs now, or of the last one that failed."""
        return self.server.log_tail() if self.server else self.log

    @contextlib.contextmanager
    def _endpoint(self, source: ToServe) -> Iterator[tuple[Endpoint, Server | None]]:
        if given := self.options.endpoint:
            yield replace(given, model=given.model or source.model.spec.name), None
            return
        if self.options.repository:
            self._write(source, self.options.repository, source.built.variant.id)
        if registration(source.built.backend).triton:
            raise ServingError(self._on_another(source))
        write = functools.partial(self._write, source)
        with serve(self.environment, write, self.progress, self.options.timeout_s) as server:
            yield server.endpoint(CANDIDATE, Protocol.HTTP), server

    def _write(self, source: ToServe, root: Path, name: str = CANDIDATE) -> Sequence[str]:
        write_model(root, name, source, source.built, self.options.deployment)
        return [name]

    def _on_another(self, source: ToServe) -> str:
        """Say what to do instead: the server that is started here has the Python backend only."""
        folder = self.options.repository or Path("models")
        model = source.built.variant.id
        gpus, release = _on_gpu(source.built)
        written = "" if self.options.repository else f"add --gate-model-repository {folder}, then "
        return (
            f"the Triton that --gate-serve triton starts runs no {source.built.backend}: {written}"
            f"docker run --rm {gpus}--shm-size=1g -p 8000-8002:8000-8002 -v "
            f"{folder.resolve()}:/models nvcr.io/nvidia/tritonserver:YY.MM-py3 tritonserver "
            f"--model-repository=/models, and --gate-serve grpc://localhost:8001/{model}{release}"
        )

    def _checked(self, source: ToServe, endpoint: Endpoint) -> ServedEngine:
        model, texts, evaluation = source.model, source.texts, source.texts.padded
        inputs, shape = tuple(model.inputs), (texts.shape[1], source.dim)
        deployment = check_model(endpoint, inputs, model.output, *shape, model.int32)
        size = max(deployment.max_batch_size, 1)
        with self.progress("served embeddings"):
            expected = expected_embeddings(source.engine, evaluation, size)
            found = embed_served(endpoint, evaluation, model.output, size)
        difference, fault = None, ""
        try:
            difference = check_served(found, expected, texts.texts, endpoint.model)
        except ServingError as error:
            fault = str(error)
        answers = (expected.embeddings, expected.tolerance)
        exchange = make_exchange(endpoint, evaluation, model.output, *answers)
        return ServedEngine(
            source=source,
            endpoint=endpoint,
            deployment=deployment,
            server=self.server,
            embeddings=found,
            difference=difference,
            fault=fault,
            exchange=exchange,
            notes=self._notes(),
            timeout_s=self.options.timeout_s,
        )

    def _notes(self) -> tuple[str, ...]:
        if self.server is None:
            return ("`ran` is that of the engine in this process: what the server ran is unknown",)
        return (self.environment.note,) if self.environment.note else ()


def write_model(
    root: Path, name: str, source: ToServe, built: Built | None, deployment: Deployment
) -> None:
    """An engine, or the reference where `built` is None, as a model of a repository.

    Raises ServingError if the folder cannot be written.
    """
    evaluation = source.texts.padded
    probe = probe_of(source.texts)
    served = served_as(name, source.model, evaluation, source.dim, deployment)
    try:
        if built is None:
            write_reference(root, served, source.model, probe)
        else:
            write_engine(root, served, built, probe)
    except OSError as error:
        raise ServingError(
            f"cannot write the model repository {root}: {error.strerror}; free space there"
        ) from error


def _on_gpu(built: Built) -> tuple[str, str]:
    """Docker's option for the GPU that an engine was built on, and which release can run it.

    CUDA and Docker number GPUs differently, so it is named. Both are empty for a processor.
    """
    if not registration(built.backend).gpu:
        return "", ""
    gpus = f"--gpus device={first_gpu().uuid} "
    built_by = re.match(r"tensorrt (\S+) on ", str(built.entry.properties.get("runtime", "")))
    if built_by:
        return (
            gpus,
            f"; YY.MM is a release whose TensorRT is {built_by[1]}, no other takes the plan",
        )
    return gpus, "; YY.MM is a release that the driver of this machine can run"
