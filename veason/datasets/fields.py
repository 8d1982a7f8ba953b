"""Fields of annotation entries, parsed at the edge: each function gives a checked value or a DataError.

Every error opens with `where`, the file and the entry that a person has to look at. With a `base.Tolerance`, which a
reader has for scoring, what the published scripts do not look at is noted there and let through.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from veason import masks
from veason.datasets import base
from veason.errors import DataError
from veason.types import Rle, Size, VideoSample

LONGEST_SIDE = 1 << 15
"""Pixels; beyond it a height or width is a mistake."""


def videos(meta: Path, *, slashes: bool = False) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(key, entry, where) of each video of an expression file ``{"videos": {key: {...}}}``; slashes: keys have them."""
    document = base.check_object(base.load_json(meta), str(meta))
    for video, entry in base.check_object(document.get("videos"), f"{meta}: videos").items():
        where = f"{meta}: video {video!r}"
        yield base.check_name(video, where, slashes=slashes), base.check_object(entry, where), where


def expressions(entry: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(id, entry, where) of each expression of a video whose expressions are an object by id."""
    for exp_id, expression in base.check_object(entry.get("expressions"), f"{where}: expressions").items():
        base.check_name(exp_id, f"{where}: expression id")
        here = f"{where}: expression {exp_id!r}"
        yield exp_id, base.check_object(expression, here), here


def frames(entry: dict[str, Any], where: str, tolerance: base.Tolerance | None = None) -> tuple[str, ...]:
    """Frame names of a video as stored: at least one, strictly ascending unless it is tolerated."""
    names = entry.get("frames")
    if not isinstance(names, list) or not names:
        raise DataError(f"{where}: frames must be a non-empty list")
    names = tuple(base.check_name(frame, f"{where}: frame {i}") for i, frame in enumerate(names))
    for before, after in itertools.pairwise(names):
        if not before < after:  # readers sort, evaluators do not: one order only if stored sorted
            if tolerance is not None:
                tolerance.note("frames are not sorted or not unique; they are scored as stored", where)
                break
            raise DataError(f"{where}: frames are not sorted or not unique at {before!r}, {after!r}")
    return names


def size(entry: dict[str, Any], where: str) -> Size:
    """(height, width) in pixels."""
    sides = (entry.get("height"), entry.get("width"))
    if not all(type(side) is int and 0 < side <= LONGEST_SIDE for side in sides):
        raise DataError(f"{where}: height and width must be positive ints, found {str(sides)[:80]}")
    return sides  # type: ignore[return-value]


def text(entry: dict[str, Any], where: str, name: str = "exp", tolerance: base.Tolerance | None = None) -> str:
    """An expression's words, under the key `name`; "" where none are tolerated."""
    words = entry.get(name)
    if tolerance is not None and (words is None or (isinstance(words, str) and not words.strip())):
        tolerance.note(f"{name} has no text, which scoring does not need", where)
        return ""
    if not isinstance(words, str) or not words.strip():
        raise DataError(f"{where}: {name} must be a non-empty text, found {str(words)[:80]!r}")
    return words


def ids(entry: dict[str, Any], where: str) -> dict[str, tuple[int | str, ...]]:
    """The parallel lists obj_id and anno_id as the fields `obj_ids` and `anno_ids` of a `VideoSample`."""
    obj_ids, anno_ids = entry.get("obj_id"), entry.get("anno_id")
    for name, values in (("obj_id", obj_ids), ("anno_id", anno_ids)):
        if not isinstance(values, list) or not all(type(i) in (int, str) for i in values):
            raise DataError(f"{where}: {name} must be a list of ids, found {str(values)[:80]}")
    if len(obj_ids) != len(anno_ids):
        raise DataError(f"{where}: {len(obj_ids)} obj_id but {len(anno_ids)} anno_id; the two lists are parallel")
    return {"obj_ids": tuple(obj_ids), "anno_ids": tuple(anno_ids)}


def track(
    rles: object, sample: VideoSample, where: str, tolerance: base.Tolerance | None = None
) -> tuple[Rle | None, ...]:
    """The masks of one annotation: a list with an RLE or null for each frame of the sample's video."""
    if not isinstance(rles, list):
        raise DataError(f"{where}: expected a list of masks, found {type(rles).__name__}")
    if tolerance is not None and len(rles) > len(sample):
        tolerance.note("more masks than frames; those beyond the last frame are left out", where)
        rles = rles[: len(sample)]
    if len(rles) != len(sample):
        raise DataError(f"{where}: {len(rles)} masks for {len(sample)} frames; position in the list is the frame id")
    try:
        return masks.check_track(rles, sample.size, where)
    except ValueError as error:
        raise DataError(str(error)) from error
