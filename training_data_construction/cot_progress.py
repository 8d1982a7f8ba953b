"""Shows the progress of a run: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

from tqdm import tqdm

logger = logging.getLogger(__name__)

EVERY = 30.0
"""Seconds between two lines if there is no terminal."""


class Progress:
    """Counts samples as they are settled. Use as a context manager."""

    def __init__(self, total: int, *, done: int = 0, retries: Counter[str] | None = None) -> None:
        """done: samples of `total` that earlier runs settled. retries: failed requests by kind, counted elsewhere."""
        self.total, self._before, self._start = total, done, time.monotonic()
        self._retries: Counter[str] = Counter() if retries is None else retries
        self.counts: Counter[str] = Counter()
        """Counts of this run: samples (records, rejected, skipped, failed) and unfit answers."""
        self._bar = tqdm(total=total, initial=done, unit="exp", desc="teacher", disable=None)  # None: terminals only

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def settle(self, kind: str) -> None:
        """Counts a settled sample: records, rejected, skipped or failed."""
        self.counts[kind] += 1
        self._bar.set_postfix_str(self._problems(), refresh=False)
        self._bar.update()

    def count_unfit(self) -> None:
        """Counts an answer that is rejected."""
        self.counts["unfit"] += 1

    def _problems(self) -> str:
        counts = {kind: self.counts[kind] for kind in ("unfit", "rejected", "failed")}
        counts["requests without an answer"] = self._retries.total()
        return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)

    def line(self) -> str:
        """Describes the progress: samples done, rate, time left, problems."""
        settled = sum(self.counts[kind] for kind in ("records", "rejected", "skipped", "failed"))
        done, rate = self._before + settled, settled / max(1e-9, time.monotonic() - self._start)
        left = f"{(self.total - done) / rate:.0f} s left" if rate else "nothing yet"
        return ", ".join(filter(None, [f"{done}/{self.total}", f"{rate:.2f}/s", left, self._problems()]))

    async def report(self) -> None:
        """Logs a line every `EVERY` seconds until it is cancelled, if there is no bar."""
        while self._bar.disable:
            await asyncio.sleep(EVERY)
            logger.info("teacher: %s", self.line())
