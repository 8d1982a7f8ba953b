"""A group of ranks, one process each, driven as one: a call runs on all ranks, and the first failure stops them all.

The workers are plain classes that know nothing of Ray; each finds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT in its environment, as torch.distributed wants them.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from verl.ray import Failure, NoRoom, WorkerError, WorkerLost, first_line
from verl.ray.placement import Placement

CPUS = 0.01
"""Logical CPUs that a rank asks of its bundle: the bundle keeps the room, and other workers may use the rest of it."""

START_S = 300.0
"""Seconds that a process may take to come up."""

OTHERS_S, DEATH_S = 5.0, 60.0
"""Seconds for which the other ranks are listened to after one has raised, and after one has complained about a peer:
the news of that peer's death may take long on a busy machine."""

LINK_TROUBLE = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe")
"""The messages of gloo when a peer is gone; it has no exception class of its own for that."""


class _Host:
    """The Ray actor: a process that holds one worker."""

    def __init__(self, user_error: type[Exception] | None) -> None:
        self._worker: Any = None
        self._user_error = user_error

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

        return self._guarded(make)

    def run(self, method: str, packed: tuple[Sequence[Any], Mapping[str, Any]]) -> Any:
        args, kwargs = packed
        return self._guarded(lambda: getattr(self._worker, method)(*args, **kwargs))

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, or its exception as a `Failure`."""
        try:
            return work()
        except Exception as error:
            frames = error.__traceback__  # from where the worker's own code begins
            while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
                frames = frames.tb_next
            distributed = sys.modules.get("torch.distributed")  # not loaded: then nobody here can have used it
            peer_gone = distributed is not None and (
                isinstance(error, (distributed.DistBackendError, distributed.DistNetworkError))
                or any(sign in str(error) for sign in LINK_TROUBLE)
            )
            return Failure.of(error.with_traceback(frames), user_error=self._user_error, peer_gone=peer_gone)


class WorkerGroup:
    """`len(placement)` workers of one class, one per bundle of `placement`.

    All are built with the same `args` and `kwargs`. A method that raises on any rank stops the whole group: the
    others may be waiting for that rank in a collective, for ever. Then `WorkerError` (it raised), a `user_error` (it
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
        stuck_key: str = "stuck_after",
        user_error: type[Exception] | None = None,
        **kwargs: Any,
    ) -> None:
        """`gpu_share`: share of its bundle's GPU that a rank asks for; below 1 leaves room for other workers on it.
        `environment`: variables that the processes start with. `stuck_after`: seconds after which a call, or the
        building, that has not ended on some ranks counts as their loss; 0: never. `stuck_key`: the name under which
        the user sets these seconds. `user_error`: class of the exceptions that the user can put right, which reach the
        caller without a traceback."""
        self._name, self._alive = worker_class.__name__, True
        self._stuck_after, self._stuck_key = stuck_after, stuck_key
        host: Any = ray.remote(_Host)  # Ray's types know neither all options nor an actor's methods
        options = {
            "num_cpus": CPUS,
            "num_gpus": gpu_share if placement.gpu else 0,
            "max_restarts": 0,
            "runtime_env": {"env_vars": dict(environment)} if environment else None,
        }
        self._hosts = [
            host.options(**options, scheduling_strategy=placement.slot(rank)).remote(user_error)
            for rank in range(len(placement))
        ]
        try:
            places = ray.get([host.where.remote() for host in self._hosts], timeout=START_S)
        except ray.exceptions.GetTimeoutError as error:
            self.shutdown()
            raise NoRoom(f"{self._name}: not all {len(self)} processes were up after {START_S:g} s") from error
        except ray.exceptions.RayError as error:
            self.shutdown()
            raise WorkerLost(0, "its start", first_line(error)) from error
        self.nodes: list[str] = [node for node, _, _ in places]
        """Node id of each rank."""
        shared = {
            "MASTER_ADDR": "127.0.0.1" if len(set(self.nodes)) == 1 else places[0][1],
            "MASTER_PORT": str(places[0][2]),
            "WORLD_SIZE": str(len(self)),
            "LOCAL_RANK": "0",  # Ray shows each process its own GPU only
        }
        packed = ray.put((worker_class, args, kwargs))
        builds = [host.build.remote(packed, {**shared, "RANK": str(rank)}) for rank, host in enumerate(self._hosts)]
        self._gather(f"{self._name}()", builds)

    def __len__(self) -> int:
        """Number of ranks."""
        return len(self._hosts)

    def __enter__(self) -> WorkerGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Run a method on all ranks at once, with the same arguments; the results in rank order."""
        self._check_alive(method)
        packed = ray.put((args, kwargs))  # once, however many ranks
        return self._gather(method, [host.run.remote(method, packed) for host in self._hosts])

    def call_each(self, method: str, *columns: Sequence[Any], **kwargs: Any) -> list[Any]:
        """The same, with a list for each argument that has one entry per rank; keyword arguments are for all."""
        self._check_alive(method)
        for column in columns:
            assert len(column) == len(self), f"{method}: {len(column)} arguments for {len(self)} ranks"
        rows = list(zip(*columns, strict=True)) if columns else [()] * len(self)
        pairs = zip(self._hosts, rows, strict=True)
        return self._gather(method, [host.run.remote(method, (row, kwargs)) for host, row in pairs])

    def shutdown(self) -> None:
        """End all processes, whatever they are doing."""
        self._alive = False
        for host in self._hosts:
            ray.kill(host)

    def _check_alive(self, task: str) -> None:
        if not self._alive:
            raise WorkerLost(0, task, "its group was shut down before")

    def _gather(self, task: str, refs: list[ray.ObjectRef]) -> list[Any]:
        """The results of `refs`, one per rank, as soon as all are there; or the reason, soon after the first failure,
        or when some have not come after `stuck_after`."""
        rank_of = {ref: rank for rank, ref in enumerate(refs)}
        pending = list(refs)
        results: dict[int, Any] = {}
        failures: dict[int, Failure] = {}
        lost: dict[int, str] = {}
        stuck_at = time.monotonic() + self._stuck_after if self._stuck_after > 0 else math.inf
        deadline = math.inf
        while pending and not lost and time.monotonic() < deadline:
            until = min(deadline, stuck_at)
            wait_s = None if until == math.inf else max(until - time.monotonic(), 0)
            done, pending = ray.wait(pending, timeout=wait_s)
            for ref in done:
                try:
                    value = ray.get(ref)
                except ray.exceptions.RayTaskError as error:  # not the worker's own: something does not pickle
                    failures[rank_of[ref]] = Failure(str(error))
                except ray.exceptions.RayError as error:
                    lost[rank_of[ref]] = first_line(error)
                else:
                    (failures if isinstance(value, Failure) else results)[rank_of[ref]] = value
            if failures:
                listen_s = DEATH_S if all(failure.peer_gone for failure in failures.values()) else OTHERS_S
                deadline = min(deadline, time.monotonic() + listen_s)
            elif pending and time.monotonic() >= stuck_at:
                late = sorted(rank_of[ref] for ref in pending)
                named = f"rank(s) {', '.join(map(str, late))}"
                lost[late[0]] = f"{named} had not finished after {self._stuck_after:g} s ({self._stuck_key})"
        if not failures and not lost:
            return [results[rank] for rank in range(len(refs))]
        self.shutdown()
        raise _reason(task, failures, lost)


def _reason(task: str, failures: dict[int, Failure], lost: dict[int, str]) -> Exception:
    """The one exception for all that happened. A death explains every complaint about a peer, and so does an exception
    of a rank's own; of these, one that the user can put right comes first."""
    if lost:
        rank = next(iter(lost))
        return WorkerLost(rank, task, lost[rank])
    own = {rank: failure for rank, failure in failures.items() if not failure.peer_gone}
    if not own:
        rank = next(iter(failures))
        return WorkerLost(rank, task, f"it cannot reach its peers\n\n{failures[rank].text.rstrip()}")
    rank = next((rank for rank, failure in own.items() if failure.user_error), next(iter(own)))
    return own[rank].exception() if own[rank].user_error else WorkerError(rank, task, own[rank].text)
