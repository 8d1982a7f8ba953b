"""Reads ``mask_dict.json`` of ReVOS and MeViS entry by entry: annotation id -> one RLE or null for each frame."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from veason.datasets import fields
from veason.datasets.base import Tolerance
from veason.datasets.json_index import JsonIndex, check_cache
from veason.errors import DataError
from veason.types import Rle, Size, VideoSample


class MaskDict:
    """Tracks by annotation id. Nothing of the file is read before the first question; picklable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        check_cache(path)

    @cached_property
    def _entries(self) -> JsonIndex:
        return JsonIndex(self.path)

    def track(
        self, anno_id: int | str, sample: VideoSample, tolerance: Tolerance | None = None
    ) -> tuple[Rle | None, ...]:
        """The checked masks of one annotation of a sample's video."""
        where = f"{self.path}: annotation {anno_id} of {sample.key}"
        if str(anno_id) not in self._entries:
            raise DataError(f"{where} is missing; expressions and masks disagree")
        return fields.track(self._entries[str(anno_id)], sample, where, tolerance)

    def size(self, anno_id: int | str) -> Size | None:
        """(height, width) of an annotation's first mask; None if it has none that says so."""
        if str(anno_id) not in self._entries:
            return None
        rles = self._entries[str(anno_id)]
        for rle in rles if isinstance(rles, list) else ():
            if isinstance(rle, dict) and isinstance(rle.get("size"), list) and len(rle["size"]) == 2:
                return fields.size(dict(zip(("height", "width"), rle["size"], strict=True)), f"{self.path}: {anno_id}")
        return None
