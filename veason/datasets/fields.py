"""Parses the fields of annotation entries: each function gives a checked value or a DataError.

Every error opens with `where`, the file and the entry that are at fault. With a `base.Tolerance`, which a
reader has for scoring, faults that the published scripts ignore are noted there and let through.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from veason import masks
from veason.datasets import base
from veason.errors import DataError
from veason.types import Rle, Size, VideoSample

LONGEST_SIDE = 1 << 15
"""Pixels; a height or width beyond it is a mistake."""


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
    checked = tuple(base.check_name(frame, f"{where}: frame {i}") for i, frame in enumerate(names))
    for before, after in itertools.pairwise(checked):
        if not before < after:  # readers sort, evaluators do not: one order only if stored sorted
            if tolerance is not None:
                tolerance.note("frames are not sorted or not unique; they are scored as stored", where)
                break
            raise DataError(f"{where}: frames are not sorted or not unique at {before!r}, {after!r}")
    return checked


def size(entry: dict[str, Any], where: str) -> Size:
    """(height, width) in pixels."""
    height, width = entry.get("height"), entry.get("width")
    if not (_is_side(height) and _is_side(width)):
        raise DataError(f"{where}: height and width must be positive ints, found {str((height, width))[:80]}")
    return (height, width)


def _is_side(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= LONGEST_SIDE


def text(entry: dict[str, Any], where: str, name: str = "exp", tolerance: base.Tolerance | None = None) -> str:
    """An expression's words, under the key `name`; "" where none are tolerated."""
    words = entry.get(name)
    if tolerance is not None and (words is None or (isinstance(words, str) and not words.strip())):
        tolerance.note(f"{name} has no text, which scoring does not need", where)
        return ""
    if not isinstance(words, str) or not words.strip():
        raise DataError(f"{where}: {name} must be a non-empty text, found {str(words)[:80]!r}")
    return words


def ids(entry: dict[str, Any], where: str) -> tuple[tuple[int | str, ...], tuple[int | str, ...]]:
    """The parallel lists obj_id and anno_id: the fields `obj_ids` and `anno_ids` of a `VideoSample`."""
    found: list[tuple[int | str, ...]] = []
    for name in ("obj_id", "anno_id"):
        values = entry.get(name)
        if not isinstance(values, list) or not all(type(i) in (int, str) for i in values):
            raise DataError(f"{where}: {name} must be a list of ids, found {str(values)[:80]}")
        found.append(tuple(values))
    obj_ids, anno_ids = found
    if len(obj_ids) != len(anno_ids):
        raise DataError(f"{where}: {len(obj_ids)} obj_id but {len(anno_ids)} anno_id; the two lists are parallel")
    return obj_ids, anno_ids


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
