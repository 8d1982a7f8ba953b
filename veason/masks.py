"""Masks and their run-length encodings: RLE <-> mask, area and box without decoding, union, IoU.

Every RLE that comes from a file goes through `check` once; the rest trusts it (pycocotools itself neither checks the
number of pixels nor the end of the string).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco

from veason.types import Box, Rle, Size


def encode(mask: np.ndarray) -> Rle:
    """RLE of an (H, W) mask, nonzero = inside."""
    rle = coco.encode(np.asfortranarray(mask.astype(bool, copy=False).view(np.uint8)))
    return Rle(size=[int(side) for side in rle["size"]], counts=rle["counts"].decode("ascii"))


def decode(rle: Rle | None, size: Size) -> np.ndarray:
    """(H, W) bool mask of an RLE; None is an empty mask."""
    if rle is None:
        return np.zeros(size, dtype=bool)
    return coco.decode(rle).view(bool)


def area(rle: Rle | None) -> int:
    """Number of pixels inside, straight from the runs."""
    return 0 if rle is None else int(coco.area(rle))


def box(rle: Rle | None) -> Box | None:
    """Tightest box around the pixels inside, straight from the runs; None if there are none."""
    if area(rle) == 0:
        return None
    x, y, w, h = coco.toBbox(rle)
    return (float(x), float(y), float(x + w - 1), float(y + h - 1))  # inclusive corners


def merge(rles: Sequence[Rle | None]) -> Rle | None:
    """RLE of the union, without decoding; None if every one is None."""
    present = [rle for rle in rles if rle is not None]
    if len(present) < 2:
        return present[0] if present else None
    rle = coco.merge(present)
    return Rle(size=[int(side) for side in rle["size"]], counts=rle["counts"].decode("ascii"))


def union(rles: Sequence[Rle | None], size: Size) -> np.ndarray:
    """(H, W) bool union of some masks of one frame."""
    return decode(merge(rles), size)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two (H, W) bool masks."""
    if a.shape != b.shape:
        raise ValueError(f"masks of two sizes: {a.shape} and {b.shape}")
    joint = np.count_nonzero(a | b)
    if joint == 0:
        return 1.0  # both empty
    return np.count_nonzero(a & b) / joint


def check(rle: object, size: Size, where: str) -> Rle:
    """`rle` if it is a valid compressed RLE of `size`; a ValueError that opens with `where` if not."""
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        raise ValueError(f"{where}: expected an RLE with size and counts, found {str(rle)[:80]!r}")
    if rle["size"] != list(size):
        raise ValueError(f"{where}: the mask is {rle['size']}, the video is {list(size)} (height, width)")
    if not isinstance(rle["counts"], str):
        raise ValueError(f"{where}: counts is {type(rle['counts']).__name__}, expected a compressed string")
    try:
        counts = runs(rle["counts"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    pixels = int(counts.sum())
    if pixels != size[0] * size[1]:
        raise ValueError(f"{where}: the runs cover {pixels} pixels, the video has {size[0] * size[1]}")
    return Rle(size=rle["size"], counts=rle["counts"])


def check_track(rles: Sequence[object], size: Size, where: str) -> tuple[Rle | None, ...]:
    """A mask or None for each frame, each through `check`; the ValueError opens with `where` and the frame."""
    present = [rle for rle in rles if rle is not None]
    if all(_looks_right(rle, size) for rle in present) and _cover([rle["counts"] for rle in present], size):
        return tuple(None if rle is None else Rle(size=rle["size"], counts=rle["counts"]) for rle in rles)
    return tuple(None if rle is None else check(rle, size, f"{where}, frame {t}") for t, rle in enumerate(rles))


_AT_ONCE = 1 << 22
"""Characters in the table of a track's strings, at most: 200 MB while they are read."""


def _looks_right(rle: object, size: Size) -> bool:
    return isinstance(rle, dict) and rle.get("size") == list(size) and isinstance(rle.get("counts"), str)


def _cover(counts: Sequence[str], size: Size) -> bool:
    """Whether every string can be read and covers `size`. False too for what is too much at one time."""
    if max(map(len, counts), default=0) * len(counts) > _AT_ONCE:
        return False
    try:
        return not counts or bool((_read(counts).sum(axis=1) == size[0] * size[1]).all())
    except ValueError:
        return False


def runs(counts: str) -> np.ndarray:
    """Run lengths of a compressed COCO string: (R,) int64, starting with a (possibly empty) run outside.

    Raises ValueError on anything pycocotools could not read safely.
    """
    return _read([counts])[0]


def _read(counts: Sequence[str]) -> np.ndarray:
    """Run lengths of N compressed COCO strings: (N, R) int64, the shorter ones followed by zeros.

    The code is a base-32 variable-length integer, six bits a character from ``0``; from the fourth run on it holds the
    difference to the run before the last.
    """
    text = "".join(counts)
    if not all(counts):
        raise ValueError("the run string is empty")
    codes = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if not text.isascii() or codes.min() < 0 or codes.max() > 63:
        raise ValueError("the run string holds a character outside '0' to 'o'")
    last = (codes & 32) == 0
    stops = np.cumsum([len(one) for one in counts])
    if not last[stops - 1].all():
        raise ValueError("the run string is cut off")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > 6:
        raise ValueError("a run does not fit in 30 bits")
    place = np.arange(codes.size) - np.repeat(starts, digits)
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= np.where(codes[ends] & 16, 1 << (5 * digits), 0)  # sign bit of the last character
    amounts = np.diff(np.searchsorted(ends, stops), prepend=0)  # runs of each string
    filled = np.arange(amounts.max()) < amounts[:, None]
    table = np.zeros(filled.shape, dtype=np.int64)
    table[filled] = values
    table[:, 3::2] = np.cumsum(table[:, 1::2], axis=1)[:, 1:]
    table[:, 2::2] = np.cumsum(table[:, 2::2], axis=1)
    table *= filled
    if table.min() < 0:
        raise ValueError("a run has negative length")
    return table
