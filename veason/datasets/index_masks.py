"""Ground truth as palette PNGs: the value of a pixel is the number of the object there, 0 none, 255 "void"."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from veason import masks
from veason.datasets.pictures import read_indices
from veason.types import Rle, VideoSample

VOID = 255
"""Pixels that nobody wanted to decide on; they are no object."""


class IndexMasks:
    """The folder ``<video>/<frame>.png`` of a split. Holds the tracks of the last video asked for; picklable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last: tuple[str, dict[int, tuple[Rle | None, ...]]] = ("", {})  # one value: threads share the reader

    def path(self, sample: VideoSample, frame_id: int) -> Path:
        return self.folder / sample.video / f"{sample.frames[frame_id]}.png"

    def track(self, sample: VideoSample, number: int) -> tuple[Rle | None, ...]:
        """The masks of object `number` (or `VOID`) in the T frames; None where it is not."""
        last = self._last
        if last[0] != sample.video:
            last = self._last = (sample.video, self._read(sample))
        return last[1].get(number) or (None,) * len(sample)

    def _read(self, sample: VideoSample) -> dict[int, tuple[Rle | None, ...]]:
        found: dict[int, dict[int, Rle]] = {}
        for t in range(len(sample)):
            numbers = read_indices(self.path(sample, t), sample.size)
            for number in np.flatnonzero(np.bincount(numbers.ravel())).tolist():
                if number:
                    found.setdefault(number, {})[t] = masks.encode(numbers == number)
        return {number: tuple(rles.get(t) for t in range(len(sample))) for number, rles in found.items()}
