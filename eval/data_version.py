"""One hash for ground truth that lies in many files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from veason.datasets.base import sha256


def of_files(root: Path, paths: Iterable[Path]) -> str:
    """Hex SHA-256 over names below `root` and contents, in ascending order of the names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()
