"""A mask as a PNG: 8 bits a pixel (0 and 255, what every published script reads) or 1 bit.

OpenCV reads both back as 0 and 255, the 1-bit file several times as fast.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

Bits = Literal[1, 8]


def encode(mask: np.ndarray, *, bits: Bits = 8) -> bytes:
    """An (H, W) mask, nonzero = inside, as a grey PNG of `bits` bits a pixel."""
    grey = np.where(np.ascontiguousarray(mask), np.uint8(255), np.uint8(0))
    options = [cv2.IMWRITE_PNG_BILEVEL, 1] if bits == 1 else []
    ok, data = cv2.imencode(".png", grey, options)
    assert ok, f"a mask of shape {mask.shape} could not be encoded"
    return data.tobytes()
