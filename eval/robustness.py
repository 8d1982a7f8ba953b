"""Accuracy A and robustness R of one frame, as the ReVOS benchmark computes them: on raw uint8 values.

Both depend on how a mask is stored, which J and F do not. The ground truth G is a *count*: the number of target objects
that cover a pixel, modulo 256. The prediction P is the grey value of the PNG, so 255 or 1 inside. That is the
benchmark's published arithmetic (mode "visa"). In mode "binary" the caller first maps both to {0, 1}; the same two
formulas then are plain pixel accuracy and plain false positives over foreground.
"""

from __future__ import annotations

import cv2
import numpy as np


def accuracy(pred: np.ndarray, gt: np.ndarray, pixels: int | None = None) -> float:
    """A: share of pixels where two (H, W) uint8 arrays hold the same value. In 0 … 1.

    With 0/255 predictions no pixel inside ever counts, since G is 1 or 2 there and P is 255. pixels: of the frame, if
    the arrays are the part of it outside which both are 0.
    """
    pixels = pred.size if pixels is None else pixels
    return (pixels - np.count_nonzero(pred != gt)) / pixels


def robustness(pred: np.ndarray, gt: np.ndarray, foreground: int) -> float:
    """R: max(1 - N / (B + 1e-6), 0), where B = `foreground` pixels and N sums (1 - G) · P. In 0 … 1.

    The product wraps around in uint8. A pixel with P = 255 adds 255, 0, 1, 2 for G = 0, 1, 2, 3; a pixel with P = 1
    adds 1, 0, 255, 254. Without foreground R is 1 if N is 0, else 0. Where P is 0 nothing is added: a part of the frame
    that holds the prediction is enough.
    """
    wrapped = (np.uint8(1) - gt) * pred
    false = int(cv2.sumElems(wrapped)[0])  # np.sum takes 25 times as long
    return max(1 - false / (foreground + 1e-6), 0.0)
