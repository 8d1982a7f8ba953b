"""Decodes and encodes video files. Decoded frames lie on disk: any frame is there at once, and memory stays bounded.

Times and the shape of pixels are kept: frames need not be evenly spaced, and pixels need not be square.
"""

from __future__ import annotations

import errno
import itertools
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from veason.errors import DataError
from veason.files import check_regular
from veason.frames import MAX_PIXELS

_TICKS = 90_000
"""Ticks a second of the times that are written where frames are not evenly spaced."""
_EVEN = Fraction(1, 1000)
"""Seconds that an evenly spaced frame may be off its place: some containers round times to milliseconds."""


@dataclass(frozen=True)
class DecodedVideo:
    """Every `stride`-th frame of a video file, upright."""

    frames: np.ndarray
    """(T, H, W, 3) uint8 RGB, backed by a temporary file that goes with the array. Pixels as stored: a video whose
    pixels are not square looks squashed until it is shown with `pixel_aspect`."""
    rate: Fraction
    """Frames per second after striding, on average."""
    times: tuple[Fraction, ...]
    """T + 1 seconds since the first frame: when each frame is shown, and when the last one ends."""
    pixel_aspect: Fraction
    """Width of a pixel over its height, upright; mostly 1."""


def decode(path: Path, *, stride: int = 1, limit: int | None = None) -> DecodedVideo:
    """Decode a video file, upright as players show it; at most `limit` frames, one in `stride`.

    Of several streams it is the one that players choose; pictures that are attached, such as a cover, are no video.
    A DataError names a file that cannot be decoded; if frames came before the damage, it says how many and that
    ``--limit`` takes them. The frames go to a temporary file as they are decoded: a minute of 1080p takes 9 GB of disk
    and no memory.
    """
    check_regular(path)
    try:
        with (
            av.open(str(path), metadata_errors="replace") as container,
            tempfile.TemporaryFile(prefix="veason-frames-") as spool,
        ):
            stream = _choose_stream(container, path)
            rate = Fraction(stream.average_rate or stream.guessed_rate or 24) / stride
            times: list[Fraction | None] = []
            shape, aspect = None, Fraction(stream.sample_aspect_ratio or 1)
            chosen = itertools.islice(_frames(container, stream, path), 0, None, stride)
            try:
                for frame in itertools.islice(chosen, limit):
                    turns = round(frame.rotation / 90)  # phones store how they were held; anticlockwise, as in NumPy
                    picture = np.rot90(frame.to_ndarray(format="rgb24"), turns)
                    shape = shape or picture.shape
                    if picture.shape != shape:
                        raise DataError(
                            f"{path}: frame {len(times)} is {picture.shape[:2]}, the first is {shape[:2]}; re-encode it"
                        )
                    if not times and turns % 2:
                        aspect = 1 / aspect
                    spool.write(np.ascontiguousarray(picture).data)
                    times.append(None if frame.pts is None or not frame.time_base else frame.pts * frame.time_base)
            except av.error.FFmpegError as error:
                raise DataError(_damage(path, len(times), error)) from error
            if shape is None:
                raise DataError(f"{path}: holds no frame")
            spool.flush()
            frames = np.memmap(spool, dtype=np.uint8, mode="r", shape=(len(times), *shape))
    except av.error.FFmpegError as error:
        raise DataError(_damage(path, 0, error)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{tempfile.gettempdir()}: no space left for the decoded frames; free some, set TMPDIR, or "
            "take fewer frames (--stride, --limit)"
        ) from error
    return DecodedVideo(frames=frames, rate=rate, times=_times(times, rate), pixel_aspect=aspect)


