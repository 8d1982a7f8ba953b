"""Which frames the policy is shown (two named sampling policies), and how frames get from disk to arrays."""

from __future__ import annotations

import contextlib
import math
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import overload

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from veason.errors import DataError
from veason.files import check_regular, foreign_content, read_head
from veason.types import Clip, Size, VideoSample

POLICIES = ("linspace", "train_grid")
KEYFRAME_CANDIDATES = 5
"""Training draws its keyframe from this many frames of largest target area."""
MAX_PIXELS = 1 << 27
"""Of one picture; a header that claims more is a mistake or an attack, and nothing is decoded."""
SUFFIXES = (".jpg", ".jpeg", ".png")
"""Of pictures that may be the frames of a folder, in either case."""

_GREY16 = ("I;16", "I;16L", "I;16B")
_DEEP = {**dict.fromkeys(_GREY16, "16-bit grey"), "I": "32-bit grey", "F": "floating-point grey"}
"""Modes of Pillow whose values have no agreed white."""
_UNDECODABLE = (
    *(Image.DecompressionBombError, OSError, EOFError),
    *(SyntaxError, ValueError, TypeError, struct.error),  # of Pillow for damaged headers and EXIF
)
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112


def linspace(length: int, n: int) -> tuple[int, ...]:
    """Evaluation: `n` frame ids evenly from first to last, truncated to int; every frame if there are at most `n`."""
    if length < 1 or n < 1:
        raise ValueError(f"cannot choose {n} of {length} frames")
    if length <= n:
        return tuple(range(length))
    return tuple(int(t) for t in np.linspace(0, length - 1, n))


def train_grid(length: int, n: int, *, keyframe: int) -> tuple[int, ...]:
    """Training: the grid of step ceil(length / (n - 1)) that holds `keyframe`.

    As released, `n` is nominal: n = 6 gives five frames for most lengths and four for some.
    """
    if n < 2:
        raise ValueError(f"train_grid needs n >= 2, got {n}")
    if not 0 <= keyframe < length:
        raise ValueError(f"keyframe {keyframe} is not a frame of a video of {length}")
    step = math.ceil(length / (n - 1))
    return tuple(range(keyframe % step, length, step))


def draw_keyframe(areas: Sequence[int], rng: Random) -> int:
    """A frame id drawn from the frames of largest target area; frames without the target are never drawn."""
    ranked = sorted(range(len(areas)), key=lambda t: -areas[t])  # stable: earlier frames first among equals
    candidates = [t for t in ranked[:KEYFRAME_CANDIDATES] if areas[t] > 0]
    if not candidates:
        raise ValueError("the target is in no frame, so there is no keyframe to draw")
    return rng.choice(candidates)


def sample_clip(
    length: int,
    *,
    policy: str,
    n: int,
    size: Size,
    areas: Sequence[int] | None = None,
    rng: Random | None = None,
) -> Clip:
    """The clip of a video of `length` frames under a named policy, shown at model `size`.

    ``train_grid`` needs the target's `areas` per frame and an `rng` to draw the keyframe with.
    """
    if policy == "linspace":
        return Clip(frame_ids=linspace(length, n), size=size)
    if policy == "train_grid":
        if areas is None or rng is None:
            raise ValueError("train_grid draws a keyframe: it needs areas and rng")
        return Clip(frame_ids=train_grid(length, n, keyframe=draw_keyframe(areas, rng)), size=size)
    raise DataError(f"unknown frame sampling {policy!r}; known: {', '.join(POLICIES)}")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture to be decoded within the block. A missing or broken file, a pipe, and a header that claims more than
    `MAX_PIXELS` are DataErrors that name the file."""
    if not path.exists():
        raise DataError(f"{path}: the frame is missing; fetch it again or correct the frame list")
    check_regular(path)
    try:
        with path.open("rb") as file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: claims {image.height}x{image.width} pixels, at most {MAX_PIXELS} are read")
            yield image
    except DataError:
        raise
    except UnidentifiedImageError:
        if found := foreign_content(read_head(path)):
            raise DataError(f"{path}: the picture cannot be decoded: it is {found}") from None
        raise DataError(
            f"{path}: the picture cannot be decoded (of no kind that is known); fetch the file again"
        ) from None
    except _UNDECODABLE as error:
        raise DataError(f"{path}: the picture cannot be decoded ({error}); fetch the file again") from error


def load(
    path: Path, *, expect: Size | None = None, upright: bool = False, grey: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode one picture: (H, W, 3) uint8 RGB. A missing, broken or mis-sized file is a DataError that names it.

    expect: the size it must have, checked before anything is decoded. upright: turn it as its EXIF orientation says;
    data sets are read as stored. grey: the values of a 16-bit grey picture that become black and white; without them
    such a picture is refused, since nothing says which value is white.
    """
    with opened(path) as image:
        size = _size(image, upright=upright)
        if expect is not None and size != expect:
            raise DataError(f"{path}: the picture is {size}, the video is {expect} (height, width)")
        if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
            raise DataError(f"{path}: an animation of {image.n_frames} pictures; a frame is one picture, so split it")
        if image.mode in _DEEP and not (grey and image.mode in _GREY16):
            raise DataError(
                f"{path}: a {_DEEP[image.mode]} picture, and nothing says which value is white; convert all frames of "
                "the video to 8 bits by one rule, such as `convert IN -level LOW,HIGH -depth 8 OUT` of ImageMagick"
            )
        if upright:
            image = ImageOps.exif_transpose(image)
        if grey and image.mode in _GREY16:
            return _scaled(np.asarray(image), *grey)
        return np.asarray(image.convert("RGB"))


