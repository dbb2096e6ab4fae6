"""All that is asked of Ray: where machines are, and a shard on one of them."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from enginegate.errors import FleetError
from enginegate.session.fleet.shard import Event, Order, run_shard

RESOURCE = "enginegate"
AUTO = "auto"
_PART = 0.001  # of a kind's resource, which its machines have and nobody uses up
_REACH_S = 10.0
_CANCEL_S = 30.0
_EXCLUDED = ".venv,venv,__pycache__"  # by Ray also .git, which tells the commit and --gate-against

Stream = Any  # ray.ObjectRefGenerator, of the events of a shard


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process drives.

    Attributes:
        ray: the module, connected.
        address: as it was asked for.
    """

    ray: Any
    address: str

    def machines(self, resource: str) -> list[dict[str, float]]:
        """What each living machine has that may run shards and has this resource, if one is named.

        One machine may be several of Ray's nodes.
        """
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        wanted = [name for name in (RESOURCE, resource) if name]
        return [has for has in alive if all(has.get(name, 0) > 0 for name in wanted)]

    def start(self, order: Order, resource: str, name: str) -> Stream:
        """Have a machine run a shard as soon as it is free: the stream of its events.

        It holds the machine's `enginegate` and, where machines are alike, all its processors and
        GPUs. Ray does not start it again: who measured twice would count twice.
        """
        wanted = {RESOURCE: 1, **({resource: _PART} if resource else {})}
        found = self.machines(resource)
        held = {
            f"num_{kind.lower()}s": min((has.get(kind, 0) for has in found), default=0)
            for kind in ("CPU", "GPU")
        }
        task = self.ray.remote(num_returns="streaming", max_retries=0)(_on_node)
        return task.options(resources=wanted, name=name, **held).remote(order)

    def events(self, streams: Sequence[Stream], wait_s: float) -> Iterator[tuple[Stream, Event]]:
        """What shards have said since; waits for the first so long.

        Beside those of a shard: `lost` with the reason where its machine or process died, `failed`
        where it could not be run, `cancelled`.
        """
        ready, _ = self.ray.wait(list(streams), num_returns=1, timeout=wait_s)
        for stream in ready:
            yield stream, self._next(stream)

    def _next(self, stream: Stream) -> Event:
        errors = self.ray.exceptions
        died = (errors.NodeDiedError, errors.WorkerCrashedError, errors.OutOfMemoryError)
        try:
            found: Event = self.ray.get(next(stream))
        except StopIteration:
            return {"failed": "it ended without a word"}
        except errors.TaskCancelledError:
            return {"cancelled": ""}
        except (*died, errors.LocalRayletDiedError, errors.ObjectLostError) as error:
            return {"lost": _first_line(error)}
        except errors.RayError as error:
            return {"failed": _last_line(error)}
        return found

    def cancel(self, streams: Sequence[Stream]) -> None:
        """End shards, as Ctrl-C does, and wait until they have, but not for ever."""
        for stream in streams:
            self.ray.cancel(stream)
        ends = [stream.completed() for stream in streams]
        self.ray.wait(ends, num_returns=len(ends), timeout=_CANCEL_S) if ends else None


def _on_node(order: Order) -> Iterator[Event]:
    """The task: Ray has put this process into the folder of the project."""
    import ray

    yield {"node": ray.get_runtime_context().get_node_id()}
    yield from run_shard(order, Path.cwd())


@contextlib.contextmanager
def connected(address: str, project: Path, excluded: Sequence[str]) -> Iterator[Cluster]:
    """Be a driver of a cluster, which gets the project. Raises FleetError."""
    if find_spec("ray") is None:
        raise FleetError(
            "--gate-fleet needs ray, not installed: pip install 'pytest-enginegate[fleet]'"
        )
    _refuse_address(address)
    os.environ.setdefault("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", _EXCLUDED)
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")  # of a job that brings the project
    import ray

    environment = {"working_dir": str(project), "excludes": list(excluded)}
    try:
        ray.init(address, runtime_env=environment, log_to_driver=False, logging_level="error")
    except Exception as error:
        raise FleetError(_unreachable(address, _first_line(error))) from error
    try:
        yield Cluster(ray, address)
    finally:
        ray.shutdown()


def _refuse_address(address: str) -> None:
    """Raise FleetError for what is no address of a cluster's head, or where nobody listens."""
    if address == AUTO:
        return
    if "://" in address:
        raise FleetError(
            f"--gate-fleet {address}: only a driver inside the cluster gets results as they come; "
            f"run pytest on one of its machines, with --gate-fleet={AUTO}"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise FleetError(f"--gate-fleet {address!r} is neither `{AUTO}` nor HOST:PORT")
    try:
        socket.create_connection((host, int(port)), _REACH_S).close()
    except (OSError, OverflowError) as error:
        raise FleetError(_unreachable(address, str(error))) from error


def _unreachable(address: str, why: str) -> str:
    return (
        f"cannot use the Ray cluster at {address}: {why}; start one with `{_start()} --head`, and "
        f"`{_start()} --address=HOST:6379` on other machines"
    )


def _start(*further: str) -> str:
    """What makes a machine one of the fleet's."""
    return f"ray start --resources='{json.dumps(dict.fromkeys([RESOURCE, *further], 1))}'"


def check_machines(cluster: Cluster, kinds: Mapping[str, str]) -> dict[str, int]:
    """Machines of each kind. Raises FleetError where there is none of a kind."""
    found = {kind: len(cluster.machines(resource)) for kind, resource in kinds.items()}
    for kind, count in found.items():
        if not count:
            wanted = [RESOURCE, *filter(None, [kinds[kind]])]
            of_kind = f", which machines of kind {kind} have" if kind else ""
            raise FleetError(
                f"no machine of the Ray cluster at {cluster.address} has the resource "
                f"{' and '.join(wanted)}{of_kind}: start some with `{_start(*wanted[1:])}`"
            )
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
