"""From the number of a sample to the request about it, in worker processes that read masks and decode the shown frames.

Worker processes are spawned, and this module is all they import: no HTTP client, no event loop.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any

import cv2

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


def open_pool(dataset: Dataset, rules: Rules, *, workers: int) -> ProcessPoolExecutor:
    """A pool whose processes know the data set: submit `build_in_worker` with some numbers."""
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(dataset, rules),
    )


_job: tuple[Dataset, Rules]
"""Of a worker process, set once when it starts."""


def _start_worker(dataset: Dataset, rules: Rules) -> None:
    global _job
    _job = (dataset, rules)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides what it means
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent closes nothing: without this its workers would wait for the next job for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def build_in_worker(numbers: Sequence[int]) -> list[CotRequest]:
    dataset, rules = _job
    return [build(dataset, number, rules) for number in numbers]
