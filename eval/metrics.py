"""Computes J, F, A and R of two masks: J and F exactly as published, some twenty times faster.

Definition: the DAVIS benchmark (Perazzi et al., CVPR 2016, sections 4.1 and 4.2), with the details of its 2017
evaluation that fix every pixel: J is intersection over union; F is the harmonic mean of the precision and recall of
boundary pixels, matched within a disk whose radius is 0.8 % of the frame's diagonal. `benchmarks.plain_metrics` is the
same definition without any of the tricks below, and the tests hold the two to equal floats.

How it is fast: both masks are packed to one bit a pixel and cropped to where either of them is; boundary maps and
dilations are then shifts and ORs of 64 pixels at a time, in NumPy or, after `use_compiled`, in numba. Only integers are
counted before the last divisions, so the results are equal to the plain definition's, not merely close.

Accuracy A and robustness R are those of the ReVOS benchmark, on raw uint8 values: unlike J and F they depend on how a
mask is stored. The ground truth G is a *count*, the number of target objects that cover a pixel, modulo 256. The
prediction P is the grey value of the PNG, so 255 or 1 inside. That is the benchmark's published arithmetic (mode
"visa"). In mode "binary" the caller first maps both to {0, 1}; the same two formulas then are plain pixel accuracy and
plain false positives over foreground.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

BOUNDARY_TOLERANCE = 0.008
"""Radius within which two boundary pixels match, as a fraction of the frame's diagonal."""


def region_similarity(pred: np.ndarray, gt: np.ndarray) -> float:
    """Computes J, the intersection over union of two (H, W) masks, nonzero = inside; 1 if both are empty. In 0 … 1."""
    window = _Window.around(pred, gt)
    return 1.0 if window is None else window.region_similarity()


def boundary_measure(pred: np.ndarray, gt: np.ndarray) -> float:
    """Computes F, the boundary F-measure of two (H, W) masks, nonzero = inside. In 0 … 1.

    A mask that covers the whole frame has no boundary, as an empty one has none; two masks without boundary agree (1).
    """
    window = _Window.around(pred, gt)
    return 1.0 if window is None else window.boundary_measure()


