"""What can be said of a data set from its annotation files alone: order of frames, counts, ids that nobody names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from veason.datasets import base, open_dataset
from veason.datasets.json_index import JsonIndex
from veason.datasets.sample_list import SampleList
from veason.doctor import published
from veason.doctor.findings import Finding
from veason.errors import DataError

_EXPRESSIONS = ("meta_expressions*.json", "*/meta_expressions*.json", "meta_expressions/*/meta_expressions.json")
"""Where the benchmarks keep expressions below their roots."""


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
            continue  # no expression file; if the reader wants it, it says so
        for video, entry in videos:
            if isinstance(entry, dict) and (what := _disorder(entry.get("frames"))) is not None:
                remedy = "sort the list, and the masks along with it"
                found.append(Finding("error", "frame order", f"{path}: video {video}", what, remedy))
    return found


def _disorder(frames: object) -> str | None:
    if not isinstance(frames, list) or not all(isinstance(frame, str) for frame in frames):
        return None
    if len(set(frames)) < len(frames):
        return f"{len(frames) - len(set(frames))} frames are listed twice"
    wrong = sum(a != b for a, b in zip(frames, sorted(frames), strict=True))
    return f"{wrong} of {len(frames)} frames are not at their sorted place" if wrong else None


def counts(dataset: SampleList) -> list[Finding]:
    """The split's size against the published one; for ReVOS also that of both splits together."""
    name = f"{dataset.name} {dataset.split}"
    found = published.compare(name, published.measure(dataset), published.SPLITS.get((dataset.name, dataset.split)))
    both = [other for split in ("train", "valid") if (other := _revos_split(dataset, split)) is not None]
    if len(both) == 2:
        sizes = [published.measure(other) for other in both]
        total = published.Size(sum(s.videos for s in sizes), sum(s.expressions or 0 for s in sizes))
        found += published.compare("revos train and valid", total, published.REVOS)
    return found


def _revos_split(dataset: SampleList, split: str) -> SampleList | None:
    """A split of the ReVOS that `dataset` is of; None if it is no ReVOS, or the split is not there or not readable."""
    if dataset.name != "revos":
        return None
    if split == dataset.split:
        return dataset
    try:
        return open_dataset("revos", dataset.files["foreground"].parent, split=split)
    except DataError:
        return None


def ground_truth(dataset: SampleList) -> Iterator[Finding]:
    """Whether a split that names no annotations has ground truth at all; the reader says where to get it."""
    if any(sample.anno_ids or sample.type_id is not None for sample in dataset):
        return
    try:
        dataset.object_rles(dataset[0])
    except DataError as error:
        remedy = "none needed for predicting; scoring and training want ground truth"
        yield Finding("note", "ground truth", f"{dataset.name} {dataset.split}", str(error), remedy)


def annotation_ids(dataset: SampleList) -> Iterator[Finding]:
    """Annotations that no expression names, where one file holds all annotations of the root."""
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


def _named(dataset: SampleList) -> set[str]:
    return {str(anno_id) for sample in dataset for anno_id in sample.anno_ids}


def foreground_file(dataset: SampleList) -> Iterator[Finding]:
    """Videos that the foreground file leaves out, if there is such a file; without it R is computed from the masks."""
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
