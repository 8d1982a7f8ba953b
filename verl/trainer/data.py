"""Which prompts a step trains on: a function of (seed, step) alone, so resuming needs no state and decodes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Protocol

from verl.protocol import Prompt


class PromptDataset(Protocol):
    """A data set plug-in; `get` may be called from several threads."""

    def __len__(self) -> int: ...

    def get(self, index: int, *, epoch: int) -> Prompt:
        """Prompt number `index`; what is random in it depends on the plug-in's seed, `epoch` and `index` alone."""
        ...


@dataclass(frozen=True)
class Schedule:
    """The order of prompts: each epoch a permutation of its own, cut into steps; a last incomplete one is left out."""

    length: int
    batch_size: int
    seed: int
    shuffle: bool = True

    @property
    def steps_per_epoch(self) -> int:
        if self.length < self.batch_size:
            raise ValueError(f"{self.length} prompts are fewer than data.rollout_batch_size {self.batch_size}")
        return self.length // self.batch_size

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def indices(self, step: int) -> list[int]:
        """Numbers of the prompts of `step` (from 0)."""
        order = list(range(self.length))
        if self.shuffle:
            Random(f"{self.seed}/{self.epoch(step)}").shuffle(order)
        start = step % self.steps_per_epoch * self.batch_size
        return order[start : start + self.batch_size]


def batches(dataset: PromptDataset, schedule: Schedule, steps: range, *, threads: int = 4) -> Iterator[list[Prompt]]:
    """The prompts of each step in turn; the next step's are decoded meanwhile."""
    with ThreadPoolExecutor(threads, "prompts") as pool:

        def start(step: int) -> list[Future[Prompt]]:
            epoch = schedule.epoch(step)
            return [pool.submit(dataset.get, index, epoch=epoch) for index in schedule.indices(step)]

        waiting = start(steps[0]) if steps else []
        for step in steps:
            following = start(step + 1) if step + 1 in steps else []
            yield [future.result() for future in waiting]
            waiting = following
