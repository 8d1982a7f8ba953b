"""Grey PNGs to pixels: OpenCV reads any, and compiled code the plain ones that masks are, several times as fast.

Both give the same pixels; the tests hold them to it. What the fast way does not know (colour, palettes, interlacing) or
finds wrong it leaves to OpenCV.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np

from veason.types import Size

START = b"\x89PNG\r\n\x1a\n"
END = b"IEND\xaeB`\x82"

_HEADER = struct.Struct(">IIBBBBB")
_IGNORED = (b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs")
_decode: Callable[[bytes, Size], np.ndarray | None] | None = None


def use_compiled(wanted: bool = True) -> bool:
    """Let numba read plain PNGs from here on in this process, if it is there; True if it does. Pixels stay the same."""
    global _decode
    _decode = None
    if wanted:
        try:
            from eval.compiled_png import inflate  # noqa: F401 - is it there?
        except ImportError:  # numba is not installed, or not for this NumPy
            return False
        _decode = decode_plain
    return wanted


def read_grey(data: bytes, size: Size) -> np.ndarray | None:
    """(H, W) uint8 grey values of a PNG, of whatever size it is; None if it is damaged.

    1-bit files give 0 and 255, 8-bit grey their values, palette and colour their luminance. size: the one expected.
    """
    mask = _decode(data, size) if _decode is not None else None
    return mask if mask is not None else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def decode_plain(data: bytes, size: Size) -> np.ndarray | None:
    """`read_grey` of an 8-bit or 1-bit grey PNG of `size` without transparency or interlacing; None for any other."""
    from eval.compiled_png import PADDING, inflate, unfilter

    parts = _chunks(data)
    if parts is None:
        return None
    width, height, depth, *form = _HEADER.unpack(parts[0])
    stream = parts[1]
    if (height, width) != size or depth not in (1, 8) or any(form) or not _is_zlib(stream):
        return None
    row = (width * depth + 7) // 8
    rows = np.empty((height, 1 + row), np.uint8)
    if not inflate(np.frombuffer(bytearray(stream[2:-4]) + bytes(PADDING), np.uint8), rows.reshape(-1)):
        return None
    mask = np.empty((height, row), np.uint8)
    if not unfilter(rows, mask):
        return None
    return mask if depth == 8 else np.unpackbits(mask, axis=1, count=width) * np.uint8(255)


def _chunks(data: bytes) -> tuple[bytes, bytes] | None:
    """(content of IHDR, of all IDAT) of a PNG of nothing but these, texts and times; None for any other."""
    header, stream, at = b"", [], len(START)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if data[at + 8 + length : at + 12 + length] != zlib.crc32(kind + content).to_bytes(4):
            return None
        at += 12 + length
        if kind == b"IHDR" and length == _HEADER.size and not header:
            header = content
        elif kind == b"IDAT" and header:
            stream.append(content)
        elif kind == b"IEND" and stream:
            return header, b"".join(stream)
        elif kind not in _IGNORED:
            return None
    return None


def _is_zlib(stream: bytes) -> bool:
    """Does a stream open as zlib's does, with deflate and without a dictionary?"""
    return len(stream) > 6 and stream[0] & 15 == 8 and not stream[1] & 32 and (stream[0] << 8 | stream[1]) % 31 == 0
