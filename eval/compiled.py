"""The one hot loop of the metrics, compiled by numba where it is installed; `eval.metrics` has the same in NumPy.

Compiled once per machine: the result is cached beside this file or in numba's own cache folder.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True, boundscheck=False)
def _move_right(bits: np.ndarray, step: int, keep: bool) -> None:
    """Move every pixel `step` (1 … 63) to the right in place; with `keep`, what was there stays as well."""
    up, down = np.uint64(step), np.uint64(64 - step)
    for i in range(bits.size - 1, -1, -1):
        moved = bits[i] << up
        if i > 0:
            moved |= bits[i - 1] >> down
        bits[i] = bits[i] | moved if keep else moved


@njit(cache=True, boundscheck=False)
def _move_left(bits: np.ndarray, count: int) -> None:
    """Move every pixel `count` to the left in place."""
    while count > 0:
        step = min(count, 63)
        down, up = np.uint64(step), np.uint64(64 - step)
        for i in range(bits.size):
            moved = bits[i] >> down
            if i + 1 < bits.size:
                moved |= bits[i + 1] << up
            bits[i] = moved
        count -= step


@njit("uint64[:, ::1](uint64[:, ::1], int64, int64)", cache=True, boundscheck=False)
def dilate(boundaries: np.ndarray, words: int, radius: int) -> np.ndarray:
    """Every pixel within `radius` of a boundary pixel; (planes, H * words) uint64 in and out.

    As `eval.metrics._Window` lays masks out, and step by step as its own dilation: spans that grow from the disk's rim
    inwards, kept moved right by their half-width so far.
    """
    planes, total = boundaries.shape
    disks = np.zeros((planes, total), dtype=np.uint64)
    for plane in range(planes):
        span, disk = boundaries[plane].copy(), disks[plane]
        length, reach = 1, 0
        for height in range(radius, -1, -1):
            half_width = int(math.sqrt(radius * radius - height * height))
            while length < 2 * half_width + 1:
                step = min(length, 2 * half_width + 1 - length, 63)
                _move_right(span, step, True)
                length += step
            while reach < half_width:
                step = min(half_width - reach, 63)
                _move_right(disk, step, False)
                reach += step
            rows = height * words
            for i in range(total - rows):
                disk[i + rows] |= span[i]
                disk[i] |= span[i + rows]
        _move_left(disk, radius)
    return disks
