"""Compiles the hot loop of the metrics with numba, where that is installed; `eval.metrics` has the same in NumPy.

Compiled once per machine: the result is cached beside this file or in numba's own cache folder.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True, boundscheck=False)
def _right(bits: np.ndarray, step: int, moved: np.ndarray) -> None:
    """Writes into `moved` every pixel of `bits` moved `step` (1 … 63) to the right."""
    up, down = np.uint64(step), np.uint64(64 - step)
    moved[0] = bits[0] << up
    for i in range(1, bits.size):
        moved[i] = bits[i] << up | bits[i - 1] >> down


@njit(cache=True, boundscheck=False)
def _left(bits: np.ndarray, step: int, moved: np.ndarray) -> None:
    """Writes into `moved` every pixel of `bits` moved `step` (1 … 63) to the left."""
    down, up = np.uint64(step), np.uint64(64 - step)
    last = bits.size - 1
    for i in range(last):
        moved[i] = bits[i] >> down | bits[i + 1] << up
    moved[last] = bits[last] >> down


@njit("uint64[:, ::1](uint64[:, ::1], int64, int64)", cache=True, boundscheck=False)
def dilate(boundaries: np.ndarray, words: int, radius: int) -> np.ndarray:
    """Marks every pixel within `radius` of a boundary pixel; (planes, H * words) uint64 in and out.

    As `eval.metrics._Window` lays masks out, and step by step as its own dilation: spans that grow from the disk's rim
    inwards, kept moved right by their half-width so far. `spare` takes the moved bits and is exchanged with them.
    """
    planes, total = boundaries.shape
    disks = np.zeros((planes, total), dtype=np.uint64)
    for plane in range(planes):
        span, disk, spare = boundaries[plane].copy(), np.zeros(total, np.uint64), np.zeros(total, np.uint64)
        length, reach = 1, 0
        for height in range(radius, -1, -1):
            half_width = int(math.sqrt(radius * radius - height * height))
            while length < 2 * half_width + 1:
                step = min(length, 2 * half_width + 1 - length, 63)
                _right(span, step, spare)
                for i in range(total):
                    span[i] |= spare[i]
                length += step
            while reach < half_width:
                step = min(half_width - reach, 63)
                _right(disk, step, spare)
                disk, spare = spare, disk
                reach += step
            rows = height * words
            for i in range(rows, total):
                disk[i] |= span[i - rows]
            for i in range(total - rows):
                disk[i] |= span[i + rows]
        while reach > 0:
            step = min(reach, 63)
            _left(disk, step, spare)
            disk, spare = spare, disk
            reach -= step
        disks[plane] = disk
    return disks
