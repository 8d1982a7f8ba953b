"""Train on a cluster of two nodes (two raylets on this machine) that was there before: ``two_nodes.py SETTING …``."""

import os
import sys

import ray
from ray.cluster_utils import Cluster

from verl.trainer.main import main

if __name__ == "__main__":
    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 1024**2}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2, object_store_memory=100 * 1024**2)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        main(sys.argv[1:])
    finally:
        ray.shutdown()
        cluster.shutdown()
