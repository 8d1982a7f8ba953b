"""Ref-YouTube-VOS and Ref-DAVIS17: one object an expression, ground truth as palette PNGs of object numbers.

Both are laid out alike below the root: ``meta_expressions/<split>/meta_expressions.json`` and
``<split>/{JPEGImages,Annotations}/<video>/<frame>.{jpg,png}``. An expression is ``{"exp": str, "obj_id": "1"}``; the
target is where the annotation has that number. No file says how large a video is: the first picture does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from veason.datasets import fields
from veason.datasets.index_masks import VOID, IndexMasks
from veason.datasets.pictures import picture_size, read_indices
from veason.datasets.sample_list import SampleList
from veason.errors import DataError
from veason.types import Rle, VideoSample

ANNOTATORS = 4
"""Of Ref-DAVIS17: the first and second annotator, each asked for the first frame alone and for the whole video."""


class _RefVOS(SampleList):
    """What both readers do; `left_out`, the videos of the expression file that are not of the split."""

    default_split = "valid"

    def __init__(
        self,
        root: str | Path,
        *,
        split: str,
        image_root: str | Path | None = None,
        meta: str | Path | None = None,
        min_frames: int = 1,
    ) -> None:
        """image_root, meta: where frames and expressions are, if not at their places. min_frames: see `SampleList`."""
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; --data-root is the folder that holds meta_expressions")
        self.image_root = Path(image_root) if image_root else self.root / split / "JPEGImages"
        self._annotations = IndexMasks(self.root / split / "Annotations")
        files = {"meta": Path(meta) if meta else expression_file(self.root, split)}
        self.left_out = self._left_out(files, split, chosen=meta is not None)
        samples = self._read_samples(files["meta"])
        super().__init__(samples, split=split, files=files, min_frames=min_frames)

    def _left_out(self, files: dict[str, Path], split: str, *, chosen: bool) -> frozenset[str]:
        return frozenset()

    def _read_samples(self, meta: Path) -> Iterator[VideoSample]:
        for video, entry, where in fields.videos(meta):
            if video in self.left_out:
                continue
            frames, folder = fields.frames(entry, where), self.image_root / video
            annotation = self._annotations.folder / video / f"{frames[0]}.png"  # scoring needs no other picture
            size = picture_size(annotation if annotation.is_file() else folder / f"{frames[0]}.jpg")
            for exp_id, expression, here in fields.expressions(entry, where):
                numbers = self._numbers(exp_id, expression, here)
                yield VideoSample(
                    dataset=self.name,
                    video=video,
                    exp_id=exp_id,
                    expression=fields.text(expression, here),
                    frames=frames,
                    frame_dir=folder,
                    size=size,
                    obj_ids=numbers,
                    anno_ids=numbers,
                )

    def _numbers(self, exp_id: str, expression: dict[str, Any], where: str) -> tuple[int, ...]:
        return (_object_number(expression, where),)

    def track(self, sample: VideoSample, anno_id: int | str) -> tuple[Rle | None, ...]:
        return self._annotations.track(sample, anno_id)


class RefYouTubeVOS(_RefVOS):
    """One split of Ref-YouTube-VOS. Only ``train`` has ground truth; the others are scored by the benchmark's server.

    The published file of ``valid`` holds the videos of ``test`` as well; they are taken out, which leaves 202.
    """

    name = "refytvos"

    def _left_out(self, files: dict[str, Path], split: str, *, chosen: bool) -> frozenset[str]:
        """The videos of ``test`` where `split` is ``valid``; `chosen` expressions are taken as they are."""
        if split != "valid" or chosen:
            return frozenset()
        files["test"] = expression_file(self.root, "test")
        if not files["test"].is_file():
            raise DataError(
                f"{files['test']}: no such file; valid is what {files['meta']} holds beyond it. Fetch it, or name the "
                "expressions with --meta"
            )
        test = frozenset(video for video, _, _ in fields.videos(files["test"]))
        foreign = test - {video for video, _, _ in fields.videos(files["meta"])}
        if foreign:
            raise DataError(
                f"{files['test']}: the video {min(foreign)!r} is not in {files['meta']}, which holds valid and test "
                "together; the two files are not of one release"
            )
        return test

    def _numbers(self, exp_id: str, expression: dict[str, Any], where: str) -> tuple[int, ...]:
        return super()._numbers(exp_id, expression, where) if "obj_id" in expression else ()

    def object_rles(self, sample: VideoSample) -> tuple[tuple[Rle | None, ...], ...]:
        self._check_truth(sample)
        return super().object_rles(sample)

    def foreground(self, video: str) -> tuple[Rle | None, ...]:
        self._check_truth(self.by_video[video][0])
        return super().foreground(video)

    def _check_truth(self, sample: VideoSample) -> None:
        if not sample.anno_ids:
            raise DataError(
                f"{self.files['meta']}: {sample.key} has no obj_id: the ground truth of {self.split} is on the "
                "benchmark's server. Pack what was predicted with `python -m eval.submit --dataset refytvos`"
            )


class RefDAVIS17(_RefVOS):
    """One split of Ref-DAVIS17 in the form that ReferFormer converts it to.

    Expression 4 k + a is what annotator `a` says of the k-th object: 0 and 1 the first annotator from the first frame
    and from the whole video, 2 and 3 the second.
    """

    name = "refdavis"

    def _numbers(self, exp_id: str, expression: dict[str, Any], where: str) -> tuple[int, ...]:
        if not (exp_id.isascii() and exp_id.isdecimal() and len(exp_id) < 6):
            raise DataError(f"{where}: the id is 4 * object + annotator, hence a number")
        return super()._numbers(exp_id, expression, where)

    def annotator(self, sample: VideoSample) -> int:
        """0 … 3: whose words a sample's expression is."""
        return int(sample.exp_id) % ANNOTATORS

    def annotation_path(self, sample: VideoSample, frame_id: int) -> Path:
        return self._annotations.path(sample, frame_id)

    def objects(self, sample: VideoSample) -> tuple[tuple[Rle | None, ...], ...]:
        """Every object of a sample's video, asked for or not: as many as the highest number in the first frame."""
        first = read_indices(self.annotation_path(sample, 0), sample.size)
        last = int(first[first != VOID].max(initial=0))
        if last == 0:
            raise DataError(f"{self.annotation_path(sample, 0)}: no object; DAVIS counts objects in the first frame")
        return tuple(self.track(sample, number) for number in range(1, last + 1))

    def void(self, sample: VideoSample) -> tuple[Rle | None, ...]:
        """Per frame the pixels that do not count in DAVIS's unsupervised evaluation."""
        return self.track(sample, VOID)


def expression_file(root: Path, split: str) -> Path:
    """Where both data sets keep a split's expressions."""
    return root / "meta_expressions" / split / "meta_expressions.json"


def _object_number(expression: dict[str, Any], where: str) -> int:
    number = expression.get("obj_id")
    if not (isinstance(number, str) and number.isascii() and number.isdecimal() and len(number) < 4):
        raise DataError(f"{where}: obj_id must be a number as text, '1' say, found {str(number)[:80]!r}")
    if not 0 < int(number) < VOID:
        raise DataError(f"{where}: obj_id is {number}; objects are numbered from 1 to {VOID - 1}")
    return int(number)
