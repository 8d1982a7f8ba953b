"""Room for workers on a Ray cluster: one bundle for each pair of policy and tracker, on a GPU of its own or on CPUs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from veason.errors import DataError

WAIT_S = 120.0
"""Seconds to wait for the room asked for: nodes may still be joining."""
STORE = 512 << 20
"""Bytes of the object store of a cluster of our own; what travels is small."""
_TERMINATED = 128 + signal.SIGTERM
"""Exit status of a command that SIGTERM ended, as a shell tells it."""
CPUS = 0.4
"""Logical CPUs of a policy and of a tracker; a bundle has one."""


@dataclass(frozen=True)
class Room:
    """A bundle. It is given back with the run; Ray looks for another place if its node is lost."""

    group: PlacementGroup
    gpu: bool

    def start(self, worker: type, *, gpu_share: float, calls: int = 1) -> Any:
        """An actor of a class in this bundle, with `gpu_share` of its GPU and so many `calls` at once."""
        return (
            ray.remote(worker)
            .options(
                num_cpus=CPUS,
                num_gpus=gpu_share if self.gpu else 0,
                max_restarts=0,
                max_concurrency=calls,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=0),
            )
            .remote()
        )


@contextlib.contextmanager
def rooms(count: int, *, gpu: bool, address: str | None) -> Iterator[list[Room]]:
    """`count` bundles, on the cluster at `address` or on one that is started here; given back at the end.

    DataError, with what there is, if the room does not come in time.
    """
    made: list[Room] = []
    terminated = threading.Event()
    try:
        _connect(address, cpus=count)
        _end_on_sigterm(terminated)
        bundle = {"CPU": 1.0, **({"GPU": 1.0} if gpu else {})}
        _check_gpus(count if gpu else 0)
        made += [Room(placement_group([bundle], strategy="PACK"), gpu) for _ in range(count)]
        deadline = time.monotonic() + WAIT_S
        if not all(room.group.wait(max(deadline - time.monotonic(), 0)) for room in made):
            raise DataError(
                f"no room for {count} workers with {_words(bundle)} each after {WAIT_S:g} s; {there()}. Ask for fewer "
                "with --gpus or --workers, or free what other runs hold"
            )
        yield made
    except SystemExit:  # of whose status Ray makes a 1, where it waits
        if terminated.is_set():
            raise SystemExit(_TERMINATED) from None
        raise
    finally:
        for room in made:
            remove_placement_group(room.group)
        ray.shutdown()


def _connect(address: str | None, *, cpus: int) -> None:
    if address:
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError) as error:
            raise DataError(
                f"no Ray cluster at {address} lets us in ({error}); start one with `ray start --head`, and set "
                "RAY_AUTH_MODE=token where it asks for a token"
            ) from None
        return
    os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 a busy machine leaves workers next to nothing
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, cpus),  # logical: more workers than cores is slow, not wrong
        include_dashboard=False,
        object_store_memory=STORE,
        log_to_driver=False,
        logging_level="ERROR",
    )


def _end_on_sigterm(terminated: threading.Event) -> None:
    """End this process in order where SLURM or a service manager asks it to end, and set the event then.

    Ray's own handler, which this takes the place of, prints a stack and leaves workers on other nodes to time out.
    """

    def end(number: int, frame: object) -> NoReturn:
        if not terminated.is_set():
            terminated.set()
            print("stopped by SIGTERM; the same command goes on where this one was", file=sys.stderr)
        raise SystemExit(_TERMINATED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


def _knock(address: str) -> None:
    """OSError if nobody listens at HOST:PORT: Ray itself would go on trying for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _check_gpus(wanted: int) -> None:
    """DataError at once where waiting would be in vain, but for nodes that have not joined yet."""
    if wanted and not ray.cluster_resources().get("GPU"):
        raise DataError(f"--gpus {wanted}, but {there()}; give --workers N to run on CPUs")


def there() -> str:
    """``the nodes have 2 CPU, 1 GPU; 2 CPU, 0 GPU``"""
    nodes = [_words(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return f"the nodes have {'; '.join(nodes) or 'gone'}"


def _words(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
