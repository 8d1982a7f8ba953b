"""Runs the requests: worker processes build them ahead, a fixed number is in flight, every answer is kept as it comes.

Paid answers are never lost: when a run is stopped, by a signal or by an error, no new request goes out, and the answers
on their way are awaited and kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

from training_data_construction.cot_journal import CotJournal
from training_data_construction.cot_progress import Progress
from training_data_construction.cot_replies import FirstReplies, rejection
from training_data_construction.cot_requests import TOGETHER, CotRequest
from training_data_construction.records import CotRecord
from veason.chat import Chat, GaveUp
from veason.completion import Completion
from veason.errors import DataError
from veason.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

GIVE_UP_AFTER = 20
"""Number of samples in a row without any answer after which the server is taken to be down."""

_THOUGHT = re.compile(r".*</\s{0,9}think(?:ing)?\s{0,9}>", re.IGNORECASE | re.DOTALL)


class Teacher(Chat):
    """Asks a server for chains of thought; the server's own thinking is left out of its answers."""

    async def ask(self, messages: list[dict[str, Any]], *, seed: int) -> Completion:
        """Returns the teacher's answer without surrounding white space.

        Text up to the last ``</think>`` is how the teacher came to its answer: it goes to `reasoning`, as it does where
        the server splits it off. An answer behind such a tag in the server's reasoning field is taken from there.
        """
        reply = await super().ask(messages, seed=seed)
        text = reply.text if reply.text.strip() else reply.reasoning
        if thought := _THOUGHT.match(text):
            return replace(reply, text=text[thought.end() :].strip(), reasoning=thought[0])
        return replace(reply, text=reply.text.strip())


class Stopped(BaseException):
    """Raised by a run that a signal has stopped."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


class CotRun:
    """One run over some samples; call `run` once."""

    def __init__(
        self,
        *,
        teacher: Teacher,
        journal: CotJournal,
        progress: Progress,
        seed: int,
        max_rejections: int,
        concurrency: int,
        template: str | None = None,
    ) -> None:
        """max_rejections: unfit answers per sample, earlier runs included. template: of the prompt in the records."""
        self.teacher, self.journal, self.progress = teacher, journal, progress
        self.seed, self.max_rejections, self.concurrency, self.template = seed, max_rejections, concurrency, template
        self.failures: list[tuple[str, str]] = []
        """(key, last error) of samples without an answer."""
        self._in_a_row = 0
        self._first = FirstReplies()
        if journal.records:  # earlier runs got fit answers, so server and model are able to
            self._first.add(None, "")
        self._error: BaseException | None = None
        self._cancelled: Stopped | None = None
        self._stopping = asyncio.Event()

    async def run(self, numbers: Sequence[int], pool: WorkerPool, *, ahead: int) -> None:
        """Asks about samples `numbers`; `ahead` requests are built before they are needed.

        Raises the first error, or `Stopped` after a signal; a second signal does not wait for answers on their way.
        """
        ready: asyncio.Queue[CotRequest | None] = asyncio.Queue(ahead)
        reporting = asyncio.create_task(self.progress.report())
        with self._stopped_by_signals():
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._build(numbers, pool, ready, ahead))
                    for _ in range(self.concurrency):
                        group.create_task(self._ask_all(ready))
            except asyncio.CancelledError:
                if self._cancelled is None:
                    raise
                raise self._cancelled from None
            finally:
                reporting.cancel()
        if self._error:
            raise self._error

    async def _build(
        self, numbers: Sequence[int], pool: WorkerPool, ready: asyncio.Queue[CotRequest | None], ahead: int
    ) -> None:
        """Puts requests into `ready` in the order of `numbers`, then one None per asker.

        At most twice `ahead` requests exist that are not asked yet: half being built, half in the queue.
        """
        pending: deque[asyncio.Future[list[CotRequest]]] = deque()
        waiting = iter([numbers[start : start + TOGETHER] for start in range(0, len(numbers), TOGETHER)])
        try:
            while not self._stopping.is_set():
                while TOGETHER * len(pending) < ahead and (some := next(waiting, None)) is not None:
                    pending.append(asyncio.wrap_future(pool.submit(some)))
                if not pending:
                    break
                for request in await pending.popleft():
                    await ready.put(request)
        except BrokenProcessPool as error:
            failure = DataError(
                "a worker process died, most likely for want of memory; lower --num_workers and run the same command "
                "again"
            )
            failure.__cause__ = error
            self.stop(failure)
        except Exception as error:
            self.stop(error)
        finally:
            for future in pending:
                future.cancel()
        for _ in range(self.concurrency):
            await ready.put(None)

    async def _ask_all(self, ready: asyncio.Queue[CotRequest | None]) -> None:
        """Asks one request after the other; once the run stops, it only empties the queue."""
        while (request := await ready.get()) is not None:
            if not self._stopping.is_set():
                try:
                    await self._ask(request)
                except Exception as error:
                    self.stop(error)

    async def _ask(self, request: CotRequest) -> None:
        """Asks until an answer is fit, or the sample has had its number of unfit answers."""
        if request.task is None:
            self.journal.skip(request.key)
            self.progress.settle("skipped")
            return
        sample, answer = request.task.sample, request.task.answer
        for attempt in range(self.journal.rejections[request.key], self.max_rejections):
            # 31 bits: every answer has a seed of its own, the same in every run
            seed = zlib.crc32(f"{self.seed}/{request.key}/{attempt}".encode()) & 0x7FFFFFFF
            try:
                reply = await self.teacher.ask(request.messages, seed=seed)
            except GaveUp as error:
                if self._stopping.is_set():
                    return
                self.failures.append((request.key, str(error)))
                self.progress.settle("failed")
                self._in_a_row += 1
                if self._in_a_row >= GIVE_UP_AFTER:
                    raise DataError(
                        f"{self._in_a_row} samples in a row got no answer, the last one because of {error}; check the "
                        "server and run the same command again: all answers so far are kept"
                    ) from error
                return
            self._in_a_row = 0
            reason = rejection(reply, expression=sample.expression, keyframe=answer.keyframe)
            if reason is None:
                self._first.add(None, reply.text)
                record = CotRecord(sample=sample, clip=request.task.clip, thinking=reply.text, answer=answer)
                self.journal.accept(record, reply, template=self.template)
                self.progress.settle("records")
                return
            self.journal.reject(request.key, reply, reason)
            self.progress.count_unfit()
            self._first.add(reason, reply.text or reply.reasoning)
            if self._stopping.is_set():
                return
        self.progress.settle("rejected")

    def stop(self, reason: BaseException) -> None:
        """Stops sending requests; answers on their way are still kept. `run` raises the first reason at its end."""
        self._error = self._error or reason
        self._stopping.set()
        self.teacher.stop_retrying()

    @contextlib.contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """Within this block the first SIGINT or SIGTERM lets the run finish its requests, the second cancels it."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def stop(number: signal.Signals) -> None:
            if self._stopping.is_set():
                self._cancelled = Stopped(number)
                task.cancel()
                return
            logger.info("stopping: waiting for the answers on their way; send the signal again to leave at once")
            self.stop(Stopped(number))

        for number in before:
            loop.add_signal_handler(number, stop, number)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                if handler is not None:  # None: not set by Python
                    signal.signal(number, handler)
