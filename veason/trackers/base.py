"""What a tracker is: frames encoded once, then any number of box prompts, each giving a mask track."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from veason.types import Box, MaskTrack


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
