"""Reads ground truth from palette PNGs: a pixel's value is the number of the object there, 0 none, 255 "void"."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from veason import masks
from veason.datasets.pictures import listed, read_indices
from veason.errors import DataError
from veason.types import Rle, VideoSample

VOID = 255
"""The value of pixels that were left undecided; they are no object."""

MOST_OBJECTS = 64
"""Objects are numbered from 1, and no video of these benchmarks has a quarter as many: above are grey levels."""


class IndexMasks:
    """The folder ``<video>/<frame>.png`` of a split. Holds the tracks of the last video asked for; picklable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last: tuple[str, dict[int, tuple[Rle | None, ...]]] = ("", {})  # one value: threads share the reader

    def path(self, sample: VideoSample, frame_id: int) -> Path:
        return self.folder / sample.video / f"{sample.frames[frame_id]}.png"

    def track(self, sample: VideoSample, number: int) -> tuple[Rle | None, ...]:
        """The masks of object `number` (or `VOID`) in the T frames; None where it is not.

        DataError for a picture whose values cannot be object numbers, and for a target of `sample` that is in no frame
        at all: with nothing to find, an empty prediction would score 100.
        """
        last = self._last
        if last[0] != sample.video:
            last = self._last = (sample.video, self._read(sample))
        if number in sample.anno_ids and number not in last[1]:
            values = np.array(sorted(last[1]))
            held = f"hold the values {listed(values)} and 0" if values.size else "are empty"
            raise DataError(
                f"{self.folder / sample.video}: no frame has the object {number} of {sample.key}; the annotations "
                f"{held}. A pixel's value is the number of its object, no grey level; fetch the annotations again"
            )
        return last[1].get(number) or (None,) * len(sample)

    def _read(self, sample: VideoSample) -> dict[int, tuple[Rle | None, ...]]:
        found: dict[int, dict[int, Rle]] = {}
        for t in range(len(sample)):
            path = self.path(sample, t)
            turned = cv2.transpose(read_indices(path, sample.size))
            numbers = turned.T  # column-major, as RLEs are
            held = np.flatnonzero(cv2.calcHist([turned], [0], None, [256], [0, 256]))  # twice as fast as bincount
            if (wrong := held[(held > MOST_OBJECTS) & (held < VOID)]).size:
                raise DataError(
                    f"{path}: holds the values {listed(wrong)}, which are grey levels and no numbers of objects "
                    f"(1 to {MOST_OBJECTS}, 0 for none, {VOID} for undecided); fetch the annotations again"
                )
            for number in held.tolist():
                if number:
                    found.setdefault(number, {})[t] = masks.encode(numbers == number)
        return {number: tuple(rles.get(t) for t in range(len(sample))) for number, rles in found.items()}
