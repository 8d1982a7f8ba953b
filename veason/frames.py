"""Chooses the frames that a policy is shown (two named sampling policies) and reads frames from disk."""

from __future__ import annotations

import contextlib
import math
import re
import struct
from abc import abstractmethod
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
"""Pixels of a picture; a header that claims more is a mistake or an attack, and nothing is decoded."""
SUFFIXES = (".jpg", ".jpeg", ".png")
"""Suffixes, in either case, of pictures that may be the frames of a folder."""

_GREY16 = ("I;16", "I;16L", "I;16B")
_DEEP = {**dict.fromkeys(_GREY16, "16-bit grey"), "I": "32-bit grey", "F": "floating-point grey"}
"""Modes of Pillow in which no value is agreed to be white."""
_UNDECODABLE = (
    *(Image.DecompressionBombError, OSError, EOFError),
    *(SyntaxError, ValueError, TypeError, struct.error),  # Pillow raises them for damaged headers and EXIF
)
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112


def linspace(length: int, n: int) -> tuple[int, ...]:
    """The sampling of evaluation: `n` frame ids evenly from first to last, truncated to int; at most every frame."""
    if length < 1 or n < 1:
        raise ValueError(f"cannot choose {n} of {length} frames")
    if length <= n:
        return tuple(range(length))
    return tuple(int(t) for t in np.linspace(0, length - 1, n))


def train_grid(length: int, n: int, *, keyframe: int) -> tuple[int, ...]:
    """The sampling of training: the grid of step ceil(length / (n - 1)) that holds `keyframe`.

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
    """Open a picture, to be decoded within the block.

    A missing or broken file, a pipe, and a header that claims more than `MAX_PIXELS` are DataErrors that name the file.
    """
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
            f"{path}: the picture cannot be decoded (its format is not known); fetch the file again"
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
        if image.format == "PNG" and (count := getattr(image, "n_frames", 1)) > 1:
            raise DataError(f"{path}: an animation of {count} pictures; a frame is one picture, so split it")
        if image.mode in _DEEP and not (grey and image.mode in _GREY16):
            raise DataError(
                f"{path}: a {_DEEP[image.mode]} picture, and nothing says which value is white; convert all frames of "
                "the video to 8 bits by one rule, such as `convert IN -level LOW,HIGH -depth 8 OUT` of ImageMagick"
            )
        turned = ImageOps.exif_transpose(image) if upright else image
        assert turned is not None  # which it is in place only
        if grey is None or image.mode not in _GREY16:
            return np.asarray(turned.convert("RGB"))
        low, high = grey
        shade = (np.clip(np.asarray(turned), low, high).astype(np.float64) - low) * (255 / max(high - low, 1))
        return np.repeat(np.rint(shade).astype(np.uint8)[..., None], 3, axis=2)


def _size(image: Image.Image, *, upright: bool) -> Size:
    """(height, width) of an opened picture, read from its header."""
    turned = upright and image.getexif().get(_ORIENTATION) in _TURNED
    return (image.width, image.height) if turned else (image.height, image.width)


def resize(frame: np.ndarray, size: Size) -> np.ndarray:
    """(H, W, 3) uint8 frame at `size` (height, width), bicubic, as Qwen's own preprocessing resizes."""
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BICUBIC))


class Frames(Sequence[np.ndarray]):
    """The frames of a video, decoded one by one when asked for: T x (H, W, 3) uint8 RGB of one size.

    Nothing is kept: a caller that needs a frame twice keeps it.
    """

    @abstractmethod
    def frame(self, frame_id: int) -> np.ndarray:
        """Decode one frame, 0 … T-1."""

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        chosen = range(len(self))[index]  # an IndexError for a frame that is not there
        return self.frame(chosen) if isinstance(chosen, int) else [self.frame(t) for t in chosen]


class VideoFrames(Frames):
    """The frames of a sample's video, at native size, which is checked against the data set's."""

    def __init__(self, sample: VideoSample) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return len(self.sample)

    def frame(self, frame_id: int) -> np.ndarray:
        return load(self.sample.frame_path(frame_id), expect=self.sample.size)


class FolderFrames(Frames):
    """The pictures of a folder as the frames of a video.

    They are in the order of the numbers in their names, and upright (EXIF). 16-bit grey is scaled by one rule for the
    clip: its least value is black, its greatest white. Hidden files are no frames.
    """

    def __init__(self, folder: Path, *, stride: int = 1, limit: int | None = None) -> None:
        """Take at most `limit` pictures, one in `stride`. Every header is read now (of 16-bit grey: every picture).

        DataError for a folder without pictures, with pictures of two kinds or of two sizes, with two pictures of one
        name, and where the order of the names is not certain.
        """
        self.paths = tuple(_pictures(folder)[::stride][:limit])
        self.names = tuple(path.stem for path in self.paths)
        """Frame names without suffix."""
        headers: list[tuple[Size, str]] = []
        for path in self.paths:
            with opened(path) as image:
                headers.append((_size(image, upright=True), image.mode))
        self.size, first_mode = headers[0]
        """(height, width) of every frame, upright."""
        for path, (size, mode) in zip(self.paths, headers, strict=True):
            if size != self.size:
                raise DataError(
                    f"{path}: the picture is {size}, {self.paths[0].name} is {self.size} (height, width); "
                    "all frames of a video have one size"
                )
            if (mode in _GREY16) != (first_mode in _GREY16):
                raise DataError(
                    f"{path}: {mode} pixels, {self.paths[0].name} has {first_mode}: 16-bit and 8-bit pictures are "
                    "no frames of one video; convert them by one rule"
                )
        self._grey: tuple[int, int] | None = None
        if first_mode in _GREY16:
            low, high = 65535, 0
            for path in self.paths:
                with opened(path) as image:
                    values = np.asarray(image)
                low, high = min(low, int(values.min())), max(high, int(values.max()))
            self._grey = (low, high)

    def __len__(self) -> int:
        return len(self.paths)

    def frame(self, frame_id: int) -> np.ndarray:
        return load(self.paths[frame_id], expect=self.size, upright=True, grey=self._grey)


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
