"""One process per rank, driven as one: a call runs on all ranks, and the first failure stops them all.

The workers are plain classes that know nothing of Ray; each finds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT in its environment, as torch.distributed wants them.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from verl.config import ConfigError
from verl.single_controller.errors import NoRoom, WorkerError, WorkerLost
from verl.single_controller.placement import SHARE, Placement

START_S = 300.0
"""Seconds that a process may take to come up."""

GRACE_S, NEWS_S = 5.0, 60.0
"""After one rank has raised, how long the others are listened to; and after one has complained about a peer, how long
the news of that peer's death may take, which is long on a busy machine."""

LINK_TROUBLE = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe")
"""How gloo says that a peer is gone; it has no exception class of its own for that."""


@dataclass(frozen=True)
class _Failed:
    """A worker's exception on its way home: a value, so that nothing about it has to pickle."""

    text: str
    peer_gone: bool
    """The worker complains about another one."""
    message: str = ""
    """Text of an exception that the user can put right, which needs no traceback; empty for any other."""


class _Host:
    """The Ray actor: a process that holds one worker."""

    def __init__(self) -> None:
        self._worker: Any = None

    def where(self) -> tuple[str, str, int]:
        """Node id, address of the node, and a port that is free on it."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), port

    def build(self, packed: tuple[type, tuple, dict], environment: Mapping[str, str]) -> Any:
        worker_class, args, kwargs = packed
        os.environ.update(environment)

        def make() -> None:
            self._worker = worker_class(*args, **kwargs)

        return _guarded(make)

    def run(self, method: str, packed: tuple[Sequence[Any], Mapping[str, Any]]) -> Any:
        args, kwargs = packed
        return _guarded(lambda: getattr(self._worker, method)(*args, **kwargs))


class WorkerGroup:
    """`len(placement)` workers of one class, one per bundle of `placement`.

    All are built with the same `args` and `kwargs`. A method that raises on any rank stops the whole group: the
    others may be waiting for that rank in a collective, for ever. Then `WorkerError` (it raised), `ConfigError` (it
    raised one) or `WorkerLost` (it died, or hangs) reaches the caller, once, and the group is of no more use.
    """

    def __init__(
        self,
        worker_class: type,
        *args: Any,
        placement: Placement,
        gpu_share: float = 1.0,
        environment: Mapping[str, str] | None = None,
        stuck_after: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """`gpu_share`: of its bundle's GPU that a rank asks for; below 1 leaves room for reward workers on it.
        `environment`: variables that the processes start with. `stuck_after`: seconds after which a call, or the
        building, that has not ended on some ranks counts as their loss; 0: never."""
        self._name, self._alive, self._stuck_after = worker_class.__name__, True, stuck_after
        host = ray.remote(
            num_cpus=SHARE,
            num_gpus=gpu_share if placement.gpu else 0,
            max_restarts=0,
            runtime_env={"env_vars": dict(environment)} if environment else None,
        )(_Host)
        self._hosts = [host.options(scheduling_strategy=placement.slot(r)).remote() for r in range(len(placement))]
        places = self._places()
        self.nodes: list[str] = [node for node, _, _ in places]
        """Node id of each rank."""
        self._build(worker_class, args, kwargs, address=places[0][1], port=places[0][2])

    def __len__(self) -> int:
        """Number of ranks."""
        return len(self._hosts)

    def __enter__(self) -> WorkerGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Run a method on all ranks at once, with the same arguments; what they give back, in rank order."""
        packed = ray.put((args, kwargs))  # once, however many ranks
        return self._gather(method, [host.run.remote(method, packed) for host in self._running(method)])

    def call_each(self, method: str, *columns: Sequence[Any], **kwargs: Any) -> list[Any]:
        """The same, with a list for each argument that has one entry per rank; keyword arguments are for all."""
        for column in columns:
            assert len(column) == len(self), f"{method}: {len(column)} arguments for {len(self)} ranks"
        rows = zip(*columns, strict=True) if columns else [()] * len(self)
        pairs = zip(self._running(method), rows, strict=True)
        return self._gather(method, [host.run.remote(method, (row, kwargs)) for host, row in pairs])

    def shutdown(self) -> None:
        """End all processes, whatever they are doing."""
        self._alive = False
        for host in self._hosts:
            ray.kill(host)

    def _places(self) -> list[tuple[str, str, int]]:
        try:
            return ray.get([host.where.remote() for host in self._hosts], timeout=START_S)
        except ray.exceptions.GetTimeoutError as error:
            self.shutdown()
            raise NoRoom(f"{self._name}: not all {len(self)} processes were up after {START_S:g} s") from error
        except ray.exceptions.RayError as error:
            self.shutdown()
            raise WorkerLost(0, "its start", _first_line(error)) from error

    def _build(self, worker_class: type, args: tuple, kwargs: dict, *, address: str, port: int) -> None:
        one_node = len(set(self.nodes)) == 1
        shared = {
            "MASTER_ADDR": "127.0.0.1" if one_node else address,
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(len(self)),
            "LOCAL_RANK": "0",  # Ray shows each process its own GPU only
        }
        packed = ray.put((worker_class, args, kwargs))
        builds = [host.build.remote(packed, {**shared, "RANK": str(rank)}) for rank, host in enumerate(self._hosts)]
        self._gather(f"{self._name}()", builds)

    def _running(self, task: str) -> list[Any]:
        if not self._alive:
            raise WorkerLost(0, task, "its group was shut down before")
        return self._hosts

    def _gather(self, task: str, refs: list[ray.ObjectRef]) -> list[Any]:
        """The results of `refs`, one per rank, as soon as all are there; or the reason, soon after the first failure,
        or when some have not come after `stuck_after`."""
        rank_of = {ref: rank for rank, ref in enumerate(refs)}
        pending, results, failures, lost = list(refs), {}, {}, {}
        stuck_at = time.monotonic() + self._stuck_after if self._stuck_after > 0 else math.inf
        deadline = math.inf
        while pending and not lost and time.monotonic() < deadline:
            until = min(deadline, stuck_at)
            wait_s = None if until == math.inf else max(until - time.monotonic(), 0)
            done, pending = ray.wait(pending, timeout=wait_s)
            for ref in done:
                _sort(ref, rank_of[ref], results, failures, lost)
            if failures:
                grace_s = NEWS_S if all(failed.peer_gone for failed in failures.values()) else GRACE_S
                deadline = min(deadline, time.monotonic() + grace_s)
            elif pending and time.monotonic() >= stuck_at:
                late = sorted(rank_of[ref] for ref in pending)
                words = f"rank(s) {', '.join(map(str, late))} had not finished after {self._stuck_after:g} s"
                lost[late[0]] = f"{words} (trainer.stuck_after)"
        if not failures and not lost:
            return [results[rank] for rank in range(len(refs))]
        self.shutdown()
        raise _reason(task, failures, lost)


