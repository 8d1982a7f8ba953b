"""Which frames the policy is shown (two named sampling policies), and how frames get from disk to arrays."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import overload

import numpy as np
from PIL import Image, UnidentifiedImageError

from veason.errors import DataError
from veason.types import Clip, Size, VideoSample

POLICIES = ("linspace", "train_grid")
KEYFRAME_CANDIDATES = 5
"""Training draws its keyframe from this many frames of largest target area."""


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
    """A picture to be decoded within the block. A missing or broken file is a DataError that names it."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            yield image
    except FileNotFoundError:
        raise DataError(f"{path}: the frame is missing; fetch it again or correct the frame list") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the picture cannot be decoded ({error}); fetch the file again") from error


def load(path: Path, *, expect: Size | None = None) -> np.ndarray:
    """Decode one picture: (H, W, 3) uint8 RGB. A missing, broken or mis-sized file is a DataError that names it."""
    with opened(path) as image:
        frame = np.asarray(image.convert("RGB"))
    if expect is not None and frame.shape[:2] != expect:
        raise DataError(f"{path}: the picture is {frame.shape[:2]}, the video is {expect} (height, width)")
    return frame


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
