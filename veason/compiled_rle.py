"""Reads and overlays run-length encodings by numba; `veason.masks` does the same with NumPy and pycocotools.

Nothing here trusts a string: no run is read beyond its end, none is added up beyond the frame. Compiled once per
machine: the result is cached beside this file or in numba's own cache folder.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, int64, njit, types

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)


@njit(boolean(_BYTES, int64[::1], int64, int64[::1], int64[::1], int64[::1]), cache=True)
def read(
    text: np.ndarray, stops: np.ndarray, pixels: int, ends: np.ndarray, bounds: np.ndarray, areas: np.ndarray
) -> bool:
    """Read N compressed COCO strings that stand one behind the other; False as soon as one is unsound.

    text: (C,) uint8; stops: (N,) where each string ends in it; pixels: what each has to cover. Written to: ends, room
    for C, where the runs of all strings end, in pixels from the first of its mask; bounds, (N + 1,), which of them are
    of which string; areas, (N,), pixels inside. Sound: `veason.masks.runs` reads it without an error, the runs cover
    all pixels, and only a first run is without length.
    """
    place, filled = 0, 0
    bounds[0] = 0
    for n in range(stops.size):
        stop = stops[n]
        if place >= stop:
            return False  # no character
        last, before, end, inside, number = int64(0), int64(0), int64(0), int64(0), 0
        while place < stop:
            run, shift = int64(0), int64(0)
            while True:
                if place >= stop or shift >= 30:
                    return False  # cut off, or more than 30 bits
                code = int64(text[place]) - 48
                if code < 0 or code > 63:
                    return False
                place += 1
                run |= (code & 31) << shift
                shift += 5
                if code & 32 == 0:
                    break
            if code & 16:
                run -= int64(1) << shift
            if number > 2:
                run += before  # the difference to the run before the last
            end += run
            if run < 0 or (run == 0 and number > 0) or end > pixels:
                return False
            if number & 1:
                inside += run
            before, last = last, run
            ends[filled] = end
            filled += 1
            number += 1
        if end != pixels:
            return False
        bounds[n + 1], areas[n] = filled, inside
    return True


@njit(int64(int64[::1], int64[::1]), cache=True)
def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Pixels inside both of two masks, of the ends of their runs, both of one size."""
    i, j, start, shared = 0, 0, int64(0), int64(0)
    while i < a.size and j < b.size:
        end = min(a[i], b[j])
        shared += (end - start) * (i & j & 1)  # runs of odd number are inside
        i, j, start = i + (a[i] == end), j + (b[j] == end), end
    return shared


@njit(int64[:, ::1](int64[::1], int64[::1], int64, int64[::1], int64[::1], int64), cache=True)
def shared(
    ends_a: np.ndarray, bounds_a: np.ndarray, tracks_a: int, ends_b: np.ndarray, bounds_b: np.ndarray, tracks_b: int
) -> np.ndarray:
    """(A, B) pixels that two tracks have in common over all T frames.

    ends, bounds: as `read` leaves them for A and B tracks of T masks each, one track behind the other; an absent mask
    has no run.
    """
    found = np.zeros((tracks_a, tracks_b), np.int64)
    if tracks_a == 0 or tracks_b == 0:
        return found
    frames = (bounds_a.size - 1) // tracks_a
    for i in range(tracks_a):
        for j in range(tracks_b):
            for t in range(frames):
                a, b = i * frames + t, j * frames + t
                found[i, j] += _shared(
                    ends_a[bounds_a[a] : bounds_a[a + 1]],
                    ends_b[bounds_b[b] : bounds_b[b + 1]],
                )
    return found
