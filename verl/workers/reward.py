"""Rewards: what a reward plug-in is, and the worker processes that own one and judge replies beside the caller's work.

A worker judges the replies to one prompt at a time. One that dies or takes too long is replaced, and the prompt it had
is judged again. An exception of the reward itself is not tried again: it stops the run, naming the prompt.
"""

from __future__ import annotations

import dataclasses
import math
import queue
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

import ray

from verl.config import ConfigError, RewardConfig
from verl.protocol import Prompt, Reward
from verl.ray import Failure, NoRoom, placement
from verl.ray.pool import Limits, NotBuilt, NotReady, Slot, Task, TaskFailed, TooManyLosses, WorkerPool, wait
from verl.utils import logs, plugins

START_S, BUILD_S = 300.0, 600.0
"""Seconds a worker may take to come up, and then to build its reward; `timeout_s` is for judging alone."""

POLL_S = 0.1
"""Seconds between two looks for new prompts, while some workers judge and others are free."""


class RewardFunction(Protocol):
    """Built late, inside the reward worker that owns it, by ``factory(config.worker.reward)``.

    The factory is found by name: an entry point of the group ``verl.rewards``, or ``package.module:attribute``. It may
    have two attributes that are looked at before anything is started: ``check``, called with the same settings, whose
    ValueError is told in one line; and ``options``, a dataclass that extends `RewardConfig` by the factory's own keys
    (`verl.utils.plugins.reads` sets both), or a tuple with the names of all ``worker.reward.options`` that it needs.
    """

    def score(self, prompt: Prompt, replies: Sequence[str]) -> list[Reward]:
        """Judge the G replies to `prompt` (its images at hand), in their order.

        A malformed reply is data and gets its Reward; an exception is the reward's own failure and stops the run.
        """
        ...


def check_reward(config: RewardConfig) -> None:
    """ConfigError if there is no reward of the configured name, or it cannot work with its settings."""
    try:
        factory = plugins.find(config.compute_score, group=plugins.REWARDS)
        wanted = getattr(factory, "options", None)
        if isinstance(wanted, tuple):
            for name in config.options.keys() - set(wanted):
                near = get_close_matches(name, wanted, n=1, cutoff=0.3)
                meant = f" (did you mean {near[0]}?)" if near else ""
                there = ", ".join(wanted) or "none"
                raise ValueError(f"worker.reward.options.{name} is no option of it{meant}; it has {there}")
            missing = [f"worker.reward.options.{name}" for name in wanted if name not in config.options]
            if missing:
                raise ValueError(f"it needs {', '.join(missing)}")
        check = getattr(factory, "check", None)
        if check is not None:
            check(config)
    except ValueError as error:
        raise ConfigError(f"worker.reward.compute_score={config.compute_score}: {error}") from error


class RewardError(RuntimeError):
    """A prompt's replies could not be judged; the message names the prompt and holds the reward's own traceback."""


@dataclass(frozen=True)
class _Judged:
    """The result that a worker sends back for one prompt."""

    rewards: list[Reward]
    seconds: float
    retries: int = 0


class RewardWorker:
    """Owns a reward; runs as a Ray actor."""

    def __init__(self) -> None:
        self._reward: Any = None

    def build(self, config: RewardConfig, factory_name: str) -> Failure | None:
        logs.configure("reward worker")
        try:
            self._reward = plugins.find(factory_name, group=plugins.REWARDS)(config)
        except Exception:
            return Failure(traceback.format_exc())
        return None

    def score(self, prompt: Prompt, replies: list[str]) -> _Judged | Failure:
        start = time.monotonic()
        try:
            images = prompt.images
            if isinstance(images, ray.ObjectRef):
                images = ray.get(images)
            images = [ray.get(image) if isinstance(image, ray.ObjectRef) else image for image in images]
            rewards = list(self._reward.score(dataclasses.replace(prompt, images=images), replies))
            if len(rewards) != len(replies):
                raise ValueError(f"the reward gave {len(rewards)} results for {len(replies)} replies")
        except Exception:
            return Failure(traceback.format_exc())
        return _Judged(rewards, time.monotonic() - start)


class PendingRewards:
    """The rewards of a submission while workers judge it."""

    def __init__(self, futures: Sequence[Future[_Judged]]) -> None:
        self._futures = list(futures)

    def done(self) -> bool:
        return all(future.done() for future in self._futures)

    def result(self) -> list[list[Reward]]:
        """Wait; the rewards of each prompt's replies, in the order of the submission. RewardError at the first failure,
        which also drops the prompts that no worker has begun with."""
        finished, _ = wait_for(self._futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in self._futures if future in finished and not future.cancelled()]
        error = next((error for future in failed if (error := future.exception()) is not None), None)
        if error is not None:
            for future in self._futures:
                future.cancel()
            raise error
        return [future.result().rewards for future in self._futures]

    def metrics(self) -> dict[str, float]:
        """Mean and longest seconds of a prompt in its worker, and how often a prompt was judged again after the loss of
        its worker. Call it after `result`."""
        judged = [future.result() for future in self._futures]
        seconds = [one.seconds for one in judged] or [0.0]
        return {
            "seconds_per_prompt": sum(seconds) / len(seconds),
            "seconds_longest": max(seconds),
            "retries": float(sum(one.retries for one in judged)),
        }


@dataclass(frozen=True)
class _Job:
    uid: str
    judged: Future[_Judged]


