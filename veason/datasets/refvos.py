"""Reads Ref-YouTube-VOS and Ref-DAVIS17: one object an expression, ground truth as palette PNGs of object numbers.

Both are laid out alike below the root: ``meta_expressions/<split>/meta_expressions.json`` and
``<split>/{JPEGImages,Annotations}/<video>/<frame>.{jpg,png}``. An expression is ``{"exp": str, "obj_id": "1"}``; the
target is where the annotation has that number. No file says how large a video is: the first picture does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from veason.datasets import base, fields
from veason.datasets.index_masks import VOID, IndexMasks
from veason.datasets.pictures import picture_size, read_indices
from veason.datasets.sample_list import SampleList
from veason.errors import DataError
from veason.files import check_regular, foreign_content
from veason.types import Rle, Size, VideoSample

NAME_LIST = "ryv_val.txt"
"""The names of the 202 scored videos of Ref-YouTube-VOS, one a line, as they are passed around."""

ANNOTATORS = 4
"""Sets of expressions of Ref-DAVIS17: two annotators, each for the first frame alone and for the whole video."""


class _RefVOS(SampleList):
    """The base of both readers. `left_out` are the videos of the expression file that are not of the split."""

    default_split = "valid"

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
        """image_root, meta: where frames and expressions are, if not at their places.

        min_frames, scoring: see `SampleList`.
        """
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; --data-root is the folder that holds meta_expressions")
        self.image_root = Path(image_root) if image_root else self.root / split / "JPEGImages"
        self._annotations = IndexMasks(self.root / split / "Annotations")
        files, self.left_out = self._choose_files(split, Path(meta) if meta else None)
        samples = self._read_samples(files["meta"])
        super().__init__(samples, split=split, files=files, min_frames=min_frames, scoring=scoring)

    def _choose_files(self, split: str, meta: Path | None) -> tuple[dict[str, Path], frozenset[str]]:
        """(files by role, videos to leave out)."""
        return {"meta": meta or expression_file(self.root, split)}, frozenset()

    def _read_samples(self, meta: Path) -> Iterator[VideoSample]:
        pictures = self.image_root.exists() or self._annotations.folder.exists()
        for video, entry, where in fields.videos(meta):
            if video in self.left_out:
                continue
            if "objects" in entry and "expressions" not in entry:
                raise DataError(
                    f"{where}: objects with expressions each: this is the first release, of 2020, which is not "
                    "scored any more; fetch the expressions of 2021 or later, which have expressions by id"
                )
            frames, folder = fields.frames(entry, where, self.tolerance), self.image_root / video
            size = self._size(video, frames) if pictures else None
            for exp_id, expression, here in fields.expressions(entry, where):
                numbers = self._numbers(exp_id, expression, here)
                sample = VideoSample if size else _UnsizedSample
                yield sample(
                    dataset=self.name,
                    video=video,
                    exp_id=exp_id,
                    expression=fields.text(expression, here, tolerance=self.tolerance),
                    frames=frames,
                    frame_dir=folder,
                    size=size or (0, 0),
                    obj_ids=numbers,
                    anno_ids=self._anno_ids(video, exp_id, numbers),
                )

    def _size(self, video: str, frames: tuple[str, ...]) -> Size:
        """The size of a video, from its first annotation, since scoring needs no other picture, or its first frame."""
        annotation = self._annotations.folder / video / f"{frames[0]}.png"
        return picture_size(annotation if annotation.is_file() else self.image_root / video / f"{frames[0]}.jpg")

    def _numbers(self, exp_id: str, expression: dict[str, Any], where: str) -> tuple[int, ...]:
        return (object_number(expression, where),)

    def _anno_ids(self, video: str, exp_id: str, numbers: tuple[int, ...]) -> tuple[int | str, ...]:
        return numbers

    def track(self, sample: VideoSample, anno_id: int | str) -> tuple[Rle | None, ...]:
        return self._annotations.track(sample, int(anno_id))

    def truth_files(self, sample: VideoSample) -> tuple[Path, ...]:
        return tuple(self._annotations.path(sample, t) for t in range(len(sample)))


class _UnsizedSample(VideoSample):
    """A sample of a split of which there are expressions alone: they can be counted, and nothing else."""

    def __getattribute__(self, name: str) -> Any:
        if name == "size":
            raise DataError(
                f"{self.frame_dir}: no such folder, and nothing else tells the video's size; fetch the frames"
            )
        return super().__getattribute__(name)


class RefYouTubeVOS(_RefVOS):
    """One split of Ref-YouTube-VOS. ``train`` has ground truth; so has ``valid`` since its publication in March 2026.

    Until then the published file of ``valid`` held the videos of ``test`` as well; they are taken out, which leaves
    202: those that the file of ``test`` does not have, or those that a list of names has, one a line (`NAME_LIST` below
    the root or beside the expressions, or given as `meta`).

    The ground truth of ``valid`` is read in two forms: as that of ``train``, and ``Annotations/<video>/<exp_id>`` with
    one binary PNG a frame, nonzero the target.
    """

    name = "refytvos"

    def _choose_files(self, split: str, meta: Path | None) -> tuple[dict[str, Path], frozenset[str]]:
        """`meta`, expressions or a list of names; chosen expressions are taken as they are."""
        names = meta if meta is not None and meta.suffix.lower() == ".txt" else None
        if split != "valid" or (meta is not None and names is None):
            return super()._choose_files(split, meta)
        files = {"meta": expression_file(self.root, "valid"), "test": expression_file(self.root, "test")}
        # This file comes with the ground truth; the videos of test are not in it.
        published = self.root / "valid" / "meta_expressions_challenge.json"
        if not files["meta"].is_file() and published.is_file():
            files = {"meta": published}
        places = (self.root, self.root / "meta_expressions", self.root / "meta_expressions" / "valid")
        names = names or next((place / NAME_LIST for place in places if (place / NAME_LIST).is_file()), None)
        if names is not None:
            files["names"] = names
        if "test" in files and not files["test"].is_file():
            if names is None:
                raise DataError(
                    f"{files['test']}: no such file; valid is what {files['meta']} holds beyond it. Fetch it, put the "
                    f"list of the 202 names at {self.root / NAME_LIST}, or name either with --meta"
                )
            del files["test"]
        return files, _left_out(files)

    def _size(self, video: str, frames: tuple[str, ...]) -> Size:
        folder = self._annotations.folder / video
        first = next(folder.glob(f"*/{frames[0]}.png"), None) if folder.is_dir() else None
        return picture_size(first) if first else super()._size(video, frames)

    def _numbers(self, exp_id: str, expression: dict[str, Any], where: str) -> tuple[int, ...]:
        return super()._numbers(exp_id, expression, where) if "obj_id" in expression else ()

    def _anno_ids(self, video: str, exp_id: str, numbers: tuple[int, ...]) -> tuple[int | str, ...]:
        """The expression's own folder where each has one, else the number of its object."""
        return (exp_id,) if (self._annotations.folder / video / exp_id).is_dir() else numbers

    def track(self, sample: VideoSample, anno_id: int | str) -> tuple[Rle | None, ...]:
        """The masks of an object (int), or of an expression that has a folder of its own (str)."""
        if isinstance(anno_id, int):
            return super().track(sample, anno_id)
        folder = self._annotations.folder / sample.video / anno_id
        names = {path.name for path in folder.iterdir()}
        rles: list[Rle | None] = []
        for frame in sample.frames:
            if self.tolerance is not None and f"{frame}.png" not in names:
                self.tolerance.note("frames without a PNG; the target counts as absent there", str(folder))
                rles.append(None)
            else:
                rles.append(self.read_target(folder / f"{frame}.png", sample.size))
        return tuple(rles)

    def truth_files(self, sample: VideoSample) -> tuple[Path, ...]:
        own = [anno_id for anno_id in sample.anno_ids if isinstance(anno_id, str)]  # an expression's own folder
        if not own:
            return super().truth_files(sample)
        folder = self._annotations.folder / sample.video
        return tuple(folder / anno_id / f"{frame}.png" for anno_id in own for frame in sample.frames)

    def object_rles(self, sample: VideoSample) -> tuple[tuple[Rle | None, ...], ...]:
        self._check_truth(sample)
        return super().object_rles(sample)

    def foreground(self, video: str) -> tuple[Rle | None, ...]:
        self._check_truth(self.by_video[video][0])
        return super().foreground(video)

    def _check_truth(self, sample: VideoSample) -> None:
        lacking = [] if sample.anno_ids else [f"{sample.key} has no obj_id"]
        if not self._annotations.folder.is_dir():
            lacking.append(f"{self._annotations.folder} is not there")
        if lacking:
            raise DataError(
                f"{self.files['meta']}: no ground truth of {self.split}: {' and '.join(lacking)}. That of valid was "
                "published in March 2026: fetch valid/Annotations and the expressions with obj_id, or pack what was "
                "predicted for the benchmark's server with `python -m eval.submit --dataset refytvos`"
            )


