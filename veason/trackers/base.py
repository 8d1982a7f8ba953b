"""The protocol of trackers (frames encoded once, then any number of box prompts) and the checks of their input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from veason import boxes as geometry
from veason.types import Box, MaskTrack, Size


class Tracker(Protocol):
    """Turns boxes on one frame into masks on all frames, in the pixels of the frames it was given.

    `keyframe` is a position in the frames given to `encode` (the caller converts from frame ids where it encoded only
    a clip). Boxes are clipped to the frame; a box with nothing inside the frame, or with x2 < x1 or y2 < y1, gives an
    object whose masks are empty on every frame. Objects keep the order and number of the boxes; no boxes give a track
    of no objects. A box that is not finite, or a keyframe out of range, is the caller's mistake: ValueError.
    """

    name: str

    def encode(self, frames: Sequence[np.ndarray]) -> Any:
        """Do the work that does not depend on a prompt. `frames`: T arrays (H, W, 3) uint8 RGB of one size.

        Each frame is read at most once here; a lazy sequence may be read again by `track`.
        """
        ...

    def track(
        self,
        encoded: Any,
        *,
        keyframe: int,
        boxes: Sequence[Box],
        progress: Callable[[], object] | None = None,
    ) -> MaskTrack:
        """Masks of the objects in `boxes` (xyxy, frame pixels, on frame `keyframe`) over all encoded frames.

        `progress` is called once for each mask that is made: at most objects x frames times.
        """
        ...


def check_frame(frame: np.ndarray, position: int, size: Size | None) -> Size:
    """The (height, width) of `frame`; a ValueError naming its position if it is no RGB frame of `size`.

    `size` is that of the frames before it, None for the first.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"frame {position} is {frame.dtype} {frame.shape}, expected uint8 (height, width, 3)")
    found = (frame.shape[0], frame.shape[1])
    if 0 in found:
        raise ValueError(f"frame {position} is {found} (height, width): it has no pixels")
    if size is not None and found != size:
        raise ValueError(f"frame {position} is {found}, the frames before it are {size} (height, width)")
    return found


def check_keyframe(keyframe: int, length: int) -> None:
    """A ValueError if `keyframe` is not a position in a video of `length` frames."""
    if not 0 <= keyframe < length:
        raise ValueError(f"keyframe {keyframe} of a video of {length} frames (0 to {length - 1})")


def clip_boxes(boxes: Sequence[Box], size: Size) -> list[Box | None]:
    """The part of each box inside a frame of `size`, None for one outside; a ValueError for one that is not finite."""
    for k, box in enumerate(boxes):
        if len(box) != 4 or not all(math.isfinite(side) for side in box):
            raise ValueError(f"box {k} is {tuple(box)}, expected four finite numbers (x1, y1, x2, y2)")
    return [geometry.clip(box, size) for box in boxes]
