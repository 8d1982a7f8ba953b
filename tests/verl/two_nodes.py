"""Train on a cluster of two nodes (two raylets on this machine) that was there before.

``two_nodes.py HEAD FATE SETTING …``: the head has HEAD logical CPUs, the other node two. FATE is what becomes of that
other node once three steps are done and two saved: ``stays``, ``dies`` (SIGKILL), or ``replaced``: a third joins then.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from verl.trainer.main import main

MEMORY = 100 * 1024**2


def strike(node, metrics: Path) -> None:
    """Kill `node` somewhere in the fourth step."""
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
        time.sleep(0.005)
    raylet = node.all_processes["raylet"][0].process
    os.kill(raylet.pid, signal.SIGKILL)
    raylet.wait()
    print(f"killed node {node.node_id}", file=sys.stderr, flush=True)


def join(address: str) -> subprocess.Popen:
    """A third node, in a process of its own: only the main thread, which trains, may add one."""
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={address}"]
    return subprocess.Popen([*start, "--num-cpus=2", f"--object-store-memory={MEMORY}"], stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    head, fate, *settings = sys.argv[1:]
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": int(head), "include_dashboard": False, "object_store_memory": MEMORY},
    )
    other = cluster.add_node(num_cpus=2, object_store_memory=MEMORY)
    os.environ["RAY_ADDRESS"] = cluster.address
    (folder,) = (s.partition("=")[2] for s in settings if s.startswith("trainer.save_checkpoint_path="))
    joined = []

    def happen() -> None:
        strike(other, Path(folder) / "metrics.jsonl")
        if fate == "replaced":
            joined.append(join(cluster.address))

    if fate != "stays":
        threading.Thread(target=happen, daemon=True).start()
    try:
        main(settings)
    finally:
        ray.shutdown()
        for process in joined:
            process.terminate()
            process.wait()
        cluster.shutdown()
