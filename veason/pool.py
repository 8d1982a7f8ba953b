"""Do the same thing to many items in processes of our own, in order, with a progress bar.

The shared part (an opened data set, say) is pickled once for each worker. One worker is this very process.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import cv2
from tqdm import tqdm

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 8  # items a worker that are under way or done and not yet asked for


def map_in_order(
    task: Callable[[Shared, Item], Result],
    shared: Shared,
    items: Sequence[Item],
    *,
    workers: int,
    label: str,
    unit: str,
) -> Iterator[Result]:
    """``task(shared, item)`` for each item, in the order of the items; a bar on stderr if that is a terminal.

    `task` is a function of a module. More than one worker starts processes (spawn), so the caller's script needs its
    ``if __name__ == "__main__"``. What a task raises is raised here; a worker that dies is a RuntimeError.
    """
    bar = tqdm(total=len(items), desc=label, unit=unit, disable=not sys.stderr.isatty())
    results = _in_pool(task, shared, items, workers) if workers > 1 else (task(shared, item) for item in items)
    with bar:
        for result in results:
            bar.update()
            yield result


def _in_pool(
    task: Callable[[Shared, Item], Result], shared: Shared, items: Sequence[Item], workers: int
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    processes = min(workers, len(items)) or 1
    pool = ProcessPoolExecutor(processes, context, initializer=_start, initargs=(task, shared))
    waiting: list[Future[Result]] = []
    try:
        for item in items:
            waiting.append(pool.submit(_do, item))
            if len(waiting) == processes * _AHEAD:  # results are not piled up behind a slow first item
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    except BrokenProcessPool as error:
        raise RuntimeError("a worker died, perhaps out of memory; use fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


_task: Callable[[Any], Any] | None = None


def _start(task: Callable[[Any, Any], Any], shared: Any) -> None:
    global _task
    cv2.setNumThreads(0)  # one process a core
    _task = lambda item: task(shared, item)  # noqa: E731


def _do(item: Any) -> Any:
    assert _task is not None
    return _task(item)
