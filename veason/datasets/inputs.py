"""Takes fingerprints of all files that are read of a data set; a run that goes on compares them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from veason.datasets.base import Dataset
from veason.files import fingerprint, folder_fingerprint
from veason.types import VideoSample


def fingerprints(dataset: Dataset, samples: Iterable[VideoSample]) -> dict[str, dict[str, Any]]:
    """Fingerprints by role: of each annotation file (``meta``, ``masks`` …), of the ``frames`` and, where the data set
    keeps its ground truth in files of their own, of the ``truth`` of the `samples`.

    Frames and truth count by name, size and time of change; their contents are not read. A file that is missing counts
    as missing; a reader that needs it raises the error.
    """
    found = {role: fingerprint(path) for role, path in sorted(dataset.files.items()) if path.is_file()}
    by_video: dict[str, VideoSample] = {}
    truth: set[Path] = set()
    for sample in samples:
        by_video.setdefault(str(sample.frame_dir), sample)
        truth.update(dataset.truth_files(sample))
    frames = [sample.frame_path(t) for sample in by_video.values() for t in range(len(sample))]
    found["frames"] = folder_fingerprint(path for path in frames if path.is_file())
    if truth:
        found["truth"] = folder_fingerprint(path for path in truth if path.is_file())
    return found
