"""Writes masks as PNG files, and reads them: one reader for predictions and ground truth, ours and other people's.

The reader trusts no file. The header comes first, so that nothing is unpacked for a picture of another size; every
chunk's CRC, the stream's Adler-32 and its exact length are checked; no more is ever inflated than the picture has.
Pixels are then those of OpenCV (`decode_grey`) or Pillow (`decode_indices`), or a `PngError` says what is wrong.

It is fast because a mask is long runs of one value, which zlib-ng packs and unpacks many times as fast as the zlib that
OpenCV and Pillow are built with, into the same bytes. Without zlib-ng Python's own zlib does the same, slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct, pack
from typing import Literal, NamedTuple

import cv2
import numpy as np

from veason.types import Size

try:
    from zlib_ng import zlib_ng as zlib
except ImportError:
    import zlib  # type: ignore[no-redef] # the same functions, slower

Bits = Literal[1, 8]

SIGNATURE = b"\x89PNG\r\n\x1a\n"

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {GREY: 1, COLOUR: 3, PALETTE: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}
_DEPTHS = {GREY: (1, 2, 4, 8, 16), COLOUR: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), COLOUR_ALPHA: (8, 16)}
_IHDR = Struct(">IIBBBBB")
_PLAIN = frozenset((b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"sBIT", b"hIST"))
"""Chunks that do not change a grey value in OpenCV's reading."""
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, step down, step right of the passes of an interlaced picture."""
_IDAT_BYTES = 8192
"""Bytes of a stream that libpng puts into one chunk."""


class PngError(ValueError):
    """A fault of a PNG file; the message is to follow the file's name."""


class Header(NamedTuple):
    """The size and kind of a PNG, from its first chunk."""

    size: Size
    depth: int
    """Bits a sample: 1, 2, 4, 8 or 16."""
    colour: int
    """`GREY`, `COLOUR`, `PALETTE`, `GREY_ALPHA` or `COLOUR_ALPHA`."""
    interlaced: bool


def encode(mask: np.ndarray, *, bits: Bits = 8) -> bytes:
    """An (H, W) mask, nonzero = inside, as a grey PNG of `bits` bits a pixel; byte for byte as OpenCV writes it.

    8 bits are 0 and 255, what every published script reads; OpenCV reads 1 bit back as 0 and 255, too. Each row holds
    the differences of its bytes to the one on the left (filter 1), packed with the strategy for runs.
    """
    inside = np.ascontiguousarray(mask != 0)
    height, width = inside.shape
    body = np.packbits(inside, axis=1) if bits == 1 else inside.view(np.uint8) * np.uint8(255)
    rows = np.empty((height, 1 + body.shape[1]), np.uint8)
    rows[:, 0], rows[:, 1] = width > 1, body[:, 0]  # libpng filters no column that stands alone
    np.subtract(body[:, 1:], body[:, :-1], out=rows[:, 2:])
    packer = zlib.compressobj(1, zlib.DEFLATED, -15, 8, zlib.Z_RLE)
    window = min(7, max(0, (rows.size - 1).bit_length() - 8))  # log2 - 8 of one that holds the picture, as libpng
    start = window << 12 | 8 << 8
    start += -start % 31
    stream = pack(">H", start) + packer.compress(rows) + packer.flush() + pack(">I", zlib.adler32(rows))
    parts = [stream[at : at + _IDAT_BYTES] for at in range(0, len(stream), _IDAT_BYTES)]
    chunks = [(b"IHDR", _IHDR.pack(width, height, bits, GREY, 0, 0, 0)), *((b"IDAT", part) for part in parts)]
    return SIGNATURE + b"".join(
        pack(">I", len(content)) + kind + content + pack(">I", zlib.crc32(kind + content))
        for kind, content in (*chunks, (b"IEND", b""))
    )


def header(data: bytes) -> Header:
    """The size and kind of a PNG; PngError if it does not begin as one."""
    return _header(data, next(_chunks(data), (b"", b""))[1])


