"""The pictures of a report, made light: each frame once per video as a small WebP, each mask as a vector outline.

Many expressions look at the same frames. The page therefore holds a frame as one CSS rule that all its cards refer to,
and draws masks and boxes over it as SVG, which stays sharp at any size and costs a few hundred bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from veason import frames
from veason.types import Size, VideoSample

THUMBNAIL = 320
"""Pixels of a thumbnail's longer side; a page shows them 150 to 400 wide."""
QUALITY = 50
"""WebP quality, of 100."""
DRAWING = 640
"""Longer side of the drawing that outlines are rounded to: half a thumbnail's pixel."""
LONGEST_OUTLINE = 12_000
"""Characters above which an outline is drawn again at half the precision."""


def sample_frames(length: int, n: int, *, keyframe: int | None) -> tuple[int, ...]:
    """`n` frame ids evenly from first to last; the one nearest to `keyframe` gives way to it."""
    chosen = list(frames.linspace(length, n))
    if keyframe is not None:
        nearest = min(range(len(chosen)), key=lambda i: abs(chosen[i] - keyframe))
        chosen[nearest] = keyframe
    return tuple(chosen)


def fit(size: Size, longest: int) -> Size:
    """`size` shrunk, never grown, to a longer side of at most `longest`."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def outline(mask: np.ndarray) -> str:
    """SVG path data around an (H, W) bool mask, in the pixels of `fit(mask.shape, DRAWING)`; empty for an empty mask.

    Fill it with the even-odd rule: holes are sub-paths. A line of one pixel has no inside, so stroke it as well.
    """
    size = fit(mask.shape, DRAWING)
    for factor in (1, 2, 4, 8):
        path = _trace(_shrink(mask, fit(size, max(size) // factor or 1)), factor)
        if len(path) <= LONGEST_OUTLINE:
            break
    return path


def _shrink(mask: np.ndarray, size: Size) -> np.ndarray:
    """(h, w) bool: pixels at least half covered; if there are none, those touched at all."""
    if mask.shape == size:
        return mask
    share = cv2.resize(mask.astype(np.uint8) * 255, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    small = share >= 128
    return small if small.any() else share > 0


def _trace(mask: np.ndarray, factor: int) -> str:
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    corners = (cv2.approxPolyDP(contour, 0.6, True)[:, 0] * factor + factor // 2 for contour in contours)
    return "".join(map(_subpath, corners))


def _subpath(points: np.ndarray) -> str:
    """One closed sub-path of (N, 2) int points, its steps relative."""
    steps = np.diff(points, axis=0).ravel().tolist()
    line = "l" + " ".join(map(str, steps)).replace(" -", "-") if steps else ""
    return f"M{points[0, 0]} {points[0, 1]}{line}z"


@dataclass(frozen=True)
class Picture:
    """One frame as a card shows it."""

    frame_id: int
    css_class: str
    """The rule that shows the frame (`Album`)."""
    drawing: Size
    """(height, width) that the outlines are drawn in."""
    prediction: str | None = None
    truth: str | None = None
    """Outlines, empty for an empty mask; None where it is not known."""
    shares: tuple[float | None, float | None] = (None, None)
    """Share of the picture inside the predicted and the true mask."""

    def describe(self) -> str:
        """The picture in words, for those who do not see it."""
        named = zip(("predicted", "true"), self.shares, strict=True)
        words = [f"{name} mask {_share(share)}" for name, share in named if share is not None]
        return ", ".join([f"frame {self.frame_id}", *words])


def _share(share: float) -> str:
    return "empty" if share == 0 else f"{100 * share:.1f} % of the picture"


def draw(
    frame_id: int, css_class: str, size: Size, *, prediction: np.ndarray | None, truth: np.ndarray | None
) -> Picture:
    """The picture of a frame of `size` with (H, W) bool masks drawn; None for a mask that is not known."""
    masks = (prediction, truth)
    outlines = [None if mask is None else outline(mask) for mask in masks]
    shares = tuple(None if mask is None else np.count_nonzero(mask) / mask.size for mask in masks)
    return Picture(frame_id, css_class, fit(size, DRAWING), *outlines, shares=shares)


class Album:
    """The frames of one video in a page: which CSS class shows a frame, and the rules not yet written."""

    def __init__(self, sample: VideoSample, number: int) -> None:
        """`number`: of the video in the page, so that class names never hold a data set's text."""
        self._frames, self._number = frames.VideoFrames(sample), number
        self._written: set[int] = set()

    def css_class(self, frame_id: int) -> str:
        return f"v{self._number}f{frame_id}"

    def new_rules(self, frame_ids: Sequence[int]) -> str:
        """CSS rules of those of `frame_ids` that no earlier call has given."""
        missing = [t for t in dict.fromkeys(frame_ids) if t not in self._written]
        self._written.update(missing)
        return "\n".join(f".{self.css_class(t)}{{background-image:url({data_uri(self._frames[t])})}}" for t in missing)


def data_uri(frame: np.ndarray) -> str:
    """An (H, W, 3) uint8 RGB frame as a thumbnail in a data URI."""
    height, width = fit(frame.shape[:2], THUMBNAIL)
    small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".webp", small[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    assert ok, f"a picture of {small.shape} could not be encoded"
    return "data:image/webp;base64," + base64.b64encode(data).decode()
