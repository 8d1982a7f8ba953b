"""Where ranks run: join or start a Ray cluster, and reserve one bundle per rank, node by node."""

from __future__ import annotations

import os
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

    A cluster that happens to run here is not joined unless RAY_ADDRESS says so. `options` go to ``ray.init``.
    """
    if ray.is_initialized():
        return
    settings = {"log_to_driver": True, **options}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**settings)
        return
    count = max(os.cpu_count() or 1, -int(-cpus // 1))  # logical: more ranks than cores is slow, not wrong
    ray.init(**{"address": "local", "num_cpus": count, "include_dashboard": False, **settings})


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
        groups, bundles = [placement_group([bundle] * (nodes * per_node), strategy="PACK")], nodes * per_node
    elif per_node == 1 and nodes > 1:
        groups, bundles = [placement_group([bundle] * nodes, strategy="STRICT_SPREAD")], nodes
    else:
        # one group a node: STRICT_SPREAD over all bundles would want as many nodes as ranks
        groups = [placement_group([bundle] * per_node, strategy="STRICT_PACK") for _ in range(nodes)]
        bundles = per_node
    placement = Placement(tuple(groups), bundles, gpu)
    try:
        ray.get([group.ready() for group in groups], timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        placement.free()
        wanted = f"{nodes} node(s) x {per_node} rank(s)" if apart else f"{nodes * per_node} rank(s), on any nodes,"
        raise NoRoom(
            f"no room for {wanted} with {words(bundle)} each after {timeout_s:g} s (trainer.placement_timeout_s); "
            f"{there()}. Set trainer.nnodes and trainer.n_gpus_per_node to what there is, or free what other runs hold"
        ) from error
    return placement


def there() -> str:
    """``nodes have 2 CPU, 1 GPU; 2 CPU, 0 GPU, of which 3 CPU, 1 GPU are free``"""
    nodes = [words(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return f"nodes have {'; '.join(nodes) or 'gone'}, of which {words(ray.available_resources())} are free"


def words(resources: dict[str, float]) -> str:
    """``2 CPU, 1 GPU``"""
    return ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
