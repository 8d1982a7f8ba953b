"""The reward pool on a real Ray: order, images by reference, and every way in which a worker can fail."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import ray

from verl.config import RewardConfig
from verl.protocol import Prompt
from verl.ray import NoRoom
from verl.workers.reward import RewardError, RewardPool


@contextmanager
def opened(folder, factory="Lengths", **changes):
    config = RewardConfig(**{"num_cpus_per_worker": 0.1, "options": {"folder": str(folder)}, **changes})
    with RewardPool(config, f"rewards_for_pool:{factory}") as pool:
        yield pool


@pytest.fixture(scope="module")
def pool(cluster, tmp_path_factory):
    """Two workers, for all tests after which they still work."""
    with opened(tmp_path_factory.mktemp("pool"), num_workers=2) as pool:
        yield pool


@pytest.fixture
def prompts(tmp_path):
    def make(count, *, images=None):
        image = np.ones((4, 5, 3), np.uint8)
        own = [images if images is not None else [image * i, image] for i in range(count)]
        return [Prompt(f"p{i}", [], own[i], str(tmp_path)) for i in range(count)]

    return make


def totals(rewards):
    return [[reward.total for reward in group] for group in rewards]


def noted(folder, name):
    return len((folder / name).read_text().splitlines())


def test_rewards_come_in_order_a_group_from_one_worker(pool, prompts):
    pending = pool.submit(prompts(4), [["slow", "a"], ["", "bb", "ccc"], [], ["slow"]])
    rewards = pending.result()
    assert totals(rewards) == [[4, 1], [0, 2, 3], [], [4]]
    assert [reward.parts["brightness"] for reward in rewards[1]] == [120.0] * 3
    assert rewards[3][0].parts["brightness"] == 240.0
    assert len({reward.parts["pid"] for reward in rewards[1]}) == 1
    metrics = pending.metrics()
    assert metrics["retries"] == 0
    assert 0.25 <= metrics["seconds_per_prompt"] <= metrics["seconds_longest"]


def test_two_workers_share_the_work_beside_the_caller(pool, prompts):
    deadline, seen = time.monotonic() + 300, set()
    while len(seen) < 2:  # until both are up
        assert time.monotonic() < deadline
        seen |= {group[0].parts["pid"] for group in pool.submit(prompts(2), [["slow"], ["slow"]]).result()}
    pending = pool.submit(prompts(4), [["slow"]] * 4)
    assert not pending.done()
    rewards = pending.result()
    assert pending.done()
    assert len({group[0].parts["pid"] for group in rewards}) == 2
    assert pool.submit([], []).result() == []


def test_images_are_stored_once_though_judged_twice_and_read_from_any_reference(pool, prompts, monkeypatch, tmp_path):
    image = np.full((4, 5, 3), 2, np.uint8)
    stored = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda thing: stored.append(thing) or put(thing))
    for images, times in ((put([image]), 0), ([put(image)], 1), ([image], 1)):
        stored.clear()
        pending = pool.submit(prompts(1, images=images), [["crash_once", "x"]])
        assert pending.result()[0][0].parts["brightness"] == 120.0
        assert len(stored) == times
    assert noted(tmp_path, "scored p0") == 4  # one of them crashed


def test_an_exception_of_the_reward_stops_at_once_naming_the_prompt(pool, prompts, tmp_path):
    with pytest.raises(RewardError) as caught:
        pool.submit(prompts(3), [["a"], ["bug"], ["slow"]]).result()
    message = str(caught.value)
    assert message.startswith("p1: the reward raised over this prompt\n\nTraceback (most recent call last):")
    assert message.endswith("Unpicklable: the tracker got no box")
    assert message.count("Traceback") == 1
    assert noted(tmp_path, "scored p1") == 1  # not tried again
    assert totals(pool.submit(prompts(1), [["a"]]).result()) == [[1]]


def test_a_prompt_that_does_not_travel_is_named(pool):
    with pytest.raises(RewardError, match=r"(?s)p0: the prompt or its rewards could not be pickled.*readable there"):
        pool.submit([Prompt("p0", [], [], Unreadable())], [["a"]]).result()


def test_a_prompt_that_cannot_be_sent_is_named_and_the_pool_goes_on(pool, prompts):
    first, last = prompts(2)
    pending = pool.submit([first, Prompt("p1", [], [], threading.Lock()), last], [["a"], ["b"], ["cc"]])
    with pytest.raises(RewardError, match=r"(?s)p1: the prompt or its rewards could not be pickled.*lock"):
        pending.result()
    assert totals(pool.submit([first, last], [["a"], ["bb"]]).result()) == [[1], [2]]


class Unreadable:
    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise RuntimeError("not readable there")


def test_work_of_a_lost_worker_is_done_again(cluster, prompts, tmp_path):
    with opened(tmp_path, num_workers=1) as pool:
        pending = pool.submit(prompts(3), [["a"], ["crash_once", "b"], ["cc"]])
        assert totals(pending.result()) == [[1], [10, 1], [2]]
        assert pending.metrics()["retries"] == 1
        assert [noted(tmp_path, f"scored p{i}") for i in range(3)] == [1, 2, 1]
        assert noted(tmp_path, "built") == 2
        ray.kill(pool._workers.slots[0].actor)
        pending = pool.submit(prompts(2), [["a"], ["bb"]])
        assert totals(pending.result()) == [[1], [2]]
        assert pending.metrics()["retries"] == 1


@pytest.mark.slow  # of the pool itself there is a fast one, in test_ray_pool.py
def test_a_worker_that_hangs_is_replaced(cluster, prompts, tmp_path):
    with opened(tmp_path, timeout_s=30) as pool:
        pending = pool.submit(prompts(2), [["hang_once"], ["a"]])
        assert totals(pending.result()) == [[9], [1]]
        assert pending.metrics()["retries"] == 1


def test_a_prompt_that_always_crashes_stops_with_its_name(cluster, prompts, tmp_path):
    with opened(tmp_path, max_retries=1) as pool:
        with pytest.raises(RewardError, match=r"^p1: 2 reward workers in a row were lost .* because it died"):
            pool.submit(prompts(3), [["a"], ["crash"], ["a"]]).result()
        assert noted(tmp_path, "scored p1") == 2


def test_a_reward_that_loses_count_is_wrong(cluster, prompts, tmp_path):
    expected = r"(?s)p0: .*ValueError: the reward gave 1 results for 2 replies"
    with opened(tmp_path, "TooFew") as pool, pytest.raises(RewardError, match=expected):
        pool.submit(prompts(1), [["a", "b"]]).result()


def test_a_reward_that_cannot_be_built_says_why(cluster, prompts, tmp_path):
    expected = r"(?s)not_buildable: the reward could not be built.*: weights\.pt"
    with opened(tmp_path, "not_buildable") as pool, pytest.raises(RewardError, match=expected):
        pool.submit(prompts(1), [["a"]]).result()


def test_a_worker_without_room_is_told_in_time(cluster, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("verl.workers.reward.START_S", 1)
    expected = r"a reward worker with 99 CPU, 0 GPU did not come up in 1 s; the nodes have 4 CPU"
    with opened(tmp_path, num_cpus_per_worker=99) as pool, pytest.raises(NoRoom, match=expected):
        pool.submit(prompts(2), [["a"], ["b"]]).result()


def test_an_unknown_reward_is_refused_here_and_now(tmp_path):
    expected = r"rewards_for_pool has no 'Widths'.*; it has .*Lengths"
    with pytest.raises(ValueError, match=expected), opened(tmp_path, "Widths"):
        pass


def test_closing_ends_what_hangs(cluster, prompts, tmp_path):
    with opened(tmp_path) as pool:
        pending = pool.submit(prompts(2), [["hang_once"], ["a"]])
        deadline = time.monotonic() + 600
        while not (tmp_path / "hang").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert pending.done()