def j_and_f(pred: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    """Computes (J, F) of two (H, W) masks in about the time of `boundary_measure`."""
    return j_f_and_part(pred, gt)[:2]


def j_f_and_part(pred: np.ndarray, gt: np.ndarray) -> tuple[float, float, tuple[slice, slice]]:
    """Computes `j_and_f`; returns also the rows and columns outside which both masks are empty."""
    window = _Window.around(pred, gt)
    if window is None:
        return 1.0, 1.0, (slice(0, 0), slice(0, 0))
    return window.region_similarity(), window.boundary_measure(), window.part


def accuracy(pred: np.ndarray, gt: np.ndarray, pixels: int | None = None) -> float:
    """Computes A, the share of pixels where two (H, W) uint8 arrays hold the same value. In 0 … 1.

    With 0/255 predictions no pixel inside ever counts, since G is 1 or 2 there and P is 255. pixels: of the frame, if
    the arrays are the part of it outside which both are 0.
    """
    pixels = pred.size if pixels is None else pixels
    return (pixels - np.count_nonzero(pred != gt)) / pixels


def robustness(pred: np.ndarray, gt: np.ndarray, foreground: int) -> float:
    """Computes R, max(1 - N / (B + 1e-6), 0), where B = `foreground` pixels and N sums (1 - G) · P. In 0 … 1.

    The product wraps around in uint8. A pixel with P = 255 adds 255, 0, 1, 2 for G = 0, 1, 2, 3; a pixel with P = 1
    adds 1, 0, 255, 254. Without foreground R is 1 if N is 0, else 0. Where P is 0 nothing is added: a part of the frame
    that holds the prediction is enough.
    """
    wrapped = (np.uint8(1) - gt) * pred
    false = int(cv2.sumElems(wrapped)[0])  # np.sum takes 25 times as long
    return max(1 - false / (foreground + 1e-6), 0.0)


def tolerance(size: tuple[int, int]) -> int:
    """Returns the radius in pixels within which boundary pixels match in a frame of (height, width)."""
    height, width = size
    return math.ceil(BOUNDARY_TOLERANCE * math.sqrt(height * height + width * width))


_compiled_dilate: Callable[[np.ndarray, int, int], np.ndarray] | None = None


def use_compiled(wanted: bool = True) -> bool:
    """Makes numba dilate from here on in this process; returns False if it is not installed. The numbers do not change.

    Loading it takes half a second or more, so it pays from some thousand frames on.
    """
    global _compiled_dilate
    _compiled_dilate = None
    if wanted:
        try:
            from eval.compiled import dilate
        except ImportError:  # numba is not installed, or not for this NumPy
            return False
        _compiled_dilate = dilate
    return wanted


class _Window:
    """The part of a frame around two masks, one bit a pixel.

    A row is a whole number of 64-bit words, the pixel x bit x % 64 of word x // 64. Behind its `width` pixels every row
    has at least `radius` zero bits, so that what a shift carries over a row's end stays out of the next row's pixels.
    """

    def __init__(self, crops: list[np.ndarray], part: tuple[slice, slice], width: int, radius: int) -> None:
        height, held = crops[0].shape
        self.words = (width + radius + 63) // 64
        self.part, self.width, self.radius = part, width, radius
        canvas = np.zeros((2, height, self.words * 8), dtype=np.uint8)
        canvas[0, :, :held], canvas[1, :, :held] = crops
        self.masks = canvas.view("<u8").reshape(2, height * self.words)

    @classmethod
    def around(cls, pred: np.ndarray, gt: np.ndarray) -> _Window | None:
        """Makes the window with every mask pixel and one more pixel on each side that has one; None if both are empty.

        One pixel is enough: a boundary lies on a mask or half a pixel up or left of it, and it is matched with
        boundary pixels only.
        """
        if pred.shape != gt.shape or pred.ndim != 2:
            raise ValueError(f"expected two masks of one (height, width), found {pred.shape} and {gt.shape}")
        radius = tolerance(pred.shape)
        turned = pred.flags.f_contiguous and gt.flags.f_contiguous  # as RLEs decode
        if turned:
            pred, gt = pred.T, gt.T  # J and F know no direction
        pred, gt = _row_major(pred), _row_major(gt)
        width = pred.shape[1]
        packed = [np.packbits(mask, axis=1, bitorder="little") for mask in (pred, gt)]
        used = packed[0] | packed[1]
        columns = np.flatnonzero(np.bitwise_or.reduce(used, axis=0))
        if columns.size == 0:
            return None
        left, right = max(columns[0] - 1, 0), columns[-1] + 2  # in bytes
        rows = np.flatnonzero(np.bitwise_or.reduce(used[:, columns[0] : columns[-1] + 1], axis=1))
        top, bottom = max(rows[0] - 1, 0), rows[-1] + 2
        crops = [bits[top:bottom, left:right] for bits in packed]
        part = (slice(top, bottom), slice(left * 8, right * 8))
        width = min(crops[0].shape[1] * 8, width - left * 8)
        return cls(crops, part[::-1] if turned else part, width, radius)

    def region_similarity(self) -> float:
        pred, gt = self.masks
        return int(_count(pred & gt)) / int(_count(pred | gt))

    def boundary_measure(self) -> float:
        # Pixels that differ from the one to the right, below, or below right, of those that lie in the frame.
        here = self.masks
        below = np.concatenate([here[:, self.words :], here[:, -self.words :]], axis=1)  # the last row: itself
        aside = (here ^ _left(here, 1)) | (here ^ _left(below, 1))
        but_last = np.packbits(np.arange(self.words * 64) < self.width - 1, bitorder="little").view("<u8")
        aside = aside.reshape(2, -1, self.words) & but_last  # the last column has none
        boundaries = aside.reshape(here.shape) | (here ^ below)
        pred_total, gt_total = _count(boundaries).tolist()
        if pred_total == 0 and gt_total == 0:
            return 1.0  # both fill the frame, or one does and the other is empty
        if pred_total == 0 or gt_total == 0:
            return 0.0  # precision or recall is 0
        dilate = _compiled_dilate or _dilate
        near = dilate(boundaries, self.words, self.radius)
        pred_hits, gt_hits = _count(boundaries & near[::-1]).tolist()
        precision, recall = pred_hits / pred_total, gt_hits / gt_total
        if precision + recall == 0:
            return 0.0
        return 2 * precision * recall / (precision + recall)


def _row_major(mask: np.ndarray) -> np.ndarray:
    if mask.flags.c_contiguous or not mask.flags.f_contiguous or mask.itemsize > 1:
        return mask
    return cv2.transpose(mask.T.view(np.uint8))  # ten times as fast as NumPy's copy


def _dilate(boundaries: np.ndarray, words: int, radius: int) -> np.ndarray:
    """Marks every pixel within `radius` of a boundary pixel.

    A disk is a stack of rows: at the height ±k a span of half-width floor(sqrt(r² - k²)). From the rim inwards the
    spans only grow. `span` and `disk` are kept moved right by the half-width so far, which lets a span grow to one
    side only; the last shift moves the disk back.
    """
    span, length = boundaries, 1
    disk, reach = np.zeros_like(boundaries), 0
    total = boundaries.shape[1]
    for height in range(radius, -1, -1):
        half_width = math.isqrt(radius**2 - height**2)
        while length < 2 * half_width + 1:
            step = min(length, 2 * half_width + 1 - length)
            span, length = span | _right(span, step), length + step
        if half_width > reach:
            disk, reach = _right(disk, half_width - reach), half_width
        if height == 0:
            disk |= span
        elif (rows := height * words) < total:
            disk[:, rows:] |= span[:, :-rows]
            disk[:, :-rows] |= span[:, rows:]
    return _left(disk, radius)


def _left(bits: np.ndarray, count: int) -> np.ndarray:
    """Moves every pixel `count` to the left: each takes the value of the one `count` to its right."""
    while count > 0:
        step = min(count, 63)
        moved = bits >> np.uint64(step)
        moved[:, :-1] |= bits[:, 1:] << np.uint64(64 - step)
        bits, count = moved, count - step
    return bits


def _right(bits: np.ndarray, count: int) -> np.ndarray:
    """Moves every pixel `count` to the right: each takes the value of the one `count` to its left."""
    while count > 0:
        step = min(count, 63)
        moved = bits << np.uint64(step)
        moved[:, 1:] |= bits[:, :-1] >> np.uint64(64 - step)
        bits, count = moved, count - step
    return bits


def _count(bits: np.ndarray) -> np.ndarray:
    """Counts the set bits along the last axis."""
    return np.bitwise_count(bits).sum(axis=-1, dtype=np.int64)
