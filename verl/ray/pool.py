"""A pool of workers that survives losses: a worker that dies or hangs is replaced, and its tasks are done again.

A worker is an actor of a plain class whose method ``build`` loads what it needs. That method and those that do tasks
return their exceptions as a `Failure`. A pool has no thread: its owner calls `hand_out` and `wait` in turn.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray

from verl.ray import Failure, first_line

Item = TypeVar("Item")


@dataclass(frozen=True)
class Limits:
    """Limits of losses and of waiting beyond which an exception ends the pool."""

    losses: int
    """Workers that may be lost in a row: over one task, or in one slot without having finished anything."""
    stuck_s: float
    """Seconds without a finished task after which a worker that has one counts as lost."""
    stuck_key: str
    """The name under which the user sets `stuck_s`."""
    start_s: float
    """Seconds to wait for a first process to come up."""
    build_s: float
    """Seconds to wait for a first worker to be built, once a process has come up."""


@dataclass(eq=False)
class Task(Generic[Item]):
    """A call of a worker's method, which is made again elsewhere if the worker is lost."""

    method: str
    arguments: tuple[Any, ...]
    item: Item
    """By what the owner of the pool knows the task."""
    losses: int = 0
    """Workers that were lost over it."""


@dataclass(eq=False)
class Slot(Generic[Item]):
    """A place for one worker; the worker may change."""

    number: int
    actor: Any = None
    up: ray.ObjectRef | None = None
    """Pending until the process has come up; then None."""
    built: ray.ObjectRef | None = None
    """Pending until the worker is built; then None."""
    tasks: dict[ray.ObjectRef, Task[Item]] = field(default_factory=dict)
    """The tasks that the worker is running, by the pending result."""
    last: Task[Item] | None = None
    """The task that this worker was given last."""
    losses: int = 0
    """Workers lost here in a row, nothing having been finished in between."""
    since: float = 0.0
    """The time at which the worker last finished a task or, if that was later, got one while it had none."""


class TaskFailed(RuntimeError):
    """The arguments or the result of a task do not pickle."""

    def __init__(self, task: Task, text: str) -> None:
        super().__init__(text)
        self.task = task


