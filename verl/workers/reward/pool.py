"""Reward workers: processes that own the reward and judge one prompt's replies at a time, beside the caller's work.

A worker that dies or takes too long is replaced, and the prompt it had is judged again on the new one. An exception
of the reward itself is not tried again: it stops the run, naming the prompt.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import ray

from verl.config import RewardConfig
from verl.protocol import Prompt, Reward
from verl.single_controller import placement
from verl.single_controller.errors import NoRoom
from verl.utils import plugins
from verl.workers.reward.base import GROUP

START_S, BUILD_S = 300.0, 600.0
"""Seconds a worker may take to come up, and then to build its reward; `timeout_s` is for judging alone."""


class RewardError(RuntimeError):
    """A prompt's replies could not be judged; the message names the prompt and holds the reward's own traceback."""


class _Closed(RuntimeError):
    """The pool was closed while this prompt was waiting."""


@dataclass(frozen=True)
class _Judged:
    """What a worker sends back for one prompt."""

    rewards: list[Reward]
    seconds: float
    retries: int = 0


@dataclass(frozen=True)
class _Raised:
    """The reward's exception on its way home: a value, so that nothing about it has to pickle."""

    text: str


class _Worker:
    """The Ray actor that owns a reward."""

    def __init__(self) -> None:
        self._reward: Any = None

    def here(self) -> None:
        """Answers as soon as the process is up, and so has found its room."""

    def build(self, config: RewardConfig, factory_name: str) -> _Raised | None:
        try:
            self._reward = plugins.find(factory_name, group=GROUP)(config)
        except Exception:
            return _Raised(traceback.format_exc())
        return None

    def score(self, prompt: Prompt, replies: list[str]) -> _Judged | _Raised:
        start = time.monotonic()
        try:
            images = _at_hand(prompt.images)
            rewards = list(self._reward.score(dataclasses.replace(prompt, images=images), replies))
            if len(rewards) != len(replies):
                raise ValueError(f"the reward gave {len(rewards)} results for {len(replies)} replies")
        except Exception:
            return _Raised(traceback.format_exc())
        return _Judged(rewards, time.monotonic() - start)


class PendingRewards:
    """Rewards that are being worked out."""

    def __init__(self, futures: Sequence[Future[_Judged]]) -> None:
        self._futures = list(futures)

    def done(self) -> bool:
        return all(future.done() for future in self._futures)

    def result(self) -> list[list[Reward]]:
        """Wait; the rewards of each prompt's replies, in the order of the submission. RewardError at the first failure:
        what has not begun by then never does."""
        finished, _ = wait(self._futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in self._futures if future in finished and not future.cancelled()]
        error = next((error for future in failed if (error := future.exception()) is not None), None)
        if error is not None:
            for future in self._futures:
                future.cancel()
            raise error
        return [future.result().rewards for future in self._futures]

    def metrics(self) -> dict[str, float]:
        """Mean and longest seconds of a prompt in its worker, and how many prompts' work was done again; after
        `result`."""
        judged = [future.result() for future in self._futures]
        seconds = [one.seconds for one in judged] or [0.0]
        return {
            "seconds_per_prompt": sum(seconds) / len(seconds),
            "seconds_longest": max(seconds),
            "retries": float(sum(one.retries for one in judged)),
        }