class RewardPool:
    """`config.num_workers` reward workers. A prompt goes to whichever is free first, with all its replies.

    A thread of this process hands prompts out and takes the rewards, so that a submission takes no time of the
    caller's.
    """

    def __init__(self, config: RewardConfig, factory_name: str, *, slots: Sequence[Any] = ()) -> None:
        """`factory_name` names a `RewardFunction`'s factory (see `plugins.find`); ValueError here and now if there is
        none. `slots`: Ray scheduling strategies for the workers, in turn; none: wherever there is room."""
        plugins.find(factory_name, group=plugins.REWARDS)
        self._config, self._factory_name = config, factory_name
        self._inbox: queue.SimpleQueue[Task[_Job] | None] = queue.SimpleQueue()
        """Submitted tasks that the thread has not seen; None wakes it up."""
        self._closed = threading.Event()
        self._workers: WorkerPool[_Job] = WorkerPool(
            RewardWorker,
            (config, factory_name),
            strategies=[slots[number % len(slots)] if slots else "DEFAULT" for number in range(config.num_workers)],
            cpus=config.num_cpus_per_worker,
            gpus=config.num_gpus_per_worker,
            limits=Limits(
                losses=config.max_retries,
                stuck_s=config.timeout_s,
                stuck_key="worker.reward.timeout_s",
                start_s=START_S,
                build_s=BUILD_S,
            ),
        )
        self._thread = threading.Thread(target=self._run, name="rewards", daemon=True)
        self._thread.start()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, prompts: Sequence[Prompt], replies: Sequence[Sequence[str]]) -> PendingRewards:
        """Begin to judge ``replies[i]`` to ``prompts[i]``. Images are stored once per prompt, unless they are a
        reference already."""
        assert len(prompts) == len(replies), f"{len(prompts)} prompts, {len(replies)} lists of replies"
        assert not self._closed.is_set(), "the reward pool is closed"
        futures: list[Future[_Judged]] = []
        for prompt, group in zip(prompts, replies, strict=True):
            if not isinstance(prompt.images, ray.ObjectRef):
                prompt = dataclasses.replace(prompt, images=ray.put(prompt.images))
            futures.append(Future())
            self._inbox.put(Task("score", (prompt, list(group)), _Job(prompt.uid, futures[-1])))
        return PendingRewards(futures)

    def close(self) -> None:
        """End the workers, whatever they are doing, and drop what is waiting."""
        self._closed.set()
        self._inbox.put(None)
        self._workers.close()  # now, since the thread may be waiting for one of them
        self._thread.join()

    def _run(self) -> None:
        """The work of the pool's thread, until the pool is closed. An exception that ends it earlier reaches all
        prompts."""
        broken: Exception | None = None
        try:
            self._judge_all()
        except NotBuilt as error:
            broken = RewardError(
                f"{self._factory_name}: the reward could not be built\n\n{error.failure.text.rstrip()}"
            )
        except NotReady as error:
            if error.came_up:
                broken = RewardError(f"{self._factory_name}: the reward was not built after {error.seconds:g} s")
            else:
                wanted = {"CPU": self._config.num_cpus_per_worker, "GPU": self._config.num_gpus_per_worker}
                broken = NoRoom(
                    f"a reward worker with {placement.words(wanted)} did not come up in {error.seconds:g} s; "
                    f"{placement.there()}"
                )
        except Exception as error:
            broken = error
        self._workers.close()  # those, too, that were started while `close` ran
        broken = broken or RuntimeError("the reward pool was closed")
        tasks = [*self._workers.waiting, *(task for slot in self._workers.slots for task in slot.tasks.values())]
        while tasks or not self._closed.is_set() or not self._inbox.empty():
            task = tasks.pop() if tasks else self._inbox.get()
            if task is not None:
                self._fail(task, broken)

    def _judge_all(self) -> None:
        """Hand out prompts and take rewards until the pool is closed."""
        workers = self._workers
        while not self._closed.is_set():
            idle = not workers.busy and not workers.waiting
            while idle or not self._inbox.empty():
                task = self._inbox.get()
                if task is None:
                    return
                workers.waiting.append(task)
                idle = False
            try:
                workers.hand_out(self._next)
                if not workers.busy and not workers.waiting:  # they were all cancelled
                    continue
                free = any(workers.has_place(slot) for slot in workers.slots)
                for task, found in wait(workers, poll_s=POLL_S if free else math.inf):
                    if isinstance(found, Failure):
                        text = f"{task.item.uid}: the reward raised over this prompt\n\n{found.text.rstrip()}"
                        self._fail(task, RewardError(text))
                    else:
                        task.item.judged.set_result(dataclasses.replace(found, retries=task.losses))
            except TaskFailed as error:
                text = f"{error.task.item.uid}: the prompt or its rewards could not be pickled\n\n{error}"
                self._fail(error.task, RewardError(text))
            except TooManyLosses as error:
                limits = "worker.reward.max_retries and worker.reward.timeout_s set the limits"
                if not error.tasks:
                    text = f"{error.count} reward workers in a row were lost while the reward was built, the last one "
                    raise RewardError(f"{self._factory_name}: {text}because {error.reason}. {limits}") from error
                for task in error.tasks:
                    text = f"{error.count} reward workers in a row were lost over this prompt, the last one "
                    self._fail(task, RewardError(f"{task.item.uid}: {text}because {error.reason}. {limits}"))

    def _next(self, slot: Slot[_Job]) -> Task[_Job] | None:
        """The first waiting task that was not cancelled, which from here on cannot be."""
        while self._workers.waiting:
            task = self._workers.waiting.popleft()
            if task.item.judged.running() or task.item.judged.set_running_or_notify_cancel():
                return task
        return None

    def _fail(self, task: Task[_Job], error: Exception) -> None:
        future = task.item.judged
        if future.running() or future.set_running_or_notify_cancel():  # neither for one that was cancelled
            future.set_exception(error)
