"""Video files: decoded once into a spool on disk, so that any frame can be had at once and memory stays bounded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from veason.errors import DataError


@dataclass(frozen=True)
class DecodedVideo:
    """Every `stride`-th frame of a video file."""

    frames: np.ndarray
    """(T, H, W, 3) uint8 RGB, backed by a temporary file that goes with the array."""
    rate: Fraction
    """Frames per second after striding."""


def decode(path: Path, *, stride: int = 1, limit: int | None = None) -> DecodedVideo:
    """Decode a video file, upright as players show it; at most `limit` frames, one in `stride`. A DataError names a
    file that cannot be decoded.

    The frames go to a temporary file as they are decoded: a minute of 1080p takes 9 GB of disk and no memory.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = stream.average_rate or stream.guessed_rate or Fraction(24)
            wanted = (frame for i, frame in enumerate(container.decode(stream)) if i % stride == 0)
            frames = _spool(map(_upright, wanted), limit, path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such video") from None
    except av.error.FFmpegError as error:
        raise DataError(f"{path}: cannot be decoded as a video: {error}") from error
    return DecodedVideo(frames=frames, rate=Fraction(rate) / stride)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned by the quarters that the file asks for: phones store how they were held."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # both count anticlockwise


def _spool(pictures: Iterable[np.ndarray], limit: int | None, path: Path) -> np.ndarray:
    shape, count = None, 0
    with tempfile.TemporaryFile(prefix="veason-frames-") as file:
        for picture in pictures:
            shape = shape or picture.shape
            if picture.shape != shape:
                raise DataError(f"{path}: frame {count} is {picture.shape[:2]}, the first is {shape[:2]}; re-encode it")
            file.write(np.ascontiguousarray(picture))
            count += 1
            if count == limit:
                break
        if shape is None:
            raise DataError(f"{path}: holds no frame")
        file.flush()
        return np.memmap(file, dtype=np.uint8, mode="r", shape=(count, *shape))


def encode(path: Path, frames: Iterable[np.ndarray], *, rate: Fraction) -> None:
    """Write (H, W, 3) uint8 RGB frames as an H.264 MP4 that browsers play: yuv420p, even sides, index first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = None
        for frame in frames:
            frame = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        assert stream is not None, "no frame to encode"
        container.mux(stream.encode())
    partial.replace(path)
