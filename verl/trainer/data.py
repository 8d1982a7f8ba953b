"""Which prompts a step trains on: a function of (seed, step) alone, so resuming needs no state and decodes nothing.

And which ones validation asks: `choose` draws them by seed, every group (video) once before any twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from verl.config import ConfigError
from verl.protocol import Prompt


class PromptError(ConfigError):
    """Data that the user can put right; a plug-in raises it when it is opened and in `get`."""


class PromptDataset(Protocol):
    """A data set plug-in; `get` may be called from several threads.

    Four more methods may be there, and are used where they are:

    - ``outline(index) -> Outline``: what is known of a prompt before a picture is decoded. With it, over-long prompts
      are found before the run starts, and validation is drawn evenly and its keys are kept;
    - ``notes(model_path) -> list[str]``: what a user should be told before the run starts, such as settings that the
      checkpoint was not trained with;
    - ``fingerprint() -> dict[str, str]``: of each file that prompts are read from, by its role. A run that is resumed
      must find the same ones;
    - ``asked() -> dict``: how a checkpoint of the run wants to be asked; saved and exported with it.
    """

    def __len__(self) -> int: ...

    def get(self, index: int, *, epoch: int) -> Prompt:
        """Prompt number `index`; what is random in it depends on the plug-in's seed, `epoch` and `index` alone."""
        ...


@dataclass(frozen=True)
class Outline:
    """The part of a prompt that is known before a picture is decoded."""

    key: str
    """Names the prompt among all of its data set, whatever the epoch."""
    group: str
    """Name that prompts of the same origin share, such as their video."""
    kind: str
    """Prompts of one kind are few or many; validation is drawn to hold each kind as often as the others."""
    messages: list[dict[str, Any]] = field(repr=False)
    """Chat messages of the longest prompt that it may become in any epoch."""
    image_sizes: tuple[tuple[int, int], ...] = field(repr=False)
    """(height, width) in pixels of that prompt's images."""


def choose(outlines: Sequence[Outline], count: int, *, seed: int) -> list[int]:
    """Positions of at most `count` of the outlines, ascending: every group once before any twice, and so on.

    Within that, a group gives the kind that is rarest among those already taken. The same outlines and seed give the
    same choice.
    """
    rng = Random(f"{seed}/validation")
    groups: dict[str, list[int]] = {}
    for position, outline in enumerate(outlines):
        groups.setdefault(outline.group, []).append(position)
    for group in rng.sample(list(groups), len(groups)):  # in this order, however many prompts each has
        members = groups.pop(group)
        groups[group] = rng.sample(members, len(members))
    taken: list[int] = []
    kinds: Counter[str] = Counter()
    while groups and len(taken) < count:
        turn = list(groups)[: count - len(taken)]
        turn.sort(key=lambda group: len({outlines[i].kind for i in groups[group]}))  # who can choose, chooses last
        for group in turn:
            position = min(groups[group], key=lambda i: kinds[outlines[i].kind])  # the first of equals: by the seed
            groups[group].remove(position)
            kinds[outlines[position].kind] += 1
            taken.append(position)
        groups = {group: left for group, left in groups.items() if left}
    return sorted(taken)


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