class RewardPool:
    """`config.num_workers` reward workers. A prompt goes to whichever is free first, with all its replies.

    A thread of this process stands by each worker, so that a submission takes no time of the caller's.
    """

    def __init__(self, config: RewardConfig, factory_name: str, *, slots: Sequence[Any] = ()) -> None:
        """`factory_name` names a `RewardFunction`'s factory (see `plugins.find`); ValueError here and now if there is
        none. `slots`: Ray scheduling strategies for the workers, in turn; none: wherever there is room."""
        plugins.find(factory_name, group=GROUP)
        self._config, self._factory_name = config, factory_name
        self._slots = slots
        self._closed = threading.Event()
        self._seats: queue.SimpleQueue[_Seat] = queue.SimpleQueue()
        self._all = [_Seat(self._start(number), number) for number in range(config.num_workers)]
        for seat in self._all:
            self._seats.put(seat)
        self._threads = ThreadPoolExecutor(config.num_workers, thread_name_prefix="reward")

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, prompts: Sequence[Prompt], replies: Sequence[Sequence[str]]) -> PendingRewards:
        """Begin to judge ``replies[i]`` to ``prompts[i]``. Images are stored once per prompt, unless they are a
        reference already."""
        assert len(prompts) == len(replies), f"{len(prompts)} prompts, {len(replies)} lists of replies"
        jobs = [(_by_reference(prompt), list(group)) for prompt, group in zip(prompts, replies, strict=True)]
        return PendingRewards([self._threads.submit(self._judge, *job) for job in jobs])

    def close(self) -> None:
        """End the workers, whatever they are doing, and drop what is waiting."""
        self._closed.set()
        for seat in self._all:
            ray.kill(seat.worker.actor)
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _judge(self, prompt: Prompt, replies: list[str]) -> _Judged:
        """One prompt on the next free seat, as often as workers are lost over it and `max_retries` allows."""
        seat = self._seats.get()
        try:
            retries = 0
            while True:
                try:
                    return dataclasses.replace(self._ask(seat.worker, prompt, replies), retries=retries)
                except _Lost as lost:
                    self._replace(seat)
                    if retries == self._config.max_retries:
                        raise RewardError(
                            f"{prompt.uid}: {retries + 1} reward workers in a row were lost over this prompt, the last "
                            f"one {lost}. worker.reward.max_retries and worker.reward.timeout_s set the limits"
                        ) from lost
                retries += 1
        finally:
            self._seats.put(seat)

    def _ask(self, worker: _Started, prompt: Prompt, replies: list[str]) -> _Judged:
        """The worker's answer. RewardError if the reward raised; `_Lost` if the worker is of no more use."""
        limit_s = self._config.timeout_s
        try:
            self._await_built(worker)
            answer = ray.get(worker.actor.score.remote(prompt, replies), timeout=limit_s)
        except ray.exceptions.RayTaskError as error:  # not lost: arguments or result do not pickle
            raise RewardError(f"{prompt.uid}: the prompt or its rewards could not travel\n\n{error}") from error
        except ray.exceptions.GetTimeoutError as error:
            raise _Lost(f"because it took longer than {limit_s:g} s") from error
        except ray.exceptions.RayError as error:
            raise _Lost(f"because it died ({str(error).strip().splitlines()[0]})") from error
        if isinstance(answer, _Raised):
            raise RewardError(f"{prompt.uid}: the reward raised over this prompt\n\n{answer.text.rstrip()}")
        return answer

    def _await_built(self, worker: _Started) -> None:
        """NoRoom or RewardError if the worker does not come up, or its reward is not built."""
        try:
            ray.get(worker.up, timeout=START_S)
        except ray.exceptions.GetTimeoutError as error:
            wanted = {"CPU": self._config.num_cpus_per_worker, "GPU": self._config.num_gpus_per_worker}
            raise NoRoom(
                f"a reward worker with {placement.words(wanted)} did not come up in {START_S:g} s; {placement.there()}"
            ) from error
        try:
            built = ray.get(worker.built, timeout=BUILD_S)
        except ray.exceptions.GetTimeoutError as error:
            raise RewardError(f"{self._factory_name}: the reward was not built after {BUILD_S:g} s") from error
        if isinstance(built, _Raised):
            raise RewardError(f"{self._factory_name}: the reward could not be built\n\n{built.text.rstrip()}")

    def _replace(self, seat: _Seat) -> None:
        ray.kill(seat.worker.actor)
        if self._closed.is_set():
            raise _Closed("the reward pool was closed")
        seat.worker = self._start(seat.number)
        if self._closed.is_set():  # while this one was being started
            ray.kill(seat.worker.actor)

    def _start(self, number: int) -> _Started:
        """A new worker, which begins to build its reward."""
        config = self._config
        options = {"num_cpus": config.num_cpus_per_worker, "num_gpus": config.num_gpus_per_worker, "max_restarts": 0}
        if self._slots:
            options["scheduling_strategy"] = self._slots[number % len(self._slots)]
        actor = ray.remote(_Worker).options(**options).remote()
        return _Started(actor, actor.here.remote(), actor.build.remote(config, self._factory_name))


@dataclass(frozen=True)
class _Started:
    actor: Any
    up: ray.ObjectRef
    built: ray.ObjectRef


@dataclass
class _Seat:
    """A place in the pool; its worker may change."""

    worker: _Started
    number: int


class _Lost(Exception):
    """A worker died or takes too long."""


def _by_reference(prompt: Prompt) -> Prompt:
    if isinstance(prompt.images, ray.ObjectRef):
        return prompt
    return dataclasses.replace(prompt, images=ray.put(prompt.images))


def _at_hand(images: Any) -> Any:
    """A list of pictures, from it or its reference, or from a list of references."""
    if isinstance(images, ray.ObjectRef):
        images = ray.get(images)
    if any(isinstance(image, ray.ObjectRef) for image in images):
        return [ray.get(image) if isinstance(image, ray.ObjectRef) else image for image in images]
    return images
