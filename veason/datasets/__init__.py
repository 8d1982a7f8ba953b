"""The readers, one file a benchmark: each gives `VideoSample`s, and ground truth on request, never pixels."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from veason.datasets.base import Dataset
from veason.errors import DataError

READERS = {
    "revos": ("veason.datasets.revos", "ReVOS"),
    "mevis": ("veason.datasets.mevis", "MeViS"),
    "reasonvos": ("veason.datasets.reasonvos", "ReasonVOS"),
    "refytvos": ("veason.datasets.refvos", "RefYouTubeVOS"),
    "refdavis": ("veason.datasets.refvos", "RefDAVIS17"),
    "vicas": ("veason.datasets.vicas", "ViCaS"),
}
"""Name of a benchmark -> module and class of its reader, imported when it is opened."""

NAMES = tuple(READERS)


def open_dataset(
    name: str,
    root: str | Path,
    *,
    split: str | None = None,
    image_root: str | Path | None = None,
    meta: str | Path | None = None,
    scoring: bool = False,
    **options: Any,
) -> Dataset:
    """Open one split of the benchmark `name` below `root`.

    `split` None is the one that is scored offline (`default_split` of the reader). `image_root` replaces the folder of
    the videos, such as ``root/JPEGImages``; `meta` replaces the expression file (a sampled subset, say). `scoring`: for
    evaluators; faults that the published scripts ignore (unsorted frames, an expression without text, masks beyond the
    last frame, a new source of ReasonVOS) are listed in the data set's `warnings` instead of being errors. `options`
    are the reader's own, such as ``min_frames``.
    """
    if name not in READERS:
        raise DataError(f"unknown data set {name!r}; known: {', '.join(NAMES)}")
    module, reader = READERS[name]
    opener = getattr(importlib.import_module(module), reader)
    return opener(
        root, split=split or opener.default_split, image_root=image_root, meta=meta, scoring=scoring, **options
    )
