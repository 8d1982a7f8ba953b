"""Where ranks run: join or start a Ray cluster, and reserve one bundle per rank, node by node."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from verl.single_controller.errors import NoRoom

SHARE = 0.01
"""What a CPU rank asks of its bundle: the bundle is what keeps room, and reward workers may use the rest of it."""


def connect(*, cpus: float = 0, **options: Any) -> None:
    """Join the cluster of RAY_ADDRESS, or start one on this machine with at least `cpus` logical CPUs.

    A cluster that happens to run here is not joined unless RAY_ADDRESS says so. `options` go to ``ray.init``. A handler
    of SIGTERM stays in force: Ray's, which takes its place, prints a stack.
    """
    if ray.is_initialized():
        return
    handler = signal.getsignal(signal.SIGTERM)
    settings = {"log_to_driver": True, **options}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**settings)
    else:
        os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 a busy machine leaves workers next to nothing
        count = max(os.cpu_count() or 1, -int(-cpus // 1))  # logical: more ranks than cores is slow, not wrong
        ray.init(**{"address": "local", "num_cpus": count, "include_dashboard": False, **settings})
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@dataclass(frozen=True)
class Placement:
    """Room for ``nodes * per_node`` ranks; ranks of a node follow each other."""

    groups: tuple[PlacementGroup, ...]
    bundles: int
    """Ranks per group."""
    gpu: bool
    """Each bundle has a GPU."""

    def __len__(self) -> int:
        """Number of ranks."""
        return len(self.groups) * self.bundles

    def slot(self, rank: int) -> PlacementGroupSchedulingStrategy:
        """For an actor's ``scheduling_strategy``: into the bundle of this rank."""
        group, bundle = divmod(rank, self.bundles)
        return PlacementGroupSchedulingStrategy(self.groups[group], placement_group_bundle_index=bundle)

    def free(self) -> None:
        """Give the room back; whatever runs in it is killed."""
        for group in self.groups:
            remove_placement_group(group)


def reserve(
    nodes: int,
    per_node: int,
    *,
    gpu: bool,
    cpus_per_rank: float = 1.0,
    apart: bool = True,
    timeout_s: float = 120,
) -> Placement:
    """Wait for room for `per_node` ranks on each of `nodes` nodes, each with `cpus_per_rank` CPUs and, for `gpu`, one
    GPU. Without `apart` the same number of ranks goes wherever there is room, on as few nodes as possible: what is left
    after a loss may do. NoRoom, with what was wanted and what there is, if it does not come in time."""
    bundle = {"CPU": cpus_per_rank, **({"GPU": 1.0} if gpu else {})}
    if not apart:
        count = nodes * per_node
        wanted = f"{count} rank(s), on any nodes,"
        groups, bundles = [placement_group([bundle] * count, strategy="PACK")], count
    else:
        wanted = f"{nodes} node(s) x {per_node} rank(s)"
        groups, bundles = _apart(bundle, nodes, per_node)
    return _granted(
        Placement(tuple(groups), bundles, gpu),
        f"{wanted} with {words(bundle)} each",
        "Set trainer.nnodes and trainer.n_gpus_per_node to what there is, or free what other runs hold",
        timeout_s=timeout_s,
    )


def reserve_beside(count: int, *, cpus: float, timeout_s: float = 120) -> Placement:
    """Wait for room for `count` reward workers with `cpus` CPUs each, anywhere; NoRoom as in `reserve`."""
    bundle = {"CPU": cpus}
    return _granted(
        Placement((placement_group([bundle] * count, strategy="PACK"),), count, gpu=False),
        f"{count} reward worker(s) with {words(bundle)} each beside the ranks",
        "Set worker.reward.num_workers and worker.reward.num_cpus_per_worker to what there is",
        timeout_s=timeout_s,
    )


def _apart(bundle: dict[str, float], nodes: int, per_node: int) -> tuple[list[PlacementGroup], int]:
    """Groups of bundles that hold the ranks node by node, and the bundles in each."""
    if per_node == 1 and nodes > 1:
        return [placement_group([bundle] * nodes, strategy="STRICT_SPREAD")], nodes
    # one group a node: STRICT_SPREAD over all bundles would want as many nodes as ranks
    return [placement_group([bundle] * per_node, strategy="STRICT_PACK") for _ in range(nodes)], per_node


def _granted(placement: Placement, wanted: str, remedy: str, *, timeout_s: float) -> Placement:
    """`placement` once all of it is reserved; given back, with NoRoom, if that takes too long."""
    deadline = time.monotonic() + timeout_s
    if not all(group.wait(max(deadline - time.monotonic(), 0)) for group in placement.groups):
        placement.free()
        raise NoRoom(f"no room for {wanted} after {timeout_s:g} s (trainer.placement_timeout_s); {there()}. {remedy}")
    return placement


def there() -> str:
    """``nodes have 2 CPU, 1 GPU; 2 CPU, 0 GPU, of which 3 CPU, 1 GPU are free``"""
    nodes = [words(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return f"nodes have {'; '.join(nodes) or 'gone'}, of which {words(ray.available_resources())} are free"


def words(resources: dict[str, float]) -> str:
    """``2 CPU, 1 GPU``"""
    return ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
