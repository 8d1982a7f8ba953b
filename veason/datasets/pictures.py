"""What readers want of pictures: a size from the header alone, and annotation PNGs by index, never by grey level."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from veason.errors import DataError
from veason.types import Size


def picture_size(path: Path) -> Size:
    """(height, width) from a picture's header, nothing decoded."""
    with _open(path) as image:
        return (image.height, image.width)


def read_indices(path: Path, size: Size) -> np.ndarray:
    """Object indices of an annotation PNG: (H, W) uint8, 0 outside.

    A palette file gives its indices, whatever their colours are; a grey one its values; a 1-bit one 0 and 1.
    DataError for any other kind of picture and for one that is not `size`.
    """
    with _open(path) as image:
        if image.mode not in ("P", "L", "1"):
            raise DataError(f"{path}: a {image.mode} picture; an annotation is a palette, grey or 1-bit PNG")
        if (image.height, image.width) != size:
            raise DataError(
                f"{path}: the annotation is {image.height}x{image.width}, the video {size[0]}x{size[1]} "
                "(height x width); fetch the file again"
            )
        return np.asarray(image).astype(np.uint8)


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; is the data root right?") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the picture cannot be read ({error}); fetch the file again") from error
