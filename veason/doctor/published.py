"""The published sizes of the benchmarks: a copy of another size gives other scores."""

from __future__ import annotations

from dataclasses import dataclass

from veason.datasets.base import Dataset
from veason.doctor.findings import Finding


@dataclass(frozen=True)
class Size:
    """The counts of a split; None for a count that is not published."""

    videos: int
    expressions: int | None = None


SPLITS: dict[tuple[str, str], Size] = {
    ("revos", "train"): Size(626),
    ("revos", "valid"): Size(416),
    ("mevis", "train"): Size(1662, 23051),
    ("mevis", "valid_u"): Size(50, 793),
    ("mevis", "valid"): Size(140, 2236),
    ("mevis", "test"): Size(154, 2490),
    ("reasonvos", "test"): Size(91, 458),
    ("refytvos", "valid"): Size(202, 834),
    ("refdavis", "train"): Size(60),
    ("refdavis", "valid"): Size(30, 244),
    ("vicas", "v0.1/train"): Size(5131),
    ("vicas", "v0.1/val"): Size(1100),
    ("vicas", "v0.1/test"): Size(1100),
    ("vicas", "v1.0/train"): Size(14516),
    ("vicas", "v1.0/val"): Size(2950),
    ("vicas", "v1.0/test"): Size(2950),
}

REVOS = Size(1042, 35074)
"""Both splits of ReVOS together, as its abstract says."""


def measure(dataset: Dataset) -> Size:
    return Size(len({sample.video for sample in dataset}), len(dataset))


def compare(name: str, found: Size, published: Size | None) -> list[Finding]:
    """A finding if `found` is not as `published`."""
    if published is None:
        return []
    pairs = ((found.videos, published.videos, "videos"), (found.expressions, published.expressions, "expressions"))
    other = [f"{here} {what}, published {there}" for here, there, what in pairs if there is not None and here != there]
    if not other:
        return []
    remedy = "fetch the expression file again; for a part or a world of your own, say --subset"
    return [Finding("warning", "counts", name, f"{name} has {'; '.join(other)}", remedy)]
