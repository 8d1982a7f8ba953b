"""Runs one task on many items in worker processes, in order, with a progress bar.

The shared part (an opened data set, say) is pickled once for each worker. One worker is this very process.

Worker processes end with the process that started them, however that one ends: each holds the reading end of a pipe of
which only the parent has the writing end, and exits as soon as that is closed, which the system does even for a parent
that was killed. An interrupt of the keyboard goes to the parent alone; it then closes the pipe.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

import cv2

from veason.command import set_up_logging
from veason.errors import DataError

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 8
"""Items per worker that are under way, or done and not yet asked for."""


class WorkerPool:
    """Processes that do ``task(shared, item)`` and do not outlive the one that made them; a context manager.

    Leaving the block with an exception ends the workers at once. A worker that dies is a `DataError`. Workers are
    started by `spawn`, so the caller's script needs its ``if __name__ == "__main__"``.
    """

    def __init__(
        self,
        task: Callable[[Shared, Item], Any],
        shared: Shared,
        *,
        workers: int,
        start: Callable[[], object] | None = None,
    ) -> None:
        """task, start: functions of a module; `start` is called once in each worker, before any task."""
        context = multiprocessing.get_context("spawn")
        self._theirs, self._alive = context.Pipe(duplex=False)
        initial = (self._theirs, task, shared, start)
        self._pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=initial)

    def submit(self, item: Any) -> Future[Any]:
        """Have a worker do the task on an item; to be called from one thread."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # workers are started here and inherit it
        try:
            return self._pool.submit(_do, item)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._alive.close()
        self._pool.shutdown(cancel_futures=True)
        self._alive.close()
        self._theirs.close()
        if isinstance(error, BrokenProcessPool):
            raise DataError("a worker died, perhaps out of memory; use fewer --workers") from error


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

    `task` is a function of a module. More than one worker starts processes (see `WorkerPool`). An exception of a task
    is raised here.
    """
    from tqdm import tqdm  # workers show no bar, and loading it takes longer than OpenCV

    bar = tqdm(total=len(items), desc=label, unit=unit, disable=not sys.stderr.isatty())
    if workers <= 1:
        with bar:
            for item in items:
                result = task(shared, item)
                bar.update()
                yield result
        return
    processes = min(workers, len(items)) or 1
    waiting: deque[Future[Result]] = deque()
    with bar, WorkerPool(task, shared, workers=processes) as pool:
        left = iter(items)
        while True:
            for item in itertools.islice(left, processes * _AHEAD - len(waiting)):  # bounded behind a slow first item
                waiting.append(pool.submit(item))
            if not waiting:
                return
            result = waiting.popleft().result()
            bar.update()
            yield result


_task: Callable[[Any], Any] | None = None


def _start(alive: Connection, task: Callable[[Any, Any], Any], shared: Any, start: Callable[[], object] | None) -> None:
    global _task
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    set_up_logging()
    cv2.setNumThreads(0)  # one process a core
    if start is not None:
        start()
    _task = lambda item: task(shared, item)  # noqa: E731


def _end_with_parent(alive: Connection) -> None:
    """Wait until the other end of the pipe is closed, then end the process without cleaning up."""
    with contextlib.suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)


def _do(item: Any) -> Any:
    assert _task is not None
    return _task(item)
