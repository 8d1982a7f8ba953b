"""The run itself: requests built ahead by worker processes, a fixed number in flight, every answer kept as it comes.

Nothing is thrown away that was paid for: when a run is stopped, by Ctrl-C or by an error, no new request goes out, and
the answers on their way are waited for and kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import zlib
from collections import deque
from collections.abc import Awaitable, Sequence
from concurrent.futures.process import BrokenProcessPool

from training_data_construction.cot_journal import CotJournal
from training_data_construction.cot_progress import Progress
from training_data_construction.cot_replies import Watch, rejection
from training_data_construction.cot_requests import TOGETHER, CotRequest
from training_data_construction.cot_teacher import Teacher
from training_data_construction.records import CotRecord
from veason.chat import GaveUp
from veason.errors import DataError
from veason.worker_pool import WorkerPool

GIVE_UP_AFTER = 20
"""Samples in a row without any answer after which the server is taken to be down."""


class CotRun:
    """One run over some samples; `run` once."""

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
        """max_rejections: unfit answers per sample, those of earlier runs included. template: of the prompt."""
        self.teacher, self.journal, self.progress = teacher, journal, progress
        self.seed, self.max_rejections, self.concurrency, self.template = seed, max_rejections, concurrency, template
        self.failures: list[tuple[str, str]] = []
        """(key, what came last) of samples without an answer."""
        self._in_a_row = 0
        self._watch = Watch()
        if journal.records:  # of earlier runs: server and model can do it
            self._watch.add(None, "")
        self._error: BaseException | None = None
        self._stopping = asyncio.Event()

    async def run(self, numbers: Sequence[int], pool: WorkerPool, *, ahead: int) -> None:
        """Ask about samples `numbers`; `ahead` requests are built before they are needed. Raises what stopped it."""
        ready: asyncio.Queue[CotRequest | None] = asyncio.Queue(ahead)
        reporting = asyncio.create_task(self.progress.report())
        with self._signals():
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._feed(numbers, pool, ready, ahead))
                    for _ in range(self.concurrency):
                        group.create_task(self._ask_all(ready))
            finally:
                reporting.cancel()
        if self._error:
            raise self._error

    async def _feed(
        self, numbers: Sequence[int], pool: WorkerPool, ready: asyncio.Queue[CotRequest | None], ahead: int
    ) -> None:
        """Requests in the order of `numbers`, then one None per asker. Askers that stop still empty the queue."""
        await self._guard(self._build(numbers, pool, ready, ahead))
        for _ in range(self.concurrency):
            await ready.put(None)

    async def _build(
        self, numbers: Sequence[int], pool: WorkerPool, ready: asyncio.Queue[CotRequest | None], ahead: int
    ) -> None:
        """Never more than twice `ahead` requests exist that nobody asks yet: half being built, half in the queue."""
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
            raise DataError(
                "a worker process died, most likely for want of memory; lower --num_workers and run the same command "
                "again"
            ) from error
        finally:
            for future in pending:
                future.cancel()

    async def _ask_all(self, ready: asyncio.Queue[CotRequest | None]) -> None:
        while (request := await ready.get()) is not None:
            if not self._stopping.is_set():
                await self._guard(self._settle(request))

    async def _guard(self, step: Awaitable[None]) -> None:
        """Whatever fails stops the run in an orderly way; the first failure is the one that is told."""
        try:
            await step
        except Exception as error:
            self._error = self._error or error
            self.stop()

    async def _settle(self, request: CotRequest) -> None:
        """Ask until an answer is fit, or there have been enough that are not."""
        if request.task is None:
            self.journal.skip(request.key)
            self.progress.settle("skipped")
            return
        sample, answer = request.task.sample, request.task.answer
        for attempt in range(self.journal.rejections[request.key], self.max_rejections):
            try:
                reply = await self.teacher.ask(request.messages, seed=self._seed(request.key, attempt))
            except GaveUp as error:
                self._give_up(request.key, str(error))
                return
            self._in_a_row = 0
            reason = rejection(reply, expression=sample.expression, keyframe=answer.keyframe)
            if reason is None:
                self._watch.add(None, reply.text)
                record = CotRecord(sample=sample, clip=request.task.clip, thinking=reply.text, answer=answer)
                self.journal.accept(record, reply, template=self.template)
                self.progress.settle("records")
                return
            self.journal.reject(request.key, reply, reason)
            self.progress.count_unfit()
            self._watch.add(reason, reply.text or reply.reasoning)
            if self._stopping.is_set():
                return
        self.progress.settle("rejected")

    def _seed(self, key: str, attempt: int) -> int:
        """31 bits: a new seed for every answer, the same for the same one in every run."""
        return zlib.crc32(f"{self.seed}/{key}/{attempt}".encode()) & 0x7FFFFFFF

    def _give_up(self, key: str, detail: str) -> None:
        if self._stopping.is_set():
            return
        self.failures.append((key, detail))
        self.progress.settle("failed")
        self._in_a_row += 1
        if self._in_a_row >= GIVE_UP_AFTER:
            raise DataError(
                f"{self._in_a_row} samples in a row got no answer, the last one because of {detail}; see to the server "
                "and run the same command again: what was answered is kept"
            )

    def stop(self) -> None:
        """No new request from now on; answers on their way are still kept."""
        self._stopping.set()
        self.teacher.stop_retrying()

    @contextlib.contextmanager
    def _signals(self):
        """The first Ctrl-C (or SIGTERM) stops in an orderly way, the second at once."""
        loop, run = asyncio.get_running_loop(), asyncio.current_task()
        assert run is not None

        def stop() -> None:
            if self._stopping.is_set():
                run.cancel()
                return
            self._error = self._error or KeyboardInterrupt()
            print("\nstopping: waiting for the answers on their way; once more to leave at once", file=sys.stderr)
            self.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