def _sort(ref: ray.ObjectRef, rank: int, results: dict, failures: dict, lost: dict) -> None:
    """Put what came of one rank's call where it belongs."""
    try:
        value = ray.get(ref)
    except ray.exceptions.RayTaskError as error:  # not the worker's own: arguments or result do not pickle
        failures[rank] = _Failed(str(error), peer_gone=False)
    except ray.exceptions.RayError as error:
        lost[rank] = _first_line(error)
    else:
        (failures if isinstance(value, _Failed) else results)[rank] = value


def _reason(task: str, failures: dict[int, _Failed], lost: dict[int, str]) -> WorkerError | WorkerLost | ConfigError:
    """The one exception for all that happened: a death explains every complaint about a peer, an exception of a
    worker's own explains them, too."""
    own = {rank: failed for rank, failed in failures.items() if not failed.peer_gone}
    if own and not lost:
        rank = next((rank for rank, failed in own.items() if failed.message), next(iter(own)))
        if own[rank].message:
            return ConfigError(own[rank].message)
        return WorkerError(rank, task, own[rank].text)
    if lost:
        rank = next(iter(lost))
        return WorkerLost(rank, task, lost[rank])
    rank = next(iter(failures))
    return WorkerLost(rank, task, f"it cannot reach its peers\n\n{failures[rank].text.rstrip()}")


def _guarded(work: Callable[[], Any]) -> Any:
    """What `work` gives back, or its exception as a value."""
    try:
        return work()
    except Exception as error:
        message = str(error) if isinstance(error, ConfigError) else ""
        return _Failed(_traceback_text(error), _peer_gone(error), message)


def _traceback_text(error: Exception) -> str:
    """The traceback from where the worker's own code begins."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def _peer_gone(error: Exception) -> bool:
    """An error of torch.distributed about the connection to another rank."""
    distributed = sys.modules.get("torch.distributed")  # not there: nobody here can have used it
    if distributed is None:
        return False
    kinds = (distributed.DistBackendError, distributed.DistNetworkError)
    return isinstance(error, kinds) or any(sign in str(error) for sign in LINK_TROUBLE)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
