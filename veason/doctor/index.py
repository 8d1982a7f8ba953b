"""Checks the annotation files of a data set alone: the order of frames, counts, ids that no expression names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from veason.datasets import base, open_dataset
from veason.datasets.base import Dataset
from veason.datasets.json_index import JsonIndex
from veason.doctor import published
from veason.doctor.findings import Finding
from veason.errors import DataError

_EXPRESSIONS = ("meta_expressions*.json", "*/meta_expressions*.json", "meta_expressions/*/meta_expressions.json")
"""Places below their roots in which the benchmarks keep expressions."""


def frame_order(root: Path, meta: Path | None = None) -> list[Finding]:
    """Videos whose frames are not stored sorted and unique, in every expression file: readers refuse the first.

    Evaluators take the frames as stored, readers sort them: the two agree only if the file is sorted.
    """
    paths = [meta] if meta else sorted(path for pattern in _EXPRESSIONS for path in root.glob(pattern))
    found = []
    for path in paths:
        try:
            videos = base.load_json(path)["videos"].items()
        except (DataError, KeyError, TypeError, AttributeError):
            continue  # no expression file; a reader that needs it raises the error
        for video, entry in videos:
            frames = entry.get("frames") if isinstance(entry, dict) else None
            if not isinstance(frames, list) or not all(isinstance(frame, str) for frame in frames):
                continue
            twice = len(frames) - len(set(frames))
            wrong = sum(a != b for a, b in zip(frames, sorted(frames), strict=True))
            what = (
                f"{twice} frames are listed twice"
                if twice
                else f"{wrong} of {len(frames)} frames are not at their sorted place"
            )
            if twice or wrong:
                remedy = "sort the list, and the masks along with it"
                found.append(Finding("error", "frame order", f"{path}: video {video}", what, remedy))
    return found


def counts(dataset: Dataset) -> list[Finding]:
    """Compare the split's size with the published one; for ReVOS also that of both splits together."""
    name = f"{dataset.name} {dataset.split}"
    found = published.compare(name, published.measure(dataset), published.SPLITS.get((dataset.name, dataset.split)))
    both = [other for split in ("train", "valid") if (other := _revos_split(dataset, split)) is not None]
    if len(both) == 2:
        sizes = [published.measure(other) for other in both]
        total = published.Size(sum(s.videos for s in sizes), sum(s.expressions or 0 for s in sizes))
        found += published.compare("revos train and valid", total, published.REVOS)
    return found


def _revos_split(dataset: Dataset, split: str) -> Dataset | None:
    """A split of the ReVOS to which `dataset` belongs; None for another benchmark, or a split that cannot be read."""
    if dataset.name != "revos":
        return None
    if split == dataset.split:
        return dataset
    try:
        return open_dataset("revos", dataset.files["foreground"].parent, split=split)
    except DataError:
        return None


def ground_truth(dataset: Dataset) -> Iterator[Finding]:
    """A note for a split that names no annotations and has no ground truth; the reader's error says where to get it."""
    if any(sample.anno_ids or sample.type_id is not None for sample in dataset):
        return
    try:
        dataset.object_rles(dataset[0])
    except DataError as error:
        remedy = "none needed for predicting; scoring and training want ground truth"
        yield Finding("note", "ground truth", f"{dataset.name} {dataset.split}", str(error), remedy)


def annotation_ids(dataset: Dataset) -> Iterator[Finding]:
    """A note for annotations that no expression names, where one file holds all annotations of the root."""
    if "masks" not in dataset.files or not dataset.files["masks"].is_file():
        return
    path = dataset.files["masks"]
    named = _named(dataset)
    for split in ("train", "valid"):
        if (other := _revos_split(dataset, split)) is not None:
            named |= _named(other)
        elif dataset.name == "revos":
            what = f"the split {split} is not there, so annotations that no expression names were not looked for"
            yield Finding("note", "unreferenced ids", str(path), what, "fetch the other split's expressions")
            return
    strays = sorted(set(JsonIndex(path).keys()) - named)
    if strays:
        what = f"{len(strays)} annotations are named by no expression, first {', '.join(strays[:5])}"
        yield Finding("note", "unreferenced ids", str(path), what, "harmless; ids that moved would show like this, too")


def _named(dataset: Dataset) -> set[str]:
    return {str(anno_id) for sample in dataset for anno_id in sample.anno_ids}


def foreground_file(dataset: Dataset) -> Iterator[Finding]:
    """A note for videos that the foreground file leaves out, or for no such file: R is then computed from the masks."""
    path = dataset.files.get("foreground")
    if path is None:
        return
    if not path.is_file():
        yield Finding("note", "foreground", str(path), "not there; it is computed from the masks", "none needed")
        return
    lacking = sorted(dataset.by_video.keys() - set(JsonIndex(path).keys()))
    if lacking:
        what = f"{len(lacking)} videos are not in the file, first {lacking[0]}; theirs is computed from the masks"
        yield Finding("note", "foreground", str(path), what, "none needed")
