"""Video files come out as players show them."""

from fractions import Fraction

import numpy as np
import pytest

from veason import video

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
