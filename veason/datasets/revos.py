"""Reads ReVOS: expressions that refer (type 0), need reasoning (1), or have no target in the video (2).

Layout below the root: ``JPEGImages/<video>/<frame>.jpg``, ``meta_expressions_{train,valid}_.json`` (the trailing
underscore is the data set's own), ``mask_dict.json`` (both splits), ``mask_dict_foreground.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from veason.datasets import base, fields
from veason.datasets.json_index import JsonIndex
from veason.datasets.mask_dict import MaskDict
from veason.datasets.sample_list import SampleList
from veason.errors import DataError
from veason.types import Rle, VideoSample


class ReVOS(SampleList):
    """One split of ReVOS. Opening reads the expressions; masks are read per annotation, when asked for."""

    name = "revos"
    default_split = "valid"

    def __init__(
        self,
        root: str | Path,
        *,
        split: str,
        image_root: str | Path | None = None,
        meta: str | Path | None = None,
        masks: str | Path | None = None,
        min_frames: int = 1,
        scoring: bool = False,
    ) -> None:
        """image_root, meta, masks: where frames, expressions and masks are, if not at their places below `root`.

        min_frames, scoring: see `SampleList`.
        """
        self.root = Path(root)
        self.image_root = Path(image_root) if image_root else self.root / "JPEGImages"
        files = {
            "meta": Path(meta) if meta else self.root / f"meta_expressions_{split}_.json",
            "masks": Path(masks) if masks else self.root / "mask_dict.json",
            "foreground": self.root / "mask_dict_foreground.json",
        }
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; --data-root is the folder that holds mask_dict.json")
        samples = self._read_samples(files["meta"])
        super().__init__(samples, split=split, files=files, min_frames=min_frames, scoring=scoring)
        self._masks = MaskDict(files["masks"])

    @cached_property
    def _foreground(self) -> JsonIndex | None:
        return JsonIndex(self.files["foreground"]) if self.files["foreground"].is_file() else None

    def track(self, sample: VideoSample, anno_id: int | str) -> tuple[Rle | None, ...]:
        return self._masks.track(anno_id, sample, self.tolerance)

    def foreground(self, video: str) -> tuple[Rle | None, ...]:
        """Per frame the union of all annotated objects of a video; from the stored file, else from the masks."""
        if self._foreground is None or video not in self._foreground:
            return super().foreground(video)
        path = self.files["foreground"]
        entry = base.check_object(self._foreground[video], f"{path}: {video}")
        sample, where = self.by_video[video][0], f"{path}: masks_rle of {video}"
        return fields.track(entry.get("masks_rle"), sample, where, self.tolerance)

    def _read_samples(self, meta: Path) -> Iterator[VideoSample]:
        for video, entry, where in fields.videos(meta, slashes=True):
            frames, size = fields.frames(entry, where, self.tolerance), fields.size(entry, where)
            for exp_id, expression, here in fields.expressions(entry, where):
                type_id = expression.get("type_id")
                if type(type_id) is not int or type_id not in (0, 1, 2):
                    raise DataError(f"{here}: type_id must be 0, 1 or 2, found {str(type_id)[:80]!r}")
                obj_ids, anno_ids = fields.ids(expression, here)
                yield VideoSample(
                    dataset="revos",
                    video=video,
                    exp_id=exp_id,
                    expression=fields.text(expression, here, tolerance=self.tolerance),
                    frames=frames,
                    frame_dir=self.image_root / video,
                    size=size,
                    type_id=type_id,
                    obj_ids=obj_ids,
                    anno_ids=anno_ids,
                )
