"""A pool of workers on a real Ray: who gets what, and what becomes of tasks whose worker dies or hangs."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from itertools import count

import pytest
from pool_workers import PoolWorker

from verl.ray.pool import Limits, NotBuilt, NotReady, Task, TaskFailed, TooManyLosses, WorkerPool, wait


@pytest.fixture
def opened(cluster, tmp_path):
    """Opens pools of a worker class whose processes share a folder."""

    @contextmanager
    def make(*, workers=1, fault="", cpus=0.1, ahead=1, losses=1, stuck_s=600.0, start_s=600.0):
        limits = Limits(losses=losses, stuck_s=stuck_s, stuck_key="--stuck", start_s=start_s, build_s=600.0)
        strategies, build = ["DEFAULT"] * workers, (str(tmp_path), fault)
        pool = WorkerPool(PoolWorker, build, strategies=strategies, cpus=cpus, gpus=0, limits=limits, ahead=ahead)
        try:
            yield pool
        finally:
            pool.close()

    return make


def doubled(*numbers, method="double"):
    return [Task(method, (number,), str(number)) for number in numbers]


def work(*pools, waiting=()):
    """Results by the tasks' names, in the order in which they came, once nothing is left to do."""
    found = {}
    pools[0].waiting.extend(waiting)
    while True:
        for pool in pools:
            pool.hand_out()
        if not any(pool.busy or pool.waiting for pool in pools):
            return found
        found |= {task.item: result for task, result in wait(*pools)}


def test_one_worker_does_the_tasks_in_their_order_ahead_or_not(opened):
    for ahead in (1, 2):
        with opened(ahead=ahead) as pool:
            pool.waiting.extend(doubled(5, 6, 7))
            assert list(work(pool).items()) == [("5", (10, 1)), ("6", (12, 2)), ("7", (14, 3))]


def test_a_worker_has_no_more_tasks_ahead_than_it_may(opened):
    with opened(workers=2, ahead=2) as pool:
        pool.wait_until_built()
        while any(slot.built is not None for slot in pool.slots):
            assert wait(pool) == []
        pool.waiting.extend(doubled(*range(5)))
        pool.hand_out()
        assert [[task.item for task in slot.tasks.values()] for slot in pool.slots] == [["0", "1"], ["2", "3"]]
        assert [task.item for task in pool.waiting] == ["4"]
        assert [slot.last.item for slot in pool.slots] == ["1", "3"]
        assert work(pool).keys() == {"0", "1", "2", "3", "4"}


def test_the_owner_may_choose_and_may_hold_tasks_back(opened):
    with opened() as pool:
        pool.waiting.extend(doubled(1, 2, 3))

        def last_but_never_the_first(slot):
            return pool.waiting.pop() if len(pool.waiting) > 1 else None

        found = {}
        while len(found) < 2:
            pool.hand_out(last_but_never_the_first)
            found |= {task.item: result for task, result in wait(pool)}
        pool.hand_out(last_but_never_the_first)
        assert list(found) == ["3", "2"]
        assert [task.item for task in pool.waiting] == ["1"]
        assert not pool.busy


def test_what_a_dead_worker_had_is_done_first_and_in_order_by_its_successor(opened):
    with opened(ahead=2) as pool:
        first, *more = [*doubled(1, method="die_once"), *doubled(2, 3)]
        pool.waiting.extend([first, *more])
        assert list(work(pool).items()) == [("1", (2, 1)), ("2", (4, 2)), ("3", (6, 3))]
        assert [task.losses for task in (first, *more)] == [1, 1, 0]  # the second one was in its hands, too
        assert pool.slots[0].losses == 0  # it has finished something since


def test_a_worker_that_hangs_is_replaced(opened):
    with opened(stuck_s=20) as pool:
        (task,) = doubled(1, method="hang_once")
        pool.waiting.append(task)
        assert work(pool) == {"1": (2, 1)}
        assert task.losses == 1


def test_a_task_that_always_kills_is_given_up_and_the_pool_goes_on(opened):
    with opened(losses=2) as pool:
        pool.waiting.extend([Task("die", (), "fatal"), *doubled(4)])
        with pytest.raises(TooManyLosses, match="3 workers in a row were lost, the last one because it died") as caught:
            work(pool)
        assert [task.item for task in caught.value.tasks] == ["fatal"]
        assert work(pool) == {"4": (8, 1)}


def test_a_stuck_task_that_is_given_up_names_the_limit(opened):
    with opened(losses=0, stuck_s=2) as pool:
        pool.waiting.extend(doubled(1, method="hang_once"))
        with pytest.raises(TooManyLosses, match=r"1 workers .* because it finished nothing for 2 s \(--stuck\)"):
            work(pool)


def test_workers_that_die_while_they_are_built_are_counted_too(opened):
    with opened(fault="die once") as pool:
        pool.waiting.extend(doubled(1))
        assert work(pool) == {"1": (2, 1)}
    with opened(fault="die") as pool:
        pool.waiting.extend(doubled(1))
        with pytest.raises(TooManyLosses, match="2 workers in a row") as caught:
            work(pool)
        assert caught.value.tasks == []
        assert [task.item for task in pool.waiting] == ["1"]  # nobody had it


def test_what_cannot_be_built_or_sent_says_why(opened):
    with opened(fault="raise") as pool, pytest.raises(NotBuilt, match=r"^no weights$"):
        work(pool, waiting=doubled(1))
    with opened() as pool:
        pool.waiting.extend([Task("unpicklable", (), "odd"), *doubled(2)])
        with pytest.raises(TaskFailed, match="pickle") as caught:
            work(pool)
        assert caught.value.task.item == "odd"
        assert work(pool) == {"2": (4, 1)}  # by the same worker, which counts what it could do
        pool.waiting.extend([Task("double", (threading.Lock(),), "unsendable"), *doubled(3)])
        with pytest.raises(TaskFailed, match="lock") as caught:
            work(pool)
        assert caught.value.task.item == "unsendable"
        assert work(pool) == {"3": (6, 2)}


def test_workers_without_room_are_not_waited_for_for_ever(opened):
    with opened(cpus=99, start_s=1) as pool, pytest.raises(NotReady, match="no worker was ready after 1 s") as caught:
        wait(pool)
    assert not caught.value.came_up


def test_a_pool_may_be_left_for_a_while(opened):
    with opened(workers=2) as pool:
        pool.waiting.extend(doubled(1, method="hang_once"))
        for _ in count():
            pool.hand_out()
            if pool.busy:
                break
            wait(pool)
        assert wait(pool, poll_s=0.01) == []


def test_two_pools_are_waited_for_together(opened):
    with opened() as one, opened() as other:
        one.waiting.extend(doubled(1, 2))
        other.waiting.extend(doubled(3))
        assert work(one, other).keys() == {"1", "2", "3"}
