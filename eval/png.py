"""Grey values of PNG predictions, as `veason.mask_png` reads them; None for whatever is wrong with a file."""

from __future__ import annotations

import numpy as np

from veason import mask_png
from veason.mask_png import use_compiled  # noqa: F401
from veason.types import Size

START = mask_png.SIGNATURE
END = b"IEND\xaeB`\x82"


def read_grey(data: bytes, size: Size) -> np.ndarray | None:
    """(H, W) uint8 grey values of a PNG of `size`; None if it is damaged or of another size."""
    try:
        return mask_png.decode_grey(data, size)
    except mask_png.PngError:
        return None
