"""From the number of a sample to the request about it, in worker processes that read masks and decode the shown frames.

Worker processes are spawned, and this module is all they import: no HTTP client, no event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from training_data_construction import cot_pictures, cot_prompts, cot_tasks
from training_data_construction.cot_tasks import CotTask, Rules
from veason.datasets.base import Dataset

TOGETHER = 4
"""Requests that a worker builds at a time: neighbours are about one video and share its frames."""


@dataclass(frozen=True)
class CotRequest:
    """What is sent about one sample."""

    key: str
    task: CotTask | None
    """None: the target is in no frame, there is nothing to ask."""
    messages: list[dict[str, Any]]


def build(dataset: Dataset, number: int, rules: Rules) -> CotRequest:
    """The request about sample `number`: its masks read, its shown frames decoded, drawn on and encoded."""
    task = cot_tasks.plan(dataset, number, rules)
    key = dataset[number].key
    if task is None:
        return CotRequest(key=key, task=None, messages=[])
    messages = cot_prompts.messages(
        task.sample.expression,
        task.clip,
        cot_pictures.data_urls(task),
        keyframe=task.answer.keyframe,
        style=cot_prompts.draw_style(Random(f"{rules.seed}/{key}/style")),
    )
    return CotRequest(key=key, task=task, messages=messages)


def build_some(job: tuple[Dataset, Rules], numbers: Sequence[int]) -> list[CotRequest]:
    """The requests about some samples: the task of a `WorkerPool` whose processes share data set and rules."""
    dataset, rules = job
    return [build(dataset, number, rules) for number in numbers]
