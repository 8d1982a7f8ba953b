"""The list of samples to leave out: a text file of ``video/exp_id`` lines, the same for sampling and for training."""

from __future__ import annotations

from pathlib import Path

from veason.errors import DataError


def read_exclude(path: Path) -> frozenset[str]:
    """Keys ``video/exp_id``, one a line; empty lines and those after # do not count."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; an exclude file has a video/exp_id a line") from None
    keys = frozenset(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    wrong = [key for key in keys if "/" not in key]
    if wrong:
        raise DataError(f"{path}: {min(wrong)!r} is no video/exp_id")
    return keys
