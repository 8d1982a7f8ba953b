"""One file a benchmark; each reads an index into `VideoSample`s, and ground truth on request, never pixels."""

from __future__ import annotations

from pathlib import Path

from veason.datasets.base import Dataset
from veason.errors import DataError

NAMES = ("revos",)


def open_dataset(
    name: str, root: str | Path, *, split: str, image_root: str | Path | None = None, meta: str | Path | None = None
) -> Dataset:
    """Open one split of the benchmark `name` below `root`.

    `image_root` replaces ``root/JPEGImages``; `meta` replaces the expression file (a sampled subset, say).
    """
    if name == "revos":
        from veason.datasets.revos import ReVOS

        return ReVOS(root, split=split, image_root=image_root, meta=meta)
    raise DataError(f"unknown data set {name!r}; known: {', '.join(NAMES)}")
