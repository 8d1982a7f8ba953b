"""Draws the pictures of a page and keeps them small: a frame is a small WebP, a mask is a vector outline.

Many expressions look at the same frames. The page therefore holds a frame as one CSS rule that all its cards refer to,
and draws masks and boxes over it as SVG, which stays sharp at any size and costs a few hundred bytes.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import cv2
import numpy as np

from eval.predictions import Predictions
from veason import frames, masks
from veason.errors import DataError
from veason.ground_truth import Tracks
from veason.types import Box, Size, VideoSample

T = TypeVar("T")

THUMBNAIL = 320
"""Pixels of a thumbnail's longer side; a page shows them 150 to 400 wide."""
QUALITY = 50
"""WebP quality, of 100."""
DRAWING = 640
"""Longer side of the drawing that outlines are rounded to: half a thumbnail's pixel."""
LONGEST_OUTLINE = 12_000
"""Characters above which an outline is drawn again at half the precision."""


def sample_frames(length: int, n: int, *, keyframe: int | None) -> tuple[int, ...]:
    """Takes `n` frame ids evenly from first to last; the one nearest to `keyframe` gives way to it."""
    chosen = list(frames.linspace(length, n))
    if keyframe is not None:
        nearest = min(range(len(chosen)), key=lambda i: abs(chosen[i] - keyframe))
        chosen[nearest] = keyframe
    return tuple(chosen)


