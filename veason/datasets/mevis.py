"""Reads MeViS: expressions about motion. ``train`` and ``valid_u`` come with masks; ``valid`` and ``test`` do not.

Layout below the root: ``<split>/JPEGImages/<video>/<frame>.jpg``, ``<split>/meta_expressions.json`` and, where there
are masks, ``<split>/mask_dict.json``. Expressions have no types, and may name several objects: the target is their
union. One whose ``anno_id`` is empty has no target in the video.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from veason.datasets import fields
from veason.datasets.mask_dict import MaskDict
from veason.datasets.pictures import picture_size
from veason.datasets.sample_list import SampleList
from veason.errors import DataError
from veason.types import Rle, VideoSample

WITH_MASKS = ("train", "valid_u")
SPLITS = (*WITH_MASKS, "valid", "test")


class MeViS(SampleList):
    """One split of MeViS. Opening reads the expressions, and a picture's header for each video: no size is in them."""

    name = "mevis"
    default_split = "valid_u"

    def __init__(
        self,
        root: str | Path,
        *,
        split: str,
        image_root: str | Path | None = None,
        meta: str | Path | None = None,
        min_frames: int = 1,
        scoring: bool = False,
    ) -> None:
        """image_root, meta: where videos and expressions are, if not at their places below ``root/<split>``.

        min_frames: leave out shorter videos; 2 and 4 are usual in training, nothing is left out by default.
        scoring: see `open_dataset`.
        """
        if split not in SPLITS:
            raise DataError(f"MeViS has no split {split!r}; it has {', '.join(SPLITS)}")
        self.root, folder = Path(root), Path(root) / split
        self.image_root = Path(image_root) if image_root else folder / "JPEGImages"
        files = {"meta": Path(meta) if meta else folder / "meta_expressions.json"}
        if split in WITH_MASKS:
            files["masks"] = folder / "mask_dict.json"
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; --data-root is the folder that holds {', '.join(SPLITS)}")
        self._masks = MaskDict(files["masks"]) if split in WITH_MASKS else None
        super().__init__(self._read(files["meta"]), split=split, files=files, min_frames=min_frames, scoring=scoring)

    def track(self, sample: VideoSample, anno_id: int | str) -> tuple[Rle | None, ...]:
        return self._ground_truth().track(anno_id, sample, self.tolerance)

    def object_rles(self, sample: VideoSample) -> tuple[tuple[Rle | None, ...], ...]:
        self._ground_truth()  # without masks there are no annotation ids either
        return super().object_rles(sample)

    def foreground(self, video: str) -> tuple[Rle | None, ...]:
        self._ground_truth()
        return super().foreground(video)

    def _ground_truth(self) -> MaskDict:
        if self._masks is None:
            raise DataError(
                f"MeViS {self.split} has no masks: its server scores it (`python -m eval.submit` packs the "
                f"predictions); offline, use {' or '.join(WITH_MASKS)}"
            )
        return self._masks

    def _read(self, meta: Path) -> Iterator[VideoSample]:
        for video, entry, where in fields.videos(meta, slashes=True):
            texts: dict[str, str] = {}
            targets: dict[str, tuple[tuple[int | str, ...], tuple[int | str, ...]]] = {}  # obj_ids, anno_ids
            for exp_id, expression, here in fields.expressions(entry, where):
                texts[exp_id] = fields.text(expression, here, tolerance=self.tolerance)
                targets[exp_id] = ((), ()) if self._masks is None else fields.ids(expression, here)
                if self.split == "train" and not targets[exp_id][1]:
                    raise DataError(
                        f"{here}: anno_id is empty: nothing can be learned from it; leave the expression out"
                    )
            if not texts:
                continue
            frames, folder = fields.frames(entry, where, self.tolerance), self.image_root / video
            if "height" in entry:
                size = fields.size(entry, where)
            elif self._masks is None or (folder / f"{frames[0]}.jpg").is_file():
                size = picture_size(folder / f"{frames[0]}.jpg")
            else:  # scoring needs no pictures
                masks, anno_ids = self._masks, (anno_id for _, anno_ids in targets.values() for anno_id in anno_ids)
                of_mask = next((found for anno_id in anno_ids if (found := masks.size(anno_id))), None)
                if of_mask is None:
                    raise DataError(
                        f"{folder / frames[0]}.jpg: no such file, and no mask tells the video's size; is the data root "
                        "right?"
                    )
                size = of_mask
            for exp_id, text in texts.items():
                yield VideoSample(
                    dataset=self.name,
                    video=video,
                    exp_id=exp_id,
                    expression=text,
                    frames=frames,
                    frame_dir=folder,
                    size=size,
                    obj_ids=targets[exp_id][0],
                    anno_ids=targets[exp_id][1],
                )
