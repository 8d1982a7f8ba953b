"""Tracks without weights: GrabCut in the box, optical flow outwards. A baseline on real pictures.

On the keyframe GrabCut separates the box's colours from those around it. From there the mask is carried to each
neighbour along the flow of the object's inside, and GrabCut decides anew in a narrow band around its edge.

All of it happens on copies of at most `working_side` pixels; masks are brought back to the size of the frames. The
copies and the flow belong to the video and are shared by its prompts. A track depends on its own box alone: OpenCV's
random numbers are seeded before each cut.

It cannot tell an object from its shadow, keep a hole (holes are filled), notice that something else has taken the
object's place, or find an object again that has gone. A mask carried out of the frame is empty from there on, but an
object that drives out over still ground may leave a speck at the edge. Colours alone never make an object vanish: where
there is too little to cut, the carried mask stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from veason import masks
from veason.trackers.base import check_frame, check_keyframe, clip_boxes
from veason.trackers.flow import NeighbourFlow, disc
from veason.types import Box, MaskTrack, Rle, Size

_REACH = 0.1
"""Distance from the edge at which flow counts as the inside's, in side lengths of the object (the root of its area)."""
_BAND = 0.03
"""Half the width of the band that GrabCut decides, in side lengths of the object."""
_CORE = 0.7
"""Half axes of the box's ellipse that are taken for the object on the keyframe."""
_GUESS = 1.1
"""Half axes within which the object's colours are first learnt: corners of a box are mostly background."""
_PART = 0.1
"""A piece smaller than this share of the largest is dropped."""


@dataclass(frozen=True)
class EncodedVideo:
    """Working copies of a video's frames, and the flow between them."""

    size: Size
    """(height, width) of the frames, and of the masks to come."""
    frames: list[np.ndarray] = field(repr=False)
    """T arrays (h, w, 3) uint8 RGB, downscaled."""
    flow: NeighbourFlow = field(repr=False)

    @property
    def length(self) -> int:
        """Number of frames T."""
        return len(self.frames)


class GrabCutTracker:
    """GrabCut and optical flow behind the `Tracker` protocol."""

    name = "grabcut"

    def __init__(self, *, working_side: int = 480, flow_budget_bytes: int = 1 << 30) -> None:
        """working_side: longest side of the copies that are worked on, in pixels; smaller frames are not enlarged.

        flow_budget_bytes: flow kept per video, 0.5 MB a pair of 16:9 frames at 480; the rest is computed when needed.
        """
        if working_side < 1:
            raise ValueError(f"working_side is {working_side}, expected at least 1 pixel")
        self.working_side = working_side
        self.flow_budget_bytes = flow_budget_bytes

    def encode(self, frames: Sequence[np.ndarray]) -> EncodedVideo:
        """Downscaled copies of T frames, (H, W, 3) uint8 RGB arrays of one size.

        ValueError where there is no frame, or one of another size or type.
        """
        size: Size | None = None
        copies = []
        for position, frame in enumerate(frames):
            size = check_frame(frame, position, size)
            scale = min(1.0, self.working_side / max(size))
            height, width = (max(1, round(side * scale)) for side in size)
            copies.append(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA))
        if size is None:
            raise ValueError("no frames to encode")
        return EncodedVideo(size=size, frames=copies, flow=NeighbourFlow(copies, budget_bytes=self.flow_budget_bytes))

    def track(
        self,
        encoded: EncodedVideo,
        *,
        keyframe: int,
        boxes: Sequence[Box],
        progress: Callable[[], object] | None = None,
    ) -> MaskTrack:
        """Masks of the objects in `boxes` (xyxy, frame pixels, on frame `keyframe`) over all encoded frames.

        See `base.Tracker` for boxes that leave the frame.
        """
        check_keyframe(keyframe, encoded.length)
        empty = masks.encode(np.zeros(encoded.size, dtype=bool))
        objects: list[list[Rle]] = []
        for box in clip_boxes(boxes, encoded.size):
            rles = [empty] * encoded.length
            if box is not None:
                for position, mask in _follow(encoded, keyframe, box):
                    if mask.shape != encoded.size:
                        larger = cv2.resize(mask.astype(np.float32), encoded.size[::-1], interpolation=cv2.INTER_LINEAR)
                        mask = np.asarray(larger > 0.5)
                    rles[position] = masks.encode(mask)
                    if progress is not None:
                        progress()
            objects.append(rles)
        return MaskTrack(size=encoded.size, objects=tuple(map(tuple, objects)), length=encoded.length)