def _choose_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The stream that players choose among those that are no attached pictures."""
    attached = Disposition.attached_pic | Disposition.timed_thumbnails
    films = [stream for stream in container.streams.video if not stream.disposition & attached]
    if not films:
        raise DataError(f"{path}: has no video stream" + (", just a picture" if container.streams.video else ""))
    best = container.streams.best("video")
    stream = best if best in films else films[0]
    if stream.codec_context is None:
        raise DataError(f"{path}: cannot be decoded as a video: its codec is not known; re-encode it (H.264, say)")
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        raise DataError(f"{path}: claims {stream.height}x{stream.width} pixels, at most {MAX_PIXELS} are read")
    stream.thread_type = "AUTO"
    return stream


def _frames(container: av.container.InputContainer, stream: av.VideoStream, path: Path) -> Iterator[av.VideoFrame]:
    """The frames in the order shown; `av.error.InvalidDataError` at the first damage, or where the file is cut off."""
    cut_off = av.error.InvalidDataError(0, "the file is cut off")
    for packet in container.demux(stream):
        if packet.is_corrupt and container.format.name != "mpegts":  # the last piece of a file that is cut off;
            yield from stream.codec_context.decode(None)  # transport streams have such packets in the middle
            raise cut_off
        yield from stream.decode(packet)
    if _ends_early(path):
        raise cut_off


def _ends_early(path: Path) -> bool:
    """True if a box of an MP4 or QuickTime file reaches beyond the file's end; False for all other files.

    FFmpeg tells only if the cut goes through a frame: a file that is cut between two frames seems to end there.
    """
    size, at = path.stat().st_size, 0
    with open(path, "rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if (at == 0 and kind not in (b"ftyp", b"moov", b"wide", b"free", b"skip", b"mdat")) or length == 0:
                return False  # another format, or a last box that goes on to the end
            if length < 8:
                return False
            at += length
    return at > size


def _times(starts: Sequence[Fraction | None], rate: Fraction) -> tuple[Fraction, ...]:
    """T + 1 times of T frames since the first; evenly spaced where the file gives no times or goes backwards.

    The last frame lasts as long as most do: the durations that containers give are in decoding order.
    """
    known = [start for start in starts if start is not None]
    gaps = [b - a for a, b in itertools.pairwise(known)] if len(known) == len(starts) else []
    if not gaps or min(gaps) <= 0:
        return tuple(t / rate for t in range(len(starts) + 1))
    return tuple(time - known[0] for time in (*known, known[-1] + statistics.median_low(gaps)))


def _damage(path: Path, count: int, error: av.error.FFmpegError) -> str:
    what = error.strerror or str(error)
    if count == 0:
        return f"{path}: cannot be decoded as a video: {what}"
    return f"{path}: damaged after {count} frames ({what}); --limit {count} takes them, or fetch the file again"


def encode(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    rate: Fraction,
    times: Sequence[Fraction] | None = None,
    pixel_aspect: Fraction = Fraction(1),
) -> None:
    """Write (H, W, 3) uint8 RGB frames as an H.264 MP4 that browsers play: yuv420p, even sides, index first.

    rate: frames per second. times: T + 1 seconds since the first frame, as in `DecodedVideo`, where the frames are not
    evenly spaced. pixel_aspect: width of a pixel over its height; players stretch the picture by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    even = times is None or all(abs(time - t / rate) <= _EVEN for t, time in enumerate(times))
    starts = None if times is None or even else [round(time * _TICKS) for time in times]
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = None
            for t, frame in enumerate(frames):
                if stream is None:
                    stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
                    stream.height, stream.width = (side + side % 2 for side in frame.shape[:2])
                    stream.pix_fmt = "yuv420p"
                    if starts is not None:  # without B frames they are decoded in the order shown, so durations hold
                        stream.codec_context.time_base = Fraction(1, _TICKS)
                        stream.codec_context.max_b_frames = 0
                    if pixel_aspect != 1:  # H.264 has 16 bits for each of the two numbers
                        stream.codec_context.sample_aspect_ratio = pixel_aspect.limit_denominator(255)
                frame = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                if starts is not None:
                    picture.pts, picture.time_base = starts[t], Fraction(1, _TICKS)
                container.mux(_with_durations(stream.encode(picture), starts))
            assert stream is not None, "no frame to encode"
            container.mux(_with_durations(stream.encode(), starts))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _with_durations(packets: list[av.Packet], starts: Sequence[int] | None) -> list[av.Packet]:
    """The packets, each lasting until the next frame starts; unchanged where frames are evenly spaced."""
    if starts is not None:
        lasting = {start: end - start for start, end in itertools.pairwise(starts)}
        for packet in packets:
            assert packet.pts is not None
            packet.duration = lasting[packet.pts]
    return packets
