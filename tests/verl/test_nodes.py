"""The loop on two nodes of a cluster (two raylets on this machine), one of which may be lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_training import lines, settings

from demo.policy import write_tiny_policy
from verl.trainer.main import main

pytestmark = pytest.mark.slow
HERE = str(Path(__file__).parent)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    write_tiny_policy(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def plain(cluster, policy, tmp_path_factory):
    """The run on one node, to compare with."""
    folder = tmp_path_factory.mktemp("plain")
    main(settings(policy, folder))
    return folder


def on_two_nodes(policy, folder, *arguments):
    """Run `two_nodes.py`: a rank on each of two nodes, HEAD and FATE first among `arguments`."""
    head, fate, *more = arguments
    chosen = settings(policy, folder, "trainer.nnodes=2", "trainer.n_gpus_per_node=1", *more)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([HERE, str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(Path(HERE) / "two_nodes.py"), head, fate, *chosen]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200, check=False)


def test_two_nodes_of_a_cluster_that_was_there_before(policy, plain, tmp_path):
    done = on_two_nodes(policy, tmp_path, "2", "stays")
    assert done.returncode == 0, done.stderr[-3000:]
    assert lines(tmp_path) == lines(plain)  # the ranks do not care where they are


@pytest.mark.parametrize(("head", "fate"), [("3", "dies"), ("1", "replaced")])
def test_a_lost_node_restarts_the_run_where_there_is_room(policy, plain, tmp_path, head, fate):
    """Three CPUs on the node that is left hold both ranks and the reward; with one, all waits for the node to come."""
    done = on_two_nodes(policy, tmp_path, head, fate)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "killed node" in done.stderr
    assert "restart 1 of 3: rank" in done.stderr
    assert "resuming after step 2" in done.stderr
    assert lines(tmp_path) == lines(plain)


def test_a_lost_node_without_which_there_is_no_room_is_told_in_time(policy, tmp_path):
    done = on_two_nodes(policy, tmp_path, "1", "dies", "trainer.placement_timeout_s=20")
    assert done.returncode != 0
    error = done.stderr[done.stderr.rindex("NoRoom: ") :]
    assert "no room for 2 rank(s), on any nodes, with 1 CPU, 0 GPU each after 20 s" in error
    assert "nodes have 1 CPU, 0 GPU, of which" in error
    assert "It was needed because rank" in error