def _size(image: Image.Image, *, upright: bool) -> Size:
    """(height, width) of an opened picture, from its header."""
    turned = upright and image.getexif().get(_ORIENTATION) in _TURNED
    return (image.width, image.height) if turned else (image.height, image.width)


def _scaled(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """(H, W, 3) uint8 of (H, W) uint16: `low` black, `high` white, linear between."""
    shade = (np.clip(values, low, high).astype(np.float64) - low) * (255 / max(high - low, 1))
    return np.repeat(np.rint(shade).astype(np.uint8)[..., None], 3, axis=2)


def resize(frame: np.ndarray, size: Size) -> np.ndarray:
    """(H, W, 3) uint8 frame at `size` (height, width), bicubic, as Qwen's own preprocessing resizes."""
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BICUBIC))


class VideoFrames(Sequence[np.ndarray]):
    """The frames of a sample's video, decoded one by one when asked for: T x (H, W, 3) uint8 RGB at native size.

    Nothing is kept: whoever needs a frame twice keeps it. The size is checked against the data set's.
    """

    def __init__(self, sample: VideoSample) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return len(self.sample)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[t] for t in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return load(self.sample.frame_path(index % len(self)), expect=self.sample.size)


class FolderFrames(Sequence[np.ndarray]):
    """The pictures of a folder as the frames of a video, decoded one by one when asked for: T x (H, W, 3) uint8 RGB.

    They are in the order of the numbers in their names, and upright (EXIF). 16-bit grey is scaled by one rule for the
    clip: its least value is black, its greatest white. Hidden files are no frames.
    """

    def __init__(self, folder: Path, *, stride: int = 1, limit: int | None = None) -> None:
        """At most `limit` pictures, one in `stride`. Opening reads every header (16-bit grey: every picture).

        DataError for a folder without pictures, with pictures of two kinds or of two sizes, with two pictures of one
        name, and where the order of the names is not certain.
        """
        self.paths = tuple(_pictures(folder)[::stride][:limit])
        self.names = tuple(path.stem for path in self.paths)
        """Frame names without suffix."""
        headers = [_header(path) for path in self.paths]
        self.size = headers[0][0]
        """(height, width) of every frame, upright."""
        for path, (size, mode) in zip(self.paths, headers, strict=True):
            if size != self.size:
                raise DataError(
                    f"{path}: the picture is {size}, {self.paths[0].name} is {self.size} (height, width); "
                    "all frames of a video have one size"
                )
            if (mode in _GREY16) != (headers[0][1] in _GREY16):
                raise DataError(
                    f"{path}: {mode} pixels, {self.paths[0].name} has {headers[0][1]}: 16-bit and 8-bit pictures are "
                    "no frames of one video; convert them by one rule"
                )
        self._grey = _grey_range(self.paths) if headers[0][1] in _GREY16 else None

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[t] for t in range(*index.indices(len(self)))]
        return load(self.paths[index], expect=self.size, upright=True, grey=self._grey)


def _pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers in their names."""
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]  # "._x.jpg" is macOS's, no picture
    found = [path for path in inside if path.suffix.lower() in SUFFIXES]
    if not found:
        other = ", ".join(sorted({path.suffix or path.name for path in inside})[:5]) or "nothing"
        raise DataError(f"{folder}: expected pictures ({', '.join(SUFFIXES)}), found {other}")
    png = sum(path.suffix.lower() == ".png" for path in found)
    if 0 < png < len(found):
        raise DataError(
            f"{folder}: {png} .png and {len(found) - png} .jpg pictures; frames of one kind are expected, so move the "
            "others elsewhere"
        )
    seen: dict[str, Path] = {}
    for path in found:
        if seen.setdefault(path.stem, path) is not path:
            raise DataError(f"{folder}: {seen[path.stem].name} and {path.name} have one name; keep one of the two")
    return in_number_order(found, folder)


def in_number_order(paths: Sequence[Path], folder: Path) -> list[Path]:
    """`paths` by their stems, numbers in them compared as numbers: 2 before 10, and padded numbers as text has them.

    DataError where a number after a point could be read in two ways (1.9 and 1.10) and the order depends on it.
    """
    whole = sorted(paths, key=lambda path: (_NUMBER.sub(_padded, path.stem), path.stem))
    decimal = sorted(paths, key=lambda path: (_NO_FRACTION.sub(_padded, path.stem), path.stem))
    if whole != decimal:
        one, other = next((a, b) for a, b in zip(whole, decimal, strict=True) if a != b)
        raise DataError(
            f"{folder}: the order of {one.name} and {other.name} is not certain: the digits after a point may be a "
            "number or a fraction; rename them with as many digits each"
        )
    return whole


_NUMBER = re.compile(r"[0-9]+")
_NO_FRACTION = re.compile(r"(?<![0-9])(?<![0-9]\.)[0-9]+")


def _padded(number: re.Match[str]) -> str:
    return number[0].zfill(255)  # no file name is longer


def _header(path: Path) -> tuple[Size, str]:
    """(size upright, mode) of a picture, nothing decoded."""
    with opened(path) as image:
        return _size(image, upright=True), image.mode


def _grey_range(paths: Sequence[Path]) -> tuple[int, int]:
    """The least and the greatest value of some 16-bit grey pictures."""
    low, high = 65535, 0
    for path in paths:
        with opened(path) as image:
            values = np.asarray(image)
        low, high = min(low, int(values.min())), max(high, int(values.max()))
    return low, high
