"""Joins or starts a Ray cluster and reserves a bundle of its resources for each worker."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from verl.ray import NoRoom

Resources = Mapping[str, float]
"""Logical resources by Ray's names, such as ``{"CPU": 1.0, "GPU": 1.0}``."""


def connect(*, address: str | None, cpus: float = 0, quiet: bool = False, store_bytes: int | None = None) -> None:
    """Join the cluster at `address`, or start one on this machine with at least `cpus` logical CPUs if that is empty.

    A process that is connected already stays so. `quiet`: nothing that the workers print is shown here. `store_bytes`:
    size of the object store of a cluster that is started here. A handler of SIGTERM stays in force: Ray's, which takes
    its place, prints a stack and leaves workers on other nodes to time out. NoRoom if the cluster does not let us in.
    """
    if ray.is_initialized():
        return
    handler = signal.getsignal(signal.SIGTERM)
    settings: dict[str, Any] = {"log_to_driver": not quiet, **({"logging_level": "ERROR"} if quiet else {})}
    if address:
        try:
            host, colon, port = address.rpartition(":")
            if colon and port.isdecimal() and "/" not in host:  # Ray itself would go on trying for minutes
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            ray.init(address=address, **settings)
        except (OSError, ValueError) as error:
            raise NoRoom(
                f"no Ray cluster at {address} accepts the connection ({error}); start one with `ray start --head`, "
                "and set RAY_AUTH_MODE=token where it asks for a token"
            ) from None
    else:
        os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 a busy machine leaves workers next to nothing
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, math.ceil(cpus)),  # logical: more workers than cores is slow, not wrong
            include_dashboard=False,
            object_store_memory=store_bytes,
            **settings,
        )
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@dataclass(frozen=True)
class Placement:
    """Reserved bundles, one for each worker; those of a group follow each other."""

    groups: tuple[PlacementGroup, ...]
    per_group: int
    """Bundles in each group."""
    resources: Resources
    """The resources of each bundle."""

    def __len__(self) -> int:
        """Number of bundles."""
        return len(self.groups) * self.per_group

    @property
    def gpu(self) -> bool:
        """Each bundle has a GPU."""
        return self.resources.get("GPU", 0) > 0

    def slot(self, number: int) -> PlacementGroupSchedulingStrategy:
        """The ``scheduling_strategy`` of an actor that is to run in the bundle of this number."""
        group, bundle = divmod(number, self.per_group)
        return PlacementGroupSchedulingStrategy(self.groups[group], placement_group_bundle_index=bundle)

    def free(self) -> None:
        """Give the bundles back; whatever runs in them is killed."""
        for group in self.groups:
            remove_placement_group(group)


def reserve(
    groups: int,
    per_group: int,
    resources: Resources,
    *,
    strategy: str = "PACK",
    wanted: str,
    remedy: str,
    timeout_s: float = 120,
) -> Placement:
    """Wait for `groups` groups of `per_group` bundles with these resources each.

    The bundles of a group are spread over nodes as Ray's `strategy` says; if their node is lost, Ray looks for another
    place for the group. NoRoom if they do not come in time: the message names what was `wanted`, what the cluster has,
    and the caller's `remedy`.
    """
    placement = Placement(
        tuple(placement_group([dict(resources)] * per_group, strategy=strategy) for _ in range(groups)),
        per_group,
        resources,
    )
    deadline = time.monotonic() + timeout_s
    if not all(group.wait(max(deadline - time.monotonic(), 0)) for group in placement.groups):
        placement.free()
        raise NoRoom(f"no room for {wanted} with {words(resources)} each after {timeout_s:g} s; {there()}. {remedy}")
    return placement


def reserve_ranks(
    nodes: int,
    per_node: int,
    resources: Resources,
    *,
    apart: bool = True,
    remedy: str,
    timeout_s: float = 120,
) -> Placement:
    """Wait for room for `per_node` ranks on each of `nodes` nodes; the ranks of a node follow each other.

    Without `apart` the same number of ranks goes wherever there is room, on as few nodes as possible: what is left
    after a loss may do. NoRoom as in `reserve`.
    """
    count, wanted = nodes * per_node, f"{nodes} node(s) x {per_node} rank(s)"
    groups, per_group, strategy = nodes, per_node, "STRICT_PACK"
    if not apart:
        groups, per_group, strategy, wanted = 1, count, "PACK", f"{count} rank(s), on any nodes,"
    elif per_node == 1:  # with more ranks a node STRICT_SPREAD would want as many nodes as ranks
        groups, per_group, strategy = 1, count, "STRICT_SPREAD"
    return reserve(groups, per_group, resources, strategy=strategy, wanted=wanted, remedy=remedy, timeout_s=timeout_s)


def there() -> str:
    """``the nodes have 2 CPU, 1 GPU; 2 CPU, 0 GPU, of which 3 CPU, 1 GPU are free``"""
    nodes = [words(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return f"the nodes have {'; '.join(nodes) or 'gone'}, of which {words(ray.available_resources())} are free"


def words(resources: Resources) -> str:
    """``2 CPU, 1 GPU``"""
    return ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