def fit(size: Size, longest: int) -> Size:
    """Shrinks, and never grows, `size` to a longer side of at most `longest`."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def outline(mask: np.ndarray) -> str:
    """Traces an (H, W) bool mask as SVG path data in the pixels of `fit(mask.shape, DRAWING)`; empty for an empty mask.

    Fill it with the even-odd rule: holes are sub-paths. A line of one pixel has no inside, so stroke it as well.
    """
    size = fit(mask.shape, DRAWING)
    for factor in (1, 2, 4, 8):
        small, (height, width) = mask, fit(size, max(size) // factor or 1)
        if small.shape != (height, width):
            share = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)
            small = share >= 128  # pixels at least half covered; if there are none, those touched at all
            small = small if small.any() else share > 0
        path = _trace(small, factor)
        if len(path) <= LONGEST_OUTLINE:
            break
    return path


def _trace(mask: np.ndarray, factor: int) -> str:
    """Writes one closed sub-path, with relative steps, for each contour of an (h, w) bool mask, scaled by `factor`."""
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    path = ""
    for contour in contours:
        points = cv2.approxPolyDP(contour, 0.6, True)[:, 0] * factor + factor // 2  # (N, 2) int
        steps = np.diff(points, axis=0).ravel().tolist()
        line = "l" + " ".join(map(str, steps)).replace(" -", "-") if steps else ""
        path += f"M{points[0, 0]} {points[0, 1]}{line}z"
    return path


@dataclass(frozen=True)
class Picture:
    """One frame as a page shows it."""

    frame_id: int
    css_class: str
    """The CSS class whose rule shows the frame (`FrameStyles`)."""
    drawing: Size
    """The (height, width) in whose pixels the outlines are drawn."""
    prediction: str | None = None
    truth: str | None = None
    """Outlines, empty for an empty mask; None where it is not known."""
    shares: tuple[float | None, float | None] = (None, None)
    """Share of the picture inside the predicted and the true mask."""

    def describe(self) -> str:
        """Describes the picture in words for screen readers."""
        words = [f"frame {self.frame_id}"]
        for name, share in zip(("predicted", "true"), self.shares, strict=True):
            if share is not None:
                words.append(f"{name} mask " + ("empty" if share == 0 else f"{100 * share:.1f} % of the picture"))
        return ", ".join(words)


def read_or_note(read: Callable[[], T], notes: list[str]) -> T | None:
    """Calls `read`; where a file is missing or broken it adds the reason to `notes` and returns None."""
    try:
        return read()
    except DataError as error:
        notes.append(str(error))
        return None


def picture(
    predictions: Predictions,
    sample: VideoSample,
    frame_id: int,
    *,
    styles: FrameStyles,
    tracks: Tracks | None,
    notes: list[str],
) -> Picture:
    """Draws a frame with its predicted and its true mask; what cannot be read is added to `notes`."""
    predicted = read_or_note(lambda: predictions.read(sample, frame_id) != 0, notes)
    true = None if tracks is None else masks.union([rles[frame_id] for rles in tracks], sample.size)
    return Picture(
        frame_id,
        styles.css_class(frame_id),
        fit(sample.size, DRAWING),
        prediction=None if predicted is None else outline(predicted),
        truth=None if true is None else outline(true),
        shares=(None if predicted is None else float(predicted.mean()), None if true is None else float(true.mean())),
    )


def true_boxes(tracks: Tracks | None, keyframe: int | None) -> tuple[Box, ...]:
    """Finds the box of each true object that is on the keyframe, in video pixels."""
    if tracks is None or keyframe is None:
        return ()
    boxes = (masks.box(rles[keyframe]) for rles in tracks)
    return tuple(box for box in boxes if box is not None)


def in_drawing(boxes: Sequence[Box], size: Size, drawing: Size) -> list[Box]:
    """Scales boxes of a frame of `size` to its drawing; corners are inclusive, so it is the far edges that scale."""
    sy, sx = drawing[0] / size[0], drawing[1] / size[1]
    return [(x1 * sx, y1 * sy, (x2 + 1) * sx - 1, (y2 + 1) * sy - 1) for x1, y1, x2, y2 in boxes]


def sides(box: Box, size: Size) -> list[tuple[str, float]]:
    """Turns a box of inclusive corners into the attributes of an SVG rect that ends a little beyond `size` at most."""
    height, width = size
    x1, x2 = (min(max(x, -9), width + 9) for x in (box[0] - 0.5, box[2] + 0.5))
    y1, y2 = (min(max(y, -9), height + 9) for y in (box[1] - 0.5, box[3] + 0.5))
    return [("x", x1), ("y", y1), ("width", max(0, x2 - x1)), ("height", max(0, y2 - y1))]


@dataclass(frozen=True)
class Chart:
    """Curves over training steps, in the pixels of a drawing of `Chart.SIZE`."""

    SIZE: ClassVar[Size] = (230, 480)
    """(height, width)"""
    MARGINS: ClassVar[tuple[int, int, int, int]] = (12, 14, 26, 56)
    """Pixels above, right, below and left of the curves."""
    LARGEST: ClassVar[float] = 1e30
    """A number beyond any score or metric."""
    heading: str
    lines: tuple[tuple[str, tuple[tuple[float, float, str], ...]], ...]
    """Each curve as (name, points), each point as (x, y, label)."""
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, heading: str, curves: Mapping[str, Sequence[tuple[int, float]]], *, digits: int = 2) -> Chart | None:
        """Draws curves of (step, value), by name; None if there is no value but NaN and those beyond `LARGEST`.

        digits: of the labels of points.
        """
        kept = {name: [(x, y) for x, y in curve if abs(y) <= cls.LARGEST] for name, curve in curves.items()}
        points = [point for curve in kept.values() for point in curve]
        if not points:
            return None
        (height, width), (top, right, bottom, left) = cls.SIZE, cls.MARGINS
        x_ticks, y_ticks = ticks([x for x, _ in points], whole=True), ticks([y for _, y in points])
        low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
        low_y, high_y = y_ticks[0], y_ticks[-1]

        def place(x: float, y: float) -> tuple[float, float]:
            across = (x - low_x) / (high_x - low_x) if high_x > low_x else 0.5
            up = (y - low_y) / (high_y - low_y)
            return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

        return cls(
            heading,
            lines=tuple(
                (name, tuple((*place(x, y), f"step {x}: {y:.{digits}f}") for x, y in curve))
                for name, curve in kept.items()
                if curve
            ),
            x_ticks=tuple((place(x, low_y)[0], f"{x:g}") for x in x_ticks if low_x <= x <= high_x),
            y_ticks=tuple((place(low_x, y)[1], f"{y:g}") for y in y_ticks),
        )


def ticks(values: Sequence[float], *, whole: bool = False) -> list[float]:
    """Chooses 3 to 7 round numbers that are evenly spaced and enclose all of `values`; `whole`: whole numbers."""
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    constant = high - low <= max(1e-9 * largest, 1e-100)  # up to rounding
    span = (largest if largest > 1e-100 else 1.0) if constant else high - low
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 5)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    if low == high == first * step != 0:
        first -= 1  # a constant lies in the middle
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


class FrameStyles:
    """Gives the frames of one video their CSS classes, and each class its rule once."""

    def __init__(self, sample: VideoSample, number: int) -> None:
        """Takes the `number` of the video in the page, so that class names never hold a data set's text."""
        self._frames, self._number = frames.VideoFrames(sample), number
        self._written: set[int] = set()

    def css_class(self, frame_id: int) -> str:
        return f"v{self._number}f{frame_id}"

    def new_rules(self, frame_ids: Sequence[int]) -> str:
        """Writes the CSS rules of those of `frame_ids` that no earlier call has written."""
        missing = [t for t in dict.fromkeys(frame_ids) if t not in self._written]
        self._written.update(missing)
        return "\n".join(f".{self.css_class(t)}{{background-image:url({data_uri(self._frames[t])})}}" for t in missing)


def data_uri(frame: np.ndarray) -> str:
    """Encodes an (H, W, 3) uint8 RGB frame as a thumbnail in a data URI."""
    height, width = fit(frame.shape[:2], THUMBNAIL)
    small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".webp", small[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    assert ok, f"a picture of {small.shape} could not be encoded"
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode()
