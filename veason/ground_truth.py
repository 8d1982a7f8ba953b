"""Computes the ground truth of a clip: areas and boxes straight from the RLEs, masks of the shown frames alone.

`tracks` are those of `Dataset.object_rles`: N objects x T frames of RLE or None.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from veason import masks
from veason.types import Box, Clip, Rle, Size

Tracks = Sequence[Sequence[Rle | None]]


def area(tracks: Tracks, frame_id: int) -> int:
    """Area of the union over the objects in a frame, in native pixels; nothing is decoded."""
    return masks.area(masks.merge([rles[frame_id] for rles in tracks]))


def areas(tracks: Tracks, length: int) -> tuple[int, ...]:
    """`area` of each of the video's `length` frames."""
    return tuple(area(tracks, t) for t in range(length))


def keyframe_ratio(areas: Sequence[int], position: int | None) -> float:
    """0 … 1: area of the target in the chosen frame, relative to the shown frame where it is largest.

    areas: of the union mask in each shown frame. position: index among them; None is a frame that was not shown.
    """
    if position is None or max(areas) == 0:  # the target is in no shown frame
        return 0.0
    return areas[position] / max(areas)


def boxes(tracks: Tracks, frame_id: int) -> list[Box | None]:
    """Per object its box in a frame, in native pixels; None for an object that is not in it."""
    return [masks.box(rles[frame_id]) for rles in tracks]


def clip_masks(tracks: Tracks, clip: Clip, size: Size) -> np.ndarray:
    """Union masks of the shown frames at model size: (len(clip), h, w) bool. `size`: native (height, width).

    They are resized by nearest neighbour as torch's ``interpolate`` picks it, like the released data set; OpenCV rounds
    otherwise in some rows and columns.
    """
    rows, columns = (nearest(n, out) for n, out in zip(size, clip.size, strict=True))
    unions = (masks.union([rles[t] for rles in tracks], size) for t in clip.frame_ids)
    return np.stack([union[rows][:, columns] for union in unions])


def nearest(length: int, out: int) -> np.ndarray:
    """For each of `out` positions the one of `length` that it takes; float32 on purpose, as torch computes it."""
    scaled = np.floor(np.arange(out, dtype=np.float32) * np.float32(length / out)).astype(np.int64)
    return np.minimum(scaled, length - 1)
