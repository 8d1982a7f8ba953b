"""Reads pictures for the readers: a size from the header alone, and annotation PNGs by index, never by grey level."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from veason import mask_png
from veason.errors import DataError
from veason.files import check_regular, foreign_content
from veason.types import Size

_log = logging.getLogger(__name__)


def picture_size(path: Path) -> Size:
    """(height, width) from a picture's header, nothing decoded."""
    check_regular(path, hint="is the data root right?")
    try:
        with Image.open(path) as image:
            return (image.height, image.width)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the picture cannot be read ({error}); fetch the file again") from error


def read_indices(path: Path, size: Size, *, scoring: bool = False) -> np.ndarray:
    """Object indices of an annotation PNG: (H, W) uint8, 0 outside.

    A palette file gives its indices, whatever their colours are; a grey one its values; a 1-bit one 0 and 1.
    DataError for any other kind of picture, for one that is not `size`, and for a damaged file. scoring: a colour
    picture gives its grey levels, as the published scripts read it, with a warning; for readers that take any nonzero
    value for the target.
    """
    check_regular(path, hint="is the data root right?")
    data = path.read_bytes()
    try:
        head = mask_png.header(data)
        if head.size != size:
            raise DataError(
                f"{path}: the annotation is {head.size[0]}x{head.size[1]}, the video {size[0]}x{size[1]} "
                "(height x width); fetch the file again"
            )
        if head.colour in (mask_png.GREY, mask_png.PALETTE):
            return mask_png.decode_indices(data, size)
        kind = "RGB" if head.colour & 2 else "grey"
        grey = mask_png.decode_grey(data, size)
    except mask_png.PngError as error:
        found = foreign_content(data[:512]) if data else None
        problem = f"not a PNG but {found}" if found else f"the picture cannot be read ({error}); fetch the file again"
        raise DataError(f"{path}: {problem}") from error
    problem = f"{path}: a {kind} picture; an annotation is a palette, grey or 1-bit PNG of object numbers"
    if not scoring:
        raise DataError(f"{problem}, found the grey levels {listed(np.unique(grey))}; fetch the file again")
    if path.parent not in _warned:
        _warned.add(path.parent)
        _log.warning("%s; its grey levels are taken, as the published script does", problem)
    return grey


_warned: set[Path] = set()
"""Folders for whose colour pictures there was a warning."""


def listed(values: np.ndarray) -> str:
    """The first values of a picture, for a message."""
    few = ", ".join(str(value) for value in values[:6].tolist())
    return few if len(values) <= 6 else f"{few} and {len(values) - 6} more"
