"""Video files come out as players show them."""

import errno
import io
import os
import re
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from veason import video
from veason.errors import DataError

QUARTERS = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
"""Clockwise degrees -> a, b, c, d of an MP4 track's matrix (ISO/IEC 14496-12, 8.3.2)."""


def turned(path, clockwise: int) -> None:
    """Have the file's only track shown turned, as a phone does that was held otherwise."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # type, version, two times, id, reserved, duration, reserved, layer … volume
    a, b, c, d = (int(value * 65536).to_bytes(4, "big", signed=True) for value in QUARTERS[clockwise])
    data[matrix : matrix + 8], data[matrix + 12 : matrix + 20] = a + b, c + d
    path.write_bytes(data)


@pytest.mark.parametrize(("clockwise", "corner"), [(0, (0, 0)), (90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_a_phones_video_comes_out_upright(tmp_path, clockwise, corner):
    """A white patch at the top left of what is stored goes clockwise from corner to corner."""
    picture = np.zeros((64, 96, 3), dtype=np.uint8)
    picture[:16, :16] = 255
    path = tmp_path / "clip.mp4"
    video.encode(path, [picture] * 3, rate=Fraction(8))
    turned(path, clockwise)
    frames = video.decode(path).frames
    assert frames.shape == ((3, 64, 96, 3) if clockwise in (0, 180) else (3, 96, 64, 3))
    for row, column in [(0, 0), (0, -1), (-1, 0), (-1, -1)]:
        patch = frames[1][slice(8) if row == 0 else slice(-8, None), slice(8) if column == 0 else slice(-8, None)]
        assert patch.mean() == pytest.approx(250 if (row, column) == corner else 5, abs=12)


def shades(n, size=(32, 48)):
    """Frames that tell their place: the t-th has the grey 15 t."""
    return [np.full((*size, 3), 15 * t, np.uint8) for t in range(n)]


def places(decoded):
    return [round(frame.mean() / 15) for frame in decoded.frames]


def with_cover(path) -> None:
    """A film of three frames of 32 x 48 with a cover of 64 x 64."""
    with av.open(str(path), "w") as container:
        film, cover = container.add_stream("libx264", rate=5), container.add_stream("mjpeg", rate=5)
        film.height, film.width, film.pix_fmt = 32, 48, "yuv420p"
        cover.height, cover.width, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic.value
        picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 255, np.uint8), format="rgb24")
        container.mux([*cover.encode(picture), *cover.encode()])
        for frame in shades(3):
            container.mux(film.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(film.encode())


def with_boxes_first(path, kind: bytes) -> None:
    """Move a box of the index to its beginning: streams are numbered in the order of the boxes that tell of them."""
    data = path.read_bytes()
    start = data.index(b"moov") - 4
    at, end, boxes = start + 8, start + int.from_bytes(data[start : start + 4], "big"), []
    while at < end:
        size = int.from_bytes(data[at : at + 4], "big")
        boxes.append(data[at : at + size])
        at += size
    boxes.sort(key=lambda box: box[4:8] != kind)
    path.write_bytes(data[: start + 8] + b"".join(boxes) + data[end:])


@pytest.mark.parametrize("first", [True, False])
def test_a_cover_is_no_video(tmp_path, first):
    path = tmp_path / "a.mp4"
    with_cover(path)
    if first:
        with_boxes_first(path, b"udta")
    with av.open(str(path)) as container:
        assert [stream.width for stream in container.streams.video] == ([64, 48] if first else [48, 64])
    assert video.decode(path).frames.shape == (3, 32, 48, 3)


def test_a_picture_alone_is_no_video_to_segment(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt, cover.disposition = 64, 64, "yuvj420p", Disposition.attached_pic.value
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux([*cover.encode(picture), *cover.encode()])
    with pytest.raises(DataError, match=r"a\.mp4: has no video stream, just a picture"):
        video.decode(path)


def test_frames_keep_their_own_times(tmp_path):
    path, times = tmp_path / "a.mp4", [Fraction(t, 10) for t in (0, 1, 13, 14, 90, 91)]
    video.encode(path, shades(5), rate=Fraction(5), times=times)
    decoded = video.decode(path)
    assert decoded.times == tuple(times)
    assert places(decoded) == [0, 1, 2, 3, 4]
    with av.open(str(path)) as container:
        assert container.duration / av.time_base == pytest.approx(9.1)
    every_other = video.decode(path, stride=2)
    assert every_other.times[:3] == (0, Fraction(13, 10), 9)
    assert places(every_other) == [0, 2, 4]


def test_evenly_spaced_frames_are_written_as_ever(tmp_path):
    rate = Fraction(30000, 1001)
    video.encode(tmp_path / "a.mp4", shades(5), rate=rate)
    times = [t / rate + Fraction(t % 2, 2000) for t in range(6)]  # as a container that rounds to milliseconds has them
    video.encode(tmp_path / "b.mp4", shades(5), rate=rate, times=times)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert video.decode(tmp_path / "a.mp4").times == tuple(t / rate for t in range(6))


@pytest.mark.parametrize(("clockwise", "aspect"), [(0, Fraction(4, 3)), (90, Fraction(3, 4)), (180, Fraction(4, 3))])
def test_the_shape_of_pixels_goes_along(tmp_path, clockwise, aspect):
    path = tmp_path / "a.mp4"
    video.encode(path, shades(3), rate=Fraction(5), pixel_aspect=Fraction(4, 3))
    turned(path, clockwise)
    assert video.decode(path).pixel_aspect == aspect
    video.encode(path, shades(3), rate=Fraction(5))
    assert video.decode(path).pixel_aspect == 1


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_video_that_is_cut_off_says_how_many_frames_are_good(tmp_path, kept):
    rng, path = np.random.default_rng(0), tmp_path / "a.mp4"
    video.encode(path, [rng.integers(0, 255, (32, 48, 3), dtype=np.uint8) for _ in range(16)], rate=Fraction(5))
    whole = video.decode(path).frames
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(DataError, match=r"a\.mp4: damaged after \d+ frames .*; --limit \d+ takes them") as error:
        video.decode(path)
    count = int(re.search(r"--limit (\d+)", str(error.value))[1])
    assert 0 < count < 16
    assert np.array_equal(video.decode(path, limit=count).frames, whole[:count])
    with pytest.raises(DataError, match=rf"damaged after {-(-count // 2)} frames"):
        video.decode(path, stride=2)  # the limit counts after striding


def test_a_video_that_is_cut_off_between_two_frames_does_not_just_end(tmp_path):
    path = tmp_path / "a.mp4"
    video.encode(path, shades(16), rate=Fraction(5))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: packets[9].pos])
    with pytest.raises(DataError, match=r"a\.mp4: damaged after \d+ frames"):
        video.decode(path)


def test_what_is_no_video_is_named(tmp_path):
    path = tmp_path / "a.mp4"
    for content in (b"", b"no video", b"\0\0\0\x20ftypisom"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.mp4: cannot be decoded as a video"):
            video.decode(path)
    with pytest.raises(DataError, match=r"b\.mp4: no such file"):
        video.decode(tmp_path / "b.mp4")
    os.mkfifo(tmp_path / "c.mp4")
    with pytest.raises(DataError, match=r"c\.mp4: no regular file"):
        video.decode(tmp_path / "c.mp4")


def test_tags_that_are_no_unicode_and_codecs_that_nobody_knows(tmp_path):
    path = tmp_path / "a.mp4"
    video.encode(path, shades(3), rate=Fraction(5))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"VideoHandler", b"Vid\xe9oHandler"))  # Latin-1, as old cameras write titles
    assert places(video.decode(path)) == [0, 1, 2]
    path.write_bytes(data.replace(b"avc1", b"zzzz"))
    with pytest.raises(DataError, match=r"a\.mp4: cannot be decoded as a video: its codec is not known"):
        video.decode(path)


def test_no_space_for_the_spool_is_a_line(tmp_path, monkeypatch):
    video.encode(tmp_path / "a.mp4", shades(2), rate=Fraction(5))

    class Full(io.RawIOBase):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(video.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(DataError, match="no space left for the decoded frames; free some, set TMPDIR"):
        video.decode(tmp_path / "a.mp4")


def test_an_interrupted_encoding_leaves_nothing(tmp_path):
    def interrupted():
        yield from shades(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.encode(tmp_path / "a.mp4", interrupted(), rate=Fraction(5))
    assert list(tmp_path.iterdir()) == []