def _follow(encoded: EncodedVideo, keyframe: int, box: Box) -> Iterator[tuple[int, np.ndarray]]:
    """Positions and working-size masks of one object, outwards from the keyframe, for as long as it is there."""
    # The box in pixels of the working copies, half-open: all that it touches, so it is never empty.
    height, width = encoded.frames[0].shape[:2]
    sy, sx = height / encoded.size[0], width / encoded.size[1]
    x1, y1 = math.floor(box[0] * sx), math.floor(box[1] * sy)
    x2, y2 = min(width, math.ceil((box[2] + 1) * sx)), min(height, math.ceil((box[3] + 1) * sy))
    start = _cut_box(encoded.frames[keyframe], (x1, y1, x2, y2))
    yield keyframe, start
    for step, end in ((1, encoded.length), (-1, -1)):
        mask = start
        for position in range(keyframe + step, end, step):
            mask = encoded.flow.carry(mask, position - step, position, reach=_REACH)
            if not mask.any():
                break
            mask = _refine(encoded.frames[position], mask)
            yield position, mask


def _cut_box(frame: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """(h, w) bool mask of the object in `box`: at least one pixel, none outside the box."""
    x1, y1, x2, y2 = box
    y, x = np.ogrid[y1:y2, x1:x2]
    ry = (y + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
    rx = (x + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)
    radius = np.hypot(ry, rx)  # 1 where the box's ellipse is
    labels = np.full(frame.shape[:2], cv2.GC_BGD, dtype=np.uint8)
    inside = labels[y1:y2, x1:x2]
    inside[:] = cv2.GC_PR_BGD
    inside[radius <= _GUESS] = cv2.GC_PR_FGD
    inside[radius <= max(_CORE, radius.min())] = cv2.GC_FGD  # the middle at least
    return _grabcut(frame, labels, box, rounds=2)


def _refine(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`mask`, not empty, with its edge moved to where the colours of inside and outside part."""
    radius = max(1, round(_BAND * math.sqrt(np.count_nonzero(mask))))
    drawn = mask.view(np.uint8)
    core = cv2.erode(drawn, disc(radius))
    if not core.any():
        return mask  # too small to have an edge and an inside
    labels = np.where(cv2.dilate(drawn, disc(radius)), cv2.GC_PR_BGD, cv2.GC_BGD).astype(np.uint8)
    labels[mask] = cv2.GC_PR_FGD
    labels[core > 0] = cv2.GC_FGD
    x, y, width, height = cv2.boundingRect(drawn)
    return _grabcut(frame, labels, (x, y, x + width, y + height), rounds=1)


def _grabcut(frame: np.ndarray, labels: np.ndarray, box: tuple[int, int, int, int], *, rounds: int) -> np.ndarray:
    """(h, w) bool mask that GrabCut finds from `labels`, learning the background from what lies around `box`.

    Without two sides, or without two colours, there is nothing to learn: then it is what `labels` hold for likely.
    """
    x1, y1, x2, y2 = box
    margin = max(8, max(x2 - x1, y2 - y1) // 2)
    window = (slice(max(0, y1 - margin), y2 + margin), slice(max(0, x1 - margin), x2 + margin))
    crop, cut = np.ascontiguousarray(frame[window]), np.ascontiguousarray(labels[window])
    if 0 < np.count_nonzero(cut & 1) < cut.size and (crop != crop[0, 0]).any():
        cv2.setRNGSeed(0)  # it draws its first clusters at random
        unused = (0, 0, 0, 0)  # a rectangle, where there is no mask
        cv2.grabCut(crop, cut, unused, np.zeros((1, 65)), np.zeros((1, 65)), rounds, cv2.GC_INIT_WITH_MASK)
    # Holes are filled and specks dropped: the outlines of the large pieces are drawn.
    inside = cut & 1  # GC_FGD and GC_PR_FGD are the odd labels
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(outline) for outline in outlines]  # 0 for a piece one pixel thin
    large = [outline for outline, area in zip(outlines, areas, strict=True) if area >= _PART * max(areas)]
    found = np.zeros(labels.shape, dtype=bool)
    found[window] = cv2.drawContours(np.zeros_like(inside), large, -1, 1, cv2.FILLED).view(bool)
    return found
