"""A group of workers on a real Ray: results in order, one exception for the caller, nothing that hangs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import ray
from group_workers import Stubborn, Worker

from verl.config import ConfigError
from verl.ray import NoRoom, WorkerError, WorkerLost
from verl.ray.group import WorkerGroup
from verl.ray.placement import reserve, reserve_ranks


@pytest.fixture(scope="module")
def room(cluster):
    placement = reserve_ranks(1, 2, {"CPU": 0.5}, remedy="")
    yield placement
    placement.free()


@pytest.fixture(scope="module")
def group(room):
    with WorkerGroup(Worker, 100, placement=room, environment={"TASTE": "salty"}) as group:
        yield group


@pytest.fixture
def joined(room):
    """A group of its own, for a test that ends it, its ranks connected."""
    with WorkerGroup(Worker, placement=room) as group:
        group.call("join")
        yield group


def test_results_come_in_rank_order(group):
    assert len(group) == 2
    assert group.call("slow_first") == [0, 1]
    assert group.call("add", 1) == [101, 111]
    assert group.call("add", 1, times=2) == [202, 222]
    assert group.call_each("add", [5, 6], times=1) == [105, 116]
    assert group.call_each("slow_first") == [0, 1]


def test_ranks_find_their_environment(group):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TASTE")
    assert group.call("environment", *names) == [[r, "2", "0", "127.0.0.1", "salty"] for r in ("0", "1")]
    ports = group.call("environment", "MASTER_PORT")
    assert ports[0] == ports[1]
    assert len(set(group.nodes)) == 1


def test_big_arguments_are_stored_once(group):
    import numpy as np

    image = np.arange(300_000, dtype=np.uint8)
    assert [int(back.sum()) for back in group.call("give_back", image)] == [int(image.sum())] * 2


def test_all_reduce_over_two_ranks_and_then_an_exception_while_the_other_waits_in_a_barrier(joined):
    assert joined.call("sum_of_ranks") == [3.0, 3.0]
    with pytest.raises(WorkerError) as caught:
        joined.call("barrier_unless", 1, "raise_")
    message = str(caught.value)
    assert caught.value.rank == 1
    assert message.startswith("rank 1 failed in barrier_unless\n\nTraceback (most recent call last):")
    assert message.endswith("Unpicklable: no such frame: 17")
    assert 'raise Unpicklable("no such frame: 17")' in message
    assert message.count("Traceback") == 1
    assert "group.py" not in message
    with pytest.raises(WorkerLost, match="shut down before"):
        joined.call("sum_of_ranks")


def test_a_dead_worker_is_lost_though_its_peer_complains_first(joined):
    with pytest.raises(WorkerLost) as caught:
        joined.call("barrier_unless", 1, "die")
    assert caught.value.rank == 1
    assert "rank 1 was lost in barrier_unless" in str(caught.value)


def test_a_dead_worker_is_noticed_while_its_peer_is_stuck(room):
    with WorkerGroup(Stubborn, placement=room) as group, pytest.raises(WorkerLost, match="rank 1 was lost in die_or_"):
        group.call("die_or_wait")


def test_a_rank_that_hangs_is_lost_after_a_while(room):
    """A stopped process neither answers nor dies; its peer waits for it in a barrier."""
    with WorkerGroup(Worker, placement=room, stuck_after=600, stuck_key="trainer.stuck_after") as group:
        group.call("join")
        pids = group.call("pid")
        os.kill(pids[1], signal.SIGSTOP)
        group._stuck_after = 5  # only now: loading torch may take long
        with pytest.raises(WorkerLost, match=r"in barrier_unless: rank\(s\) 0, 1 had not finished after 5 s \(trainer"):
            group.call("barrier_unless", 1, "pid")
    wait_for_the_end_of(pids)


def wait_for_the_end_of(pids):
    """Until none of these processes is left: to be looked at and not measured, so the limit is wide."""
    deadline = time.monotonic() + 300
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.1)


def test_a_calm_rank_is_not_stuck(room):
    with WorkerGroup(Worker, placement=room, stuck_after=600) as group:
        assert group.call("slow_first") == [0, 1]


def test_what_a_user_can_put_right_comes_home_as_that(room):
    with pytest.raises(ConfigError, match=r"^no weights for rank 1$"):
        WorkerGroup(Worker, unfit_on=1, placement=room, user_error=ConfigError)


def test_a_worker_that_cannot_be_built_says_so(room):
    with pytest.raises(WorkerError, match=r"(?s)rank 1 failed in Worker\(\).*ValueError: rank 1 cannot be built"):
        WorkerGroup(Worker, fail_on=1, placement=room)


def test_an_argument_that_cannot_be_read_there_is_an_error_of_ours(room):
    with WorkerGroup(Worker, placement=room) as group, pytest.raises(WorkerError, match="cannot be read here"):
        group.call_each("give_back", [Unreadable(), 1])


class Unreadable:
    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise RuntimeError("cannot be read here")


def test_too_little_room_is_told_and_given_back(cluster):
    def no_room(words):
        return pytest.raises(NoRoom, match=rf"^no room for {words} each after 1 s; the nodes have 4 CPU.* Buy one$")

    asked = {"remedy": "Buy one", "timeout_s": 1}
    with no_room(r"1 node\(s\) x 2 rank\(s\) with 1 CPU, 1 GPU"):
        reserve_ranks(1, 2, {"CPU": 1, "GPU": 1}, **asked)
    with no_room(r"2 node\(s\) x 1 rank\(s\) with 1 CPU, 0 GPU"):
        reserve_ranks(2, 1, {"CPU": 1}, **asked)
    with no_room(r"5 rank\(s\), on any nodes, with 1 CPU, 0 GPU"):
        reserve_ranks(5, 1, {"CPU": 1}, apart=False, **asked)
    with no_room(r"2 reward worker\(s\) with 3 CPU, 0 GPU"):
        reserve(1, 2, {"CPU": 3}, wanted="2 reward worker(s)", **asked)
    assert ray.is_initialized()


def test_after_a_loss_ranks_of_two_nodes_may_share_one(cluster):
    placement = reserve_ranks(2, 1, {"CPU": 0.1}, apart=False, remedy="")
    try:
        assert (len(placement), len(placement.groups)) == (2, 1)
        assert [placement.slot(rank).placement_group_bundle_index for rank in range(2)] == [0, 1]
    finally:
        placement.free()


def test_ranks_of_a_node_follow_each_other(cluster):
    placement = reserve_ranks(2, 1 + 1, {"CPU": 0.1}, remedy="")  # two groups of two
    try:
        slots = [placement.slot(rank) for rank in range(4)]
        where = [(placement.groups.index(s.placement_group), s.placement_group_bundle_index) for s in slots]
        assert where == [(0, 0), (0, 1), (1, 0), (1, 1)]
    finally:
        placement.free()


def test_ranks_of_a_cluster_of_ours_are_as_important_as_their_driver(cluster):
    niceness = ray.remote(lambda: os.nice(0))
    assert ray.get(niceness.remote(), timeout=300) == os.nice(0)