def _left_out(files: dict[str, Path]) -> frozenset[str]:
    """The videos of the expression file that the file of test has, or that the list of names has not."""
    videos = frozenset(video for video, _, _ in fields.videos(files["meta"]))
    test = frozenset(video for video, _, _ in fields.videos(files["test"])) if "test" in files else frozenset()
    if test - videos:
        raise DataError(
            f"{files['test']}: the video {min(test - videos)!r} is not in {files['meta']}, which holds valid and test "
            "together; the two files are not of one release"
        )
    if "names" not in files:
        return test
    path = files["names"]
    check_regular(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: no text; expected the names of videos, one a line") from None
    if found := foreign_content("\n".join(lines).encode()[:512]):
        raise DataError(f"{path}: not a list of names but {found}")
    names = frozenset(base.check_name(line.strip(), f"{path}:{i}") for i, line in enumerate(lines, 1) if line.strip())
    if names - videos:
        raise DataError(f"{path}: the video {min(names - videos)!r} is not in {files['meta']}; correct the list")
    if names & test:
        raise DataError(f"{path}: the video {min(names & test)!r} is in {files['test']}, too; keep one of them")
    return videos - names


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
    """The file in which both data sets keep a split's expressions."""
    return root / "meta_expressions" / split / "meta_expressions.json"


def object_number(expression: dict[str, Any], where: str) -> int:
    """The number of an expression's object, which its annotations hold."""
    number = expression.get("obj_id")
    if not (isinstance(number, str) and number.isascii() and number.isdecimal() and len(number) < 4):
        raise DataError(f"{where}: obj_id must be a number as text, '1' say, found {str(number)[:80]!r}")
    if not 0 < int(number) < VOID:
        raise DataError(f"{where}: obj_id is {number}; objects are numbered from 1 to {VOID - 1}")
    return int(number)
