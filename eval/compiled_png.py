"""The two loops of reading a PNG, compiled by numba: inflate (RFC 1951) and the row filters of the PNG standard.

A mask is long runs of one value. A general inflate copies them piece by piece and takes most of an evaluation's time;
this one fills a run at once, and its slow bit-by-bit reading of codes does not matter for the two kilobytes of a mask.
Whatever is wrong with a stream gives False: nothing is read or written out of bounds, whoever made it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

PADDING = 8
"""Zero bytes that a stream needs behind it: a code may be read past the end before that is noticed."""

_LONGEST = 15
_LENGTH_BASE = np.array(
    [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258]
)
_LENGTH_EXTRA = np.array([0] * 8 + [k for k in range(1, 6) for _ in range(4)] + [0])
_DISTANCE_EXTRA = np.array([0, 0, *(k for k in range(14) for _ in range(2))])
_DISTANCE_BASE = np.concatenate([[1], 1 + np.cumsum(1 << _DISTANCE_EXTRA)[:-1]])
_ORDER = np.array([16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15])
"""In which order the lengths of the code for code lengths stand in a stream."""


@njit(cache=True, boundscheck=False)
def _bits(stream: np.ndarray, at: int, count: int) -> int:
    """`count` (0 … 16) bits of the stream from bit `at` on, the first the lowest."""
    byte = at >> 3
    window = np.int64(stream[byte]) | np.int64(stream[byte + 1]) << 8 | np.int64(stream[byte + 2]) << 16
    return (window >> (at & 7)) & ((1 << count) - 1)


@njit(cache=True, boundscheck=False)
def _code(lengths: np.ndarray, counts: np.ndarray, symbols: np.ndarray) -> bool:
    """A canonical code from the lengths of its symbols: how many there are of each length, and they in order."""
    counts[:] = 0
    for length in lengths:
        counts[length] += 1
    counts[0] = 0
    free = 1
    start = np.zeros(_LONGEST + 2, np.int64)
    for length in range(1, _LONGEST + 1):
        free = 2 * free - counts[length]
        if free < 0:
            return False  # more codes than there can be
        start[length + 1] = start[length] + counts[length]
    for symbol in range(lengths.size):
        if lengths[symbol]:
            symbols[start[lengths[symbol]]] = symbol
            start[lengths[symbol]] += 1
    return True


@njit(cache=True, boundscheck=False)
def _symbol(stream: np.ndarray, at: int, counts: np.ndarray, symbols: np.ndarray) -> tuple[int, int]:
    """(the symbol whose code is at bit `at`, the bit behind it); -1 for no symbol."""
    code, first, index = 0, 0, 0
    window = _bits(stream, at, _LONGEST)
    for length in range(1, _LONGEST + 1):
        code |= (window >> (length - 1)) & 1
        count = counts[length]
        if code - first < count:
            return symbols[index + code - first], at + length
        index += count
        first = (first + count) << 1
        code <<= 1
    return -1, at


@njit(cache=True, boundscheck=False)
def _fixed(lengths: np.ndarray) -> int:
    """The code lengths of a block that brings none of its own; the number of literals and lengths."""
    for symbol in range(288):
        lengths[symbol] = 8 if symbol < 144 else 9 if symbol < 256 else 7 if symbol < 280 else 8
    lengths[288:318] = 5
    return 288


@njit(cache=True, boundscheck=False)
def _lengths(stream: np.ndarray, at: int, lengths: np.ndarray) -> tuple[int, int, int]:
    """The code lengths that a block brings: (bit behind them, how many literals and lengths, how many in all).

    The bit is -1 where they make no sense.
    """
    literals, total = 257 + _bits(stream, at, 5), 258 + _bits(stream, at, 5) + _bits(stream, at + 5, 5)
    number, at = 4 + _bits(stream, at + 10, 4), at + 14
    counts, symbols, own = np.zeros(16, np.int64), np.zeros(19, np.int64), np.zeros(19, np.int64)
    if literals > 286 or total - literals > 30 or (at + 3 * number) >> 3 > stream.size - PADDING:
        return -1, 0, 0
    for i in range(number):
        own[_ORDER[i]] = _bits(stream, at + 3 * i, 3)
    at += 3 * number
    if not _code(own, counts, symbols):
        return -1, 0, 0
    done = 0
    while done < total:
        symbol, at = _symbol(stream, at, counts, symbols)
        if symbol < 0 or at >> 3 > stream.size - PADDING:
            return -1, 0, 0
        if symbol < 16:
            lengths[done] = symbol
            done += 1
            continue
        extra = 2 if symbol == 16 else 3 if symbol == 17 else 7
        repeat = (11 if symbol == 18 else 3) + _bits(stream, at, extra)
        at += extra
        if done + repeat > total or (symbol == 16 and done == 0):
            return -1, 0, 0
        lengths[done : done + repeat] = lengths[done - 1] if symbol == 16 else 0
        done += repeat
    return at, literals, total


@njit(cache=True, boundscheck=False)
def _copy(out: np.ndarray, done: int, length: int, distance: int) -> None:
    """Repeat what stands `distance` back; it may reach into itself."""
    if distance == 1:
        out[done : done + length] = out[done - 1]
    elif distance >= length:
        out[done : done + length] = out[done - distance : done - distance + length]
    else:
        for i in range(done, done + length):
            out[i] = out[i - distance]


@njit(cache=True, boundscheck=False)
def _coded_block(
    stream: np.ndarray, at: int, out: np.ndarray, done: int, code: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
) -> tuple[int, int]:
    """(bit behind a block, bytes of `out` filled so far); the bit is -1 where the block makes no sense."""
    counts, symbols, far_counts, far_symbols = code
    while at >> 3 <= stream.size - PADDING:
        symbol, at = _symbol(stream, at, counts, symbols)
        if symbol == 256:
            return at, done
        if 0 <= symbol < 256:
            if done == out.size:
                return -1, done
            out[done] = symbol
            done += 1
            continue
        if not 256 < symbol < 286:
            return -1, done
        length = _LENGTH_BASE[symbol - 257] + _bits(stream, at, _LENGTH_EXTRA[symbol - 257])
        at += _LENGTH_EXTRA[symbol - 257]
        if at >> 3 > stream.size - PADDING:
            return -1, done
        far, at = _symbol(stream, at, far_counts, far_symbols)
        if not 0 <= far < 30 or at >> 3 > stream.size - PADDING:
            return -1, done
        distance = _DISTANCE_BASE[far] + _bits(stream, at, _DISTANCE_EXTRA[far])
        at += _DISTANCE_EXTRA[far]
        if distance > done or length > out.size - done:
            return -1, done
        _copy(out, done, length, distance)
        done += length
    return -1, done


@njit(cache=True, boundscheck=False)
def _stored_block(stream: np.ndarray, at: int, out: np.ndarray, done: int) -> tuple[int, int]:
    """As `_coded_block`, of a block that is not compressed."""
    byte = (at + 7) >> 3
    if byte + 4 > stream.size - PADDING:
        return -1, done
    length = np.int64(stream[byte]) | np.int64(stream[byte + 1]) << 8
    inverted = np.int64(stream[byte + 2]) | np.int64(stream[byte + 3]) << 8
    if length ^ inverted != 0xFFFF or byte + 4 + length > stream.size - PADDING or length > out.size - done:
        return -1, done
    out[done : done + length] = stream[byte + 4 : byte + 4 + length]
    return (byte + 4 + length) << 3, done + length


@njit("boolean(uint8[::1], uint8[::1])", cache=True, boundscheck=False)
def inflate(stream: np.ndarray, out: np.ndarray) -> bool:
    """Uncompress a raw deflate stream (with `PADDING` behind it) into `out`; True if it fills `out` exactly."""
    at, done, last = 0, 0, 0
    lengths = np.zeros(320, np.int64)
    counts, symbols = np.zeros(16, np.int64), np.zeros(288, np.int64)
    far_counts, far_symbols = np.zeros(16, np.int64), np.zeros(32, np.int64)
    while not last:
        if at >> 3 > stream.size - PADDING:
            return False
        last, kind = _bits(stream, at, 1), _bits(stream, at + 1, 2)
        at += 3
        if kind == 3:
            return False
        if kind == 0:
            at, done = _stored_block(stream, at, out, done)
        else:
            literals, total = 288, 318
            if kind == 1:
                _fixed(lengths)
            else:
                at, literals, total = _lengths(stream, at, lengths)
                if at < 0:
                    return False
            sound = _code(lengths[:literals], counts, symbols)
            if not (sound and _code(lengths[literals:total], far_counts, far_symbols)):
                return False
            at, done = _coded_block(stream, at, out, done, (counts, symbols, far_counts, far_symbols))
        if at < 0:
            return False
    return done == out.size and (at + 7) >> 3 <= stream.size - PADDING


@njit(cache=True, boundscheck=False)
def _nearest(left: int, above: int, corner: int) -> int:
    """Of three neighbours the one that is nearest to left + above - corner; in this order among equals."""
    by_left, by_above, by_corner = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
    if by_left <= by_above and by_left <= by_corner:
        return left
    return above if by_above <= by_corner else corner


@njit("boolean(uint8[:, ::1], uint8[:, ::1])", cache=True, boundscheck=False)
def unfilter(rows: np.ndarray, out: np.ndarray) -> bool:
    """Undo the filters of rows of bytes, one byte a pixel or less. rows: (H, 1 + W), the filter first; out: (H, W)."""
    height, width = out.shape
    nothing = np.zeros(width, np.uint8)
    for y in range(height):
        kind, row, above = rows[y, 0], out[y], out[y - 1] if y else nothing
        if kind > 4:
            return False
        left, corner = np.uint8(0), np.uint8(0)
        if kind == 0:
            row[:] = rows[y, 1:]
        elif kind == 1:
            for x in range(width):
                left = np.uint8(left + rows[y, x + 1])
                row[x] = left
        elif kind == 2:
            for x in range(width):
                row[x] = np.uint8(above[x] + rows[y, x + 1])
        elif kind == 3:
            for x in range(width):
                left = np.uint8(((np.int64(left) + np.int64(above[x])) >> 1) + rows[y, x + 1])
                row[x] = left
        else:
            for x in range(width):
                guess = _nearest(np.int64(left), np.int64(above[x]), np.int64(corner))
                left, corner = np.uint8(guess + rows[y, x + 1]), above[x]
                row[x] = left
    return True
