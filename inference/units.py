"""What is handed out at a time: a few batches of one video, the longest videos first."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from veason.types import VideoSample

LARGEST = 8
"""Samples in a unit, at most: enough that features are shared, few enough that a lost worker costs little."""
SHARES = 4
"""Units per worker, at least, as far as there are samples: what is left at the end is spread."""


@dataclass(frozen=True)
class Unit:
    """Some batches that follow each other."""

    batches: tuple[int, ...]
    """Their numbers: batch b holds samples b * size to (b + 1) * size."""
    video: str
    """Of the first sample; a unit ends where a batch begins with another video."""


def plan(samples: Sequence[VideoSample], *, done: Container[str], batch_size: int, workers: int) -> list[Unit]:
    """Units that hold every batch in which a sample is not `done`, long videos first."""
    starts = range(0, len(samples), batch_size)
    left = [start for start in starts if any(s.key not in done for s in samples[start : start + batch_size])]
    largest = max(1, min(LARGEST, len(left) * batch_size // (SHARES * workers)) // batch_size)  # in batches
    groups: list[list[int]] = []
    for start in left:
        last = groups[-1] if groups else None
        if last is None or len(last) == largest or samples[last[0]].video != samples[start].video:
            groups.append([])
        groups[-1].append(start)
    units = [Unit(tuple(start // batch_size for start in group), samples[group[0]].video) for group in groups]
    length = {sample.video: len(sample) for sample in samples}
    return sorted(units, key=lambda unit: -length[unit.video])  # stable: a video's units stay together
