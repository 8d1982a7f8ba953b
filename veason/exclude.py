"""Reads and writes the list of samples to leave out, the same for sampling and for training: ``video/exp_id`` lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from veason import atomic, files
from veason.errors import DataError


def read_exclude(path: Path) -> frozenset[str]:
    """The keys ``video/exp_id`` of a file, one a line; empty lines and lines that open with # do not count."""
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


def write_exclude(path: Path, title: str, reasons: Mapping[str, str]) -> None:
    """Write the keys of `reasons`, sorted below each reason; the title and the reasons are comments."""
    lines = [f"# {title}"]
    for reason in dict.fromkeys(reasons.values()):
        lines += [f"# {reason}", *sorted(key for key, this in reasons.items() if this == reason)]
    atomic.write_bytes(path, ("\n".join(lines) + "\n").encode())