class NotBuilt(RuntimeError):
    """A worker's ``build`` raised."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class NotReady(RuntimeError):
    """No worker was ready in time. `came_up`: a process came up, but its worker was not built."""

    def __init__(self, seconds: float, *, came_up: bool) -> None:
        super().__init__(f"no worker was ready after {seconds:g} s")
        self.seconds, self.came_up = seconds, came_up


class TooManyLosses(RuntimeError):
    """Workers were lost again and again. `tasks` are those that the last one had, and are not done again."""

    def __init__(self, tasks: Sequence[Task], *, count: int, reason: str) -> None:
        super().__init__(f"{count} workers in a row were lost, the last one because {reason}")
        self.tasks, self.count, self.reason = tasks, count, reason


class WorkerPool(Generic[Item]):
    """Slots for workers of one class, and the tasks that wait for one of them."""

    def __init__(
        self,
        worker_class: type,
        build_arguments: tuple[Any, ...],
        *,
        strategies: Sequence[Any],
        cpus: float,
        gpus: float,
        limits: Limits,
        ahead: int = 1,
        concurrency: int = 1,
    ) -> None:
        """Start a worker for each of `strategies`, which are Ray's scheduling strategies: where its actor may run.

        `cpus` and `gpus` are a worker's shares. `ahead` tasks at most are given to a worker at a time, of which it
        works on `concurrency` at once.
        """
        self.limits = limits
        self.waiting: deque[Task[Item]] = deque()
        """Tasks to be handed out; the owner appends to it."""
        self._build_arguments, self._ahead = build_arguments, ahead
        self._actor_class: Any = ray.remote(worker_class)  # Ray's types know neither all options nor an actor's methods
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_concurrency": concurrency}
        self._strategies = list(strategies)
        self.slots: list[Slot[Item]] = [Slot(number) for number in range(len(self._strategies))]
        for slot in self.slots:
            self._start(slot)

    @property
    def busy(self) -> bool:
        """Some worker has a task."""
        return any(slot.tasks for slot in self.slots)

    def has_place(self, slot: Slot[Item]) -> bool:
        return slot.built is None and len(slot.tasks) < self._ahead

    def hand_out(self, choose: Callable[[Slot[Item]], Task[Item] | None] | None = None) -> None:
        """Give waiting tasks to workers that have a place for one, to the least busy first.

        `choose` takes a task for a slot out of `waiting`, or gives None where there is none for it; without it the
        first one is taken. Raises TaskFailed; `hand_out` can be called again.
        """
        for slot in sorted(self.slots, key=lambda slot: len(slot.tasks)):
            while self.waiting and self.has_place(slot):
                task = choose(slot) if choose else self.waiting.popleft()
                if task is None:
                    break
                try:
                    pending = getattr(slot.actor, task.method).remote(*task.arguments)
                except Exception as error:  # of any type: pickling calls code of the arguments
                    raise TaskFailed(task, str(error)) from error
                if not slot.tasks:
                    slot.since = time.monotonic()
                slot.tasks[pending] = task
                slot.last = task

    def wait_until_built(self) -> None:
        """Wait until each worker is built, or has failed to be. `wait` begins with those that are."""
        pending = [slot.built for slot in self.slots if slot.built is not None]
        if pending:
            ray.wait(pending, num_returns=len(pending), timeout=self.limits.build_s)

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        for slot in self.slots:
            ray.kill(slot.actor)

    def _take(self, slot: Slot[Item], ref: ray.ObjectRef) -> list[tuple[Task[Item], Any]]:
        """Returns the tasks that one of a slot's pending results ends, with their outcomes; see `wait`."""
        try:
            value = ray.get(ref)
        except ray.exceptions.RayTaskError as error:  # not lost: something does not pickle
            if ref not in slot.tasks:
                raise NotBuilt(Failure(str(error))) from error
            slot.since = time.monotonic()
            raise TaskFailed(slot.tasks.pop(ref), str(error)) from error
        except ray.exceptions.RayError as error:
            self._replace(slot, f"it died ({first_line(error)})")
            return []
        if ref == slot.up:
            slot.up = None
            return []
        if ref == slot.built:
            if isinstance(value, Failure):  # the slot has no worker and gets no task
                raise NotBuilt(value)
            slot.built = None
            return []
        slot.losses, slot.since = 0, time.monotonic()
        return [(slot.tasks.pop(ref), value)]

    def _replace(self, slot: Slot[Item], reason: str) -> None:
        """Start another worker in a slot whose worker is lost, and put its tasks back to the head of the line.

        TooManyLosses instead of the latter, if the limit is passed.
        """
        ray.kill(slot.actor)
        lost = list(slot.tasks.values())
        slot.losses += 1
        for task in lost:
            task.losses += 1
        count = max([slot.losses, *(task.losses for task in lost)])
        given_up = count > self.limits.losses
        if given_up:
            slot.losses = 0  # other tasks have a right to as many workers
        else:
            self.waiting.extendleft(reversed(lost))
        self._start(slot)
        if given_up:
            raise TooManyLosses(lost, count=count, reason=reason)

    def _start(self, slot: Slot[Item]) -> None:
        slot.tasks, slot.last = {}, None
        strategy = self._strategies[slot.number]
        slot.actor = self._actor_class.options(**self._options, scheduling_strategy=strategy).remote()
        slot.up = slot.actor.__ray_ready__.remote()
        slot.built = slot.actor.build.remote(*self._build_arguments)


def wait(*pools: WorkerPool[Item], poll_s: float = math.inf) -> list[tuple[Task[Item], Any]]:
    """Wait until something happens in one of the pools; the task that was finished, if one was, with its result.

    The list is empty where a worker became ready or was replaced, or where nothing happened for `poll_s`. Raises
    TaskFailed, NotBuilt, NotReady or TooManyLosses; the pools can be used on.
    """
    owners = {
        ref: (pool, slot)
        for pool in pools
        for slot in pool.slots
        for ref in (*slot.tasks, slot.up, slot.built)
        if ref is not None
    }
    busy = [(pool, slot) for pool in pools for slot in pool.slots if slot.tasks]
    came_up = any(slot.up is None for pool in pools for slot in pool.slots)
    if busy:
        limit_s = min(slot.since + pool.limits.stuck_s for pool, slot in busy) - time.monotonic()
    else:
        limit_s = max(pool.limits.build_s if came_up else pool.limits.start_s for pool in pools)
    wait_s = max(0.0, min(limit_s, poll_s))
    ready, _ = ray.wait(list(owners), num_returns=1, timeout=None if wait_s == math.inf else wait_s)
    if ready:
        pool, slot = owners[ready[0]]
        return pool._take(slot, ready[0])
    if limit_s > poll_s:
        return []
    if not busy:
        raise NotReady(limit_s, came_up=came_up)
    for pool, slot in busy:
        if time.monotonic() - slot.since >= pool.limits.stuck_s:
            pool._replace(slot, f"it finished nothing for {pool.limits.stuck_s:g} s ({pool.limits.stuck_key})")
    return []
