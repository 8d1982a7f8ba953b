"""The list of samples to leave out: a text file of ``video/exp_id`` lines, the same for sampling and for training."""

from __future__ import annotations

from pathlib import Path

from veason import files
from veason.errors import DataError


def read_exclude(path: Path) -> frozenset[str]:
    """Keys ``video/exp_id``, one a line; empty lines and those after # do not count."""
    files.check_regular(path, hint="an exclude file has a video/exp_id a line")
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: no text; an exclude file has a video/exp_id a line") from None
    foreign = files.foreign_content(content[:512]) if content else None  # nothing to leave out is an answer
    if foreign is not None:
        raise DataError(f"{path}: {foreign}")
    keys = frozenset(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    wrong = [key for key in keys if "/" not in key]
    if wrong:
        raise DataError(f"{path}: {min(wrong)!r} is no video/exp_id")
    return keys
