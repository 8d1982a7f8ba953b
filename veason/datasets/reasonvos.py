"""Reads ReasonVOS: reasoning expressions about videos of four sources; a test set only.

Layout below the root: ``JPEGImages/<video>/<frame>.jpg``, ``Annotations/<source>_<video>_<obj_id>/<frame>.png``
(nonzero is the target), ``meta_expressions.json`` (also seen as ``meta_expressions_.json``). A video's expressions are
a *list*.

A sample's `exp_id` is the **position** in that list, so that ``<video>/<exp_id>`` is unique; the file's own exp_id need
be unique for one object only. It names the folder of the published prediction layout, see `object_folder`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from veason.datasets import base, fields
from veason.datasets.pictures import picture_size
from veason.datasets.sample_list import SampleList
from veason.errors import DataError
from veason.types import Rle, VideoSample

META_NAMES = ("meta_expressions.json", "meta_expressions_.json")
SOURCES = ("vipseg", "burst", "mose", "mevis")


@dataclass(frozen=True)
class Origin:
    """The names that an expression has in the file."""

    annotation: str
    """``<source>_<video>_<obj_id>``: the folder of its masks."""
    exp_id: str
    sentence: bool | None
    """True for a long expression, False for a short phrase; None where the file does not say."""


class ReasonVOS(SampleList):
    """The ReasonVOS test set. Opening reads the expressions and an annotation's header for each video."""

    name = "reasonvos"
    default_split = "test"

    def __init__(
        self,
        root: str | Path,
        *,
        split: str = default_split,
        image_root: str | Path | None = None,
        meta: str | Path | None = None,
        min_frames: int = 1,
        scoring: bool = False,
    ) -> None:
        """image_root, meta: where videos and expressions are, if not at their places.

        min_frames, scoring: see `SampleList`.
        """
        if split != self.default_split:
            raise DataError(f"ReasonVOS has no split {split!r}; it is one test set: --split {self.default_split}")
        self.root = Path(root)
        self.image_root = Path(image_root) if image_root else self.root / "JPEGImages"
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; --data-root is the folder that holds {META_NAMES[0]}")
        found = [self.root / name for name in META_NAMES if (self.root / name).is_file()]
        if not meta and len(found) == 2 and base.sha256(found[0]) != base.sha256(found[1]):
            raise DataError(f"{self.root}: {' and '.join(META_NAMES)} differ; choose one with --meta")
        files = {"meta": Path(meta) if meta else found[0] if found else self.root / META_NAMES[0]}
        self._origins: dict[str, Origin] = {}
        self._annotated: dict[str, tuple[int, ...]] = {}
        super().__init__(self._read(files["meta"]), split=split, files=files, min_frames=min_frames, scoring=scoring)

    def track(self, sample: VideoSample, anno_id: int | str) -> tuple[Rle | None, ...]:
        folder = self.root / "Annotations" / str(anno_id)
        annotated = set(self.gt_frames(sample))
        return tuple(
            self.read_target(folder / f"{frame}.png", sample.size) if t in annotated else None
            for t, frame in enumerate(sample.frames)
        )

    def truth_files(self, sample: VideoSample) -> tuple[Path, ...]:
        folder = self.root / "Annotations" / self.origin(sample).annotation
        return tuple(folder / f"{frame}.png" for frame in sample.frames)

    def gt_frames(self, sample: VideoSample) -> tuple[int, ...]:
        """Ids of the frames that have an annotation PNG; DataError if none has, or one has no such frame."""
        annotation = self.origin(sample).annotation
        if annotation not in self._annotated:
            self._annotated[annotation] = _annotated(self.root / "Annotations" / annotation, sample.frames)
        return self._annotated[annotation]

    def origin(self, sample: VideoSample) -> Origin:
        """The names that the sample has in the file."""
        return self._origins[sample.key]

    def object_folder(self, sample: VideoSample) -> str:
        """``<source>_<video>_<obj_id>/<exp_id>``: the sample's folder in the published prediction layout."""
        origin = self.origin(sample)
        return f"{origin.annotation}/{origin.exp_id}"

    def _read(self, meta: Path) -> Iterator[VideoSample]:
        for video, entry, where in fields.videos(meta):
            asked = entry.get("expressions")
            if not isinstance(asked, list):
                raise DataError(f"{where}: expressions must be a list, found {type(asked).__name__}")
            if not asked:
                continue
            frames, folder = fields.frames(entry, where, self.tolerance), self.image_root / video
            source = base.check_name(entry.get("source"), f"{where}: source")
            if source not in SOURCES:
                if self.tolerance is None:
                    raise DataError(f"{where}: source must be one of {', '.join(SOURCES)}, found {source[:80]!r}")
                self.tolerance.note(f"the source is none of {', '.join(SOURCES)}", f"{where}: source {source[:80]!r}")
            origins = [_origin(video, source, e, f"{where}: expression {i} of the list") for i, e in enumerate(asked)]
            seen: dict[Origin, int] = {}
            for i, origin in enumerate(origins):
                first = seen.setdefault(replace(origin, sentence=None), i)
                if first != i:
                    raise DataError(
                        f"{where}: expressions {first} and {i} of the list are both {origin.exp_id!r} of "
                        f"{origin.annotation}; keep one of the two"
                    )
            # The size is that of the first annotation, as it is scored; of the first picture if there is none.
            annotations = (self.root / "Annotations" / origins[0].annotation / f"{frame}.png" for frame in frames)
            annotation = next((png for png in annotations if png.is_file()), None)
            size = picture_size(annotation or folder / f"{frames[0]}.jpg")
            for i, (expression, origin) in enumerate(zip(asked, origins, strict=True)):
                sample = VideoSample(
                    dataset=self.name,
                    video=video,
                    exp_id=str(i),
                    expression=fields.text(
                        expression, f"{where}: expression {i} of the list", "exp_text", self.tolerance
                    ),
                    frames=frames,
                    frame_dir=folder,
                    size=size,
                    obj_ids=(expression["obj_id"],),
                    anno_ids=(origin.annotation,),
                )
                self._origins[sample.key] = origin
                yield sample


def _origin(video: str, source: str, expression: object, where: str) -> Origin:
    expression = base.check_object(expression, where)
    obj_id = base.check_name(_as_text(expression.get("obj_id")), f"{where}: obj_id")  # verbatim: "12" is one object
    sentence = expression.get("is_sent")
    if sentence not in (None, True, False, "0", "1"):
        raise DataError(f"{where}: is_sent must be true or false, found {str(sentence)[:80]!r}")
    return Origin(
        annotation=base.check_name(f"{source}_{video}_{obj_id}", where),
        exp_id=base.check_name(_as_text(expression.get("exp_id")), f"{where}: exp_id"),
        sentence=None if sentence is None else sentence in (True, "1"),
    )


def _as_text(value: object) -> object:
    return str(value) if type(value) is int else value


def _annotated(folder: Path, frames: tuple[str, ...]) -> tuple[int, ...]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of masks; expressions and annotations disagree")
    names = {path.stem for path in folder.glob("*.png") if not path.name.startswith(".")}  # "._x.png" is macOS's
    stray = sorted(names.difference(frames))
    if stray:
        raise DataError(f"{folder}: {stray[0]}.png is of no frame of the video ({len(stray)} such files)")
    if not names:
        raise DataError(f"{folder}: no mask in it; fetch the annotations again")
    return tuple(t for t, frame in enumerate(frames) if frame in names)