def decode_grey(data: bytes, size: Size) -> np.ndarray:
    """(H, W) uint8 grey values of a PNG of `size`, row-major, as OpenCV's IMREAD_GRAYSCALE gives them.

    1-bit files give 0 and 255, 8-bit grey their values, palette and colour their luminance, 16 bits the upper eight.
    PngError for a picture of several values that are all black in this reading: a mask would be lost.
    """
    head, stored, plain = _decode(data, size)
    if stored is None or not plain or head.colour != GREY:
        grey = _opencv(data, cv2.IMREAD_GRAYSCALE, size)
        if not grey.any():
            found = _opencv(data, cv2.IMREAD_UNCHANGED, size) if stored is None else stored
            if np.ptp(found.reshape(grey.size, -1), axis=0).any():
                raise PngError(
                    f"the PNG holds values up to {int(found.max())}, all of which are black as 8-bit grey; masks are 0 "
                    "and 255 in 8 bits, or 0 and 1 in one bit"
                )
        return grey
    return stored if head.depth == 8 else stored * np.uint8(255 // ((1 << head.depth) - 1))


def decode_indices(data: bytes, size: Size) -> np.ndarray:
    """(H, W) uint8 stored values of a grey or palette PNG of `size`, row-major: indices, whatever their colours are.

    PngError for colour and alpha, which have no indices, and for 16-bit values above 255.
    """
    head, stored, _ = _decode(data, size)
    if head.colour not in (GREY, PALETTE):
        raise PngError(f"the PNG is {'RGB' if head.colour & 2 else 'grey with alpha'}, which has no indices")
    if stored is None:
        stored = _opencv(data, cv2.IMREAD_UNCHANGED | cv2.IMREAD_ANYDEPTH, size)
        if stored.ndim != 2 or stored.max() > 255:
            raise PngError(f"the PNG is of 16 bits with the value {int(stored.max())}, where indices go to 255")
    return stored.astype(np.uint8, copy=False)


def _opencv(data: bytes, flags: int, size: Size) -> np.ndarray:
    """A PNG that `_decode` has found sound, in OpenCV's reading."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if picture is None or picture.shape[:2] != size:  # turned, by an orientation in it
        raise PngError("the PNG is of a kind that OpenCV cannot read at the video's size")
    return picture


def _decode(data: bytes, size: Size) -> tuple[Header, np.ndarray | None, bool]:
    """(header, (H, W) uint8 stored samples or None, no chunk changes how OpenCV sees them).

    All of the file is checked in any case; samples are None where a pixel has more than 8 bits.
    """
    chunks = _chunks(data)
    head, plain, palette = _header(data, next(chunks, (b"", b""))[1]), True, False
    stream: list[bytes] = []
    if head.size != size:
        raise PngError(f"the PNG is {head.size[0]}x{head.size[1]}, expected {size[0]}x{size[1]} (height x width)")
    before = b"IHDR"
    for kind, content in chunks:
        if kind == b"IDAT":
            if stream and before != b"IDAT":
                raise PngError("the PNG is damaged: other chunks lie between those of its pixels")
            stream.append(content)
        elif kind == b"PLTE" and not palette and not stream:
            palette = True
        elif not kind[0] & 32:
            raise PngError(f"the PNG is damaged: the chunk {kind!r} has no place there")
        else:
            plain = plain and kind in _PLAIN
        before = kind
    if head.colour == PALETTE and not palette:
        raise PngError("the PNG is damaged: it has no palette")
    return head, _samples(head, b"".join(stream)), plain


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of each chunk up to the end of the picture; bytes behind that are ignored."""
    if not data.startswith(SIGNATURE):
        raise PngError("not a PNG file" if data else "the file is empty (0 bytes)")
    at, length = len(SIGNATURE), len(data)
    while True:
        stop = at + 12 + int.from_bytes(data[at : at + 4])
        if at + 12 > length or stop > length:
            raise PngError(f"the PNG is cut off after {length} bytes, or damaged")
        kind = data[at + 4 : at + 8]
        if zlib.crc32(data[at + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop]):
            raise PngError(f"the PNG is damaged: the chunk {kind!r} at byte {at} fails its check sum")
        if kind == b"IEND":
            return
        yield kind, data[at + 8 : stop - 4]
        at = stop


def _header(data: bytes, content: bytes) -> Header:
    if data[12:16] != b"IHDR" or len(content) != _IHDR.size:
        raise PngError("the PNG is damaged: it does not begin with a header")
    width, height, depth, colour, packing, filtering, interlacing = _IHDR.unpack(content)
    if depth not in _DEPTHS.get(colour, ()) or packing or filtering or interlacing > 1 or not (width and height):
        raise PngError(
            f"the PNG is damaged: no picture has {depth} bits, colour type {colour} and {height}x{width} pixels"
        )
    return Header((height, width), depth, colour, interlacing == 1)


def _samples(head: Header, stream: bytes) -> np.ndarray | None:
    """Inflate, check and unfilter; (H, W) uint8 samples, None where a pixel has more than 8 bits."""
    (height, width), bits = head.size, head.depth * _CHANNELS[head.colour]
    passes = _ADAM7 if head.interlaced else ((0, 0, 1, 1),)
    parts = [(y, x, dy, dx, -((y - height) // dy), -((x - width) // dx)) for y, x, dy, dx in passes]
    parts = [part for part in parts if part[4] > 0 and part[5] > 0]
    lengths = [rows * (1 + (columns * bits + 7) // 8) for *_, rows, columns in parts]
    decoder = zlib.decompressobj()
    try:
        raw = decoder.decompress(stream, sum(lengths) + 1)
    except zlib.error as error:  # type: ignore[misc] # a class, which the stub of zlib-ng takes for an instance
        raise PngError(f"the PNG is damaged: its pixels cannot be unpacked ({error})") from error
    if len(raw) > sum(lengths):
        raise PngError("the PNG is damaged: it has more pixels than its header says")
    if len(raw) < sum(lengths) or not decoder.eof:
        raise PngError("the PNG is damaged: it has fewer pixels than its header says")
    picture = np.empty(head.size, np.uint8) if head.interlaced and bits <= 8 else None
    at = 0
    for (y, x, dy, dx, height, width), length in zip(parts, lengths, strict=True):
        rows = np.frombuffer(raw, np.uint8, length, at).reshape(height, -1)
        at += length
        if rows[:, 0].max() > 4:
            raise PngError(f"the PNG is damaged: a row has the filter {rows[:, 0].max()}")
        if bits > 8:
            continue
        part = (_compiled_unfilter or unfilter)(rows)
        if bits == 1:
            part = np.unpackbits(part, axis=1, count=width)
        elif bits < 8:
            shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
            part = (part[:, :, None] >> shifts & (1 << bits) - 1).reshape(height, -1)[:, :width]
        if picture is None:
            return part
        picture[y::dy, x::dx] = part
    return picture


# Filters of the PNG standard, for pixels of one byte or less

_compiled_unfilter: Callable[[np.ndarray], np.ndarray] | None = None


def use_compiled(wanted: bool = True) -> bool:
    """Let numba undo the filters from here on in this process, if it is there; True if it does. Pixels stay the same.

    Loading it takes half a second, so it pays from some thousand files on.
    """
    global _compiled_unfilter
    _compiled_unfilter = None
    if wanted:
        try:
            from veason.compiled_png import unfilter as compiled
        except ImportError:  # numba is not installed, or not for this NumPy
            return False
        _compiled_unfilter = compiled
    return wanted


def unfilter(rows: np.ndarray) -> np.ndarray:
    """(H, B) bytes from (H, 1 + B) filtered ones, in each row its filter (0 … 4) first."""
    kinds, body = rows[:, 0], rows[:, 1:]
    out = np.zeros(body.shape, np.uint8)
    starts = np.flatnonzero(np.diff(kinds, prepend=255)).tolist()
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        above = out[start - 1] if start else np.zeros(body.shape[1], np.uint8)
        if kinds[start] == 0:
            out[start:stop] = body[start:stop]
        elif kinds[start] == 1:
            _add_left(body[start:stop], out[start:stop])
        elif kinds[start] == 2:
            out[start:stop] = body[start:stop]
            out[start] += above
            np.add.accumulate(out[start:stop], axis=0, dtype=np.uint8, out=out[start:stop])
        else:
            for y in range(start, stop):
                _add_prediction(body[y], out[y - 1] if y else above, out[y], paeth=kinds[start] == 4)
    return out


def _add_left(body: np.ndarray, out: np.ndarray) -> None:
    """Filter 1 of some rows: running sums. `out` is zero; only where something changes is there anything to add."""
    columns = np.flatnonzero(np.bitwise_or.reduce(body, axis=0))
    if not columns.size:
        return
    left, right = columns[0], columns[-1] + 1
    changed = np.flatnonzero(np.bitwise_or.reduce(body[:, left:right], axis=1))
    rows = slice(changed[0], changed[-1] + 1)
    sums = cv2.transpose(body[rows, left:right]).reshape(right - left, -1)  # adding rows is ten times as fast
    np.add.accumulate(sums, axis=0, dtype=np.uint8, out=sums)
    out[rows, left:right] = cv2.transpose(sums).reshape(-1, right - left)
    out[rows, right:] = out[rows, right - 1 : right]


def _add_prediction(row: np.ndarray, above: np.ndarray, out: np.ndarray, *, paeth: bool) -> None:
    """Filter 4 (paeth) or 3 (average) of one row.

    Where a byte adds nothing and the row above stays as it is, a value that repeats once repeats until either ends:
    only the other places are computed one by one.
    """
    corner = np.concatenate([[np.uint8(0)], above[:-1]])
    places = np.flatnonzero((row != 0) | (above != corner)).tolist()
    stops = [*places[1:], row.size][: len(places)]
    added, up, corners, left = row.tolist(), above.tolist(), corner.tolist(), 0
    for place, stop in zip(places, stops, strict=True):
        for x in range(place, stop):
            guess = _nearest(left, up[x], corners[x]) if paeth else (left + up[x]) >> 1
            value = (guess + added[x]) & 255
            if x > place and value == left:
                out[x:stop] = value
                break
            out[x] = left = value


def _nearest(left: int, above: int, corner: int) -> int:
    """The one of three neighbours that is nearest to left + above - corner; the first among equals."""
    by_left, by_above, by_corner = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
    if by_left <= by_above and by_left <= by_corner:
        return left
    return above if by_above <= by_corner else corner
