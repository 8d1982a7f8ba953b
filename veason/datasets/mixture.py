"""Joins several data sets into one, for training on a mix of benchmarks, and parses the text that names them.

``revos=ROOT+mevis=ROOT+vicas=ROOT:v1.0/train``: a reader's name, the folder of its data set, and the split after a
colon. Parts are joined by ``+`` or ``,``, whichever the place where the text stands prefers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from veason.datasets import open_dataset
from veason.datasets.base import Dataset
from veason.datasets.sample_list import SampleList
from veason.errors import DataError
from veason.types import Rle, VideoSample

TRAINING = "train"
"""The split, or part of a version, that may be trained on; every other one is scored by the benchmark."""

_NAME = re.compile(r"[A-Za-z0-9_]+=")
_JOINT = re.compile(rf"\s*[+,]\s*(?={_NAME.pattern})")  # a root may have + and , in it
_PART = re.compile(r"(?P<name>\w+)=(?P<root>.+?)(?::(?P<split>\w+|v\d+\.\d+/\w+))?", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """One data set of a mix, as the text names it."""

    name: str
    root: str
    split: str | None = None

    def __str__(self) -> str:
        return f"{self.name}={self.root}" + (f":{self.split}" if self.split else "")


def parse_parts(text: str) -> tuple[Part, ...]:
    """The data sets that `text` names; none where it is a plain path: it opens with no ``NAME=``, or is a folder."""
    if not _NAME.match(text.strip()) or os.path.isdir(text):  # False for what can be no path, too
        return ()
    parts = []
    for piece in _JOINT.split(text.strip()):
        found = _PART.fullmatch(piece)
        if found is None:
            raise DataError(f"{piece!r}: expected NAME=ROOT or NAME=ROOT:SPLIT, such as mevis=/data/MeViS:train")
        parts.append(Part(**found.groupdict()))
    return tuple(parts)


def check_trainable(parts: Sequence[Part]) -> None:
    """Raises DataError for the first part whose split is scored: training on it would make its numbers meaningless."""
    for part in parts:
        if part.name == "reasonvos":
            raise DataError(f"{part}: ReasonVOS is one test set, so it must not be trained on; leave it out")
        version, slash, last = (part.split or TRAINING).rpartition("/")
        if last != TRAINING:
            raise DataError(
                f"{part}: {part.split} is scored by the benchmark, so it must not be trained on; take "
                f"{part.name}={part.root}:{version}{slash}{TRAINING}, or leave it out"
            )


def open_parts(parts: Sequence[Part], *, split: str | None, meta: str | Path | None = None) -> Dataset:
    """The data set of the one part, as its reader gives it, or the `Mixture` of several.

    split: of the parts that name none; None is each reader's own default. meta: as in `open_dataset`, of a lone part.
    """
    if meta and len(parts) > 1:
        raise DataError(f"{meta}: another expression file needs a single data set, found {len(parts)}")
    opened = [open_dataset(part.name, part.root, split=part.split or split, meta=meta) for part in parts]
    return opened[0] if len(opened) == 1 else Mixture(opened)


class Mixture(SampleList):
    """The samples of several data sets, one data set after the other; ground truth is asked of the sample's own.

    Picklable where the parts are. A sample stays as it was in its data set, and so does its `key`: unique here is
    `named_key`, and a video is called ``<name>/<video>``.
    """

    name = "mixture"
    default_split = ""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        """DataError where a data set is there twice: nothing would tell its samples apart."""
        self._parts = {part.name: part for part in parts}
        if len(self._parts) < len(parts):
            raise DataError(f"{', '.join(part.name for part in parts)}: a mixture may list each data set only once")
        split = " + ".join(f"{part.name} {part.split}" for part in parts)
        files = {f"{part.name} {role}": path for part in parts for role, path in part.files.items()}
        super().__init__(chain.from_iterable(parts), split=split, files=files)

    @property
    def warnings(self) -> list[str]:
        return [line for part in self._parts.values() for line in part.warnings]

    def track(self, sample: VideoSample, anno_id: int | str) -> tuple[Rle | None, ...]:
        return self._parts[sample.dataset].track(sample, anno_id)

    def object_rles(self, sample: VideoSample) -> tuple[tuple[Rle | None, ...], ...]:
        return self._parts[sample.dataset].object_rles(sample)

    def foreground(self, video: str) -> tuple[Rle | None, ...]:
        """See `Dataset`; here a video is called ``<name>/<video>``."""
        name, _, inner = video.partition("/")
        return self._parts[name].foreground(inner)

    def gt_frames(self, sample: VideoSample) -> tuple[int, ...]:
        return self._parts[sample.dataset].gt_frames(sample)

    def truth_files(self, sample: VideoSample) -> tuple[Path, ...]:
        return self._parts[sample.dataset].truth_files(sample)

    @property
    def by_video(self) -> dict[str, list[VideoSample]]:
        """The samples of each video, by ``<name>/<video>``."""
        return {
            f"{name}/{video}": samples for name, part in self._parts.items() for video, samples in part.by_video.items()
        }


def named_key(sample: VideoSample) -> str:
    """``name/video/exp_id``: unique among all data sets."""
    return f"{sample.dataset}/{sample.key}"


def unique_key(dataset: Dataset, sample: VideoSample) -> str:
    """The key that is unique within `dataset`: ``video/exp_id``, in a mixture with the data set's name before it."""
    return named_key(sample) if isinstance(dataset, Mixture) else sample.key
