"""Checks of files that a user names: present, regular and of the expected kind; and fingerprints that show a change."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from veason.errors import DataError

HEAD = 64 << 10
"""Bytes at the beginning of a file that its fingerprint covers."""


def check_regular(path: Path, *, hint: str = "is the path right?") -> os.stat_result:
    """The status of a regular file; DataError for anything else, since opening a FIFO waits for ever."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file; {hint}") from None
    except PermissionError:
        raise DataError(f"{path}: this user may not read it") from None
    except OSError as error:  # a loop of links, a name too long
        raise DataError(f"{path}: {error.strerror}; {hint}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file (a pipe, socket or device)"
        raise DataError(f"{path}: {kind}, expected a file")
    return status


def foreign_content(head: bytes) -> str | None:
    """The kind of file that the first bytes show, with the remedy, if it cannot be one of ours; otherwise None."""
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "empty; fetch the file again"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page, perhaps a log-in or error page; download the file again"
    if start.startswith((b"<?xml", b"<error")):
        return "an XML document, perhaps a server's error message; download the file again"
    for magic, name in ((b"\x1f\x8b", "gzip"), (b"pk\x03\x04", "zip"), (b"7z\xbc\xaf", "7z"), (b"\xfd7zxz", "xz")):
        if start.startswith(magic):
            return f"a {name} archive; unpack it first"
    return None


def read_head(path: Path, size: int = 512) -> bytes:
    """The first bytes of a regular file."""
    check_regular(path)
    with open(path, "rb") as file:
        return file.read(size)


class RepeatedKey(dict[str, Any]):
    """A JSON object in which `key` stood twice; the reader that knows what it is reading names the entry."""

    key: str


def load_json(path: Path, *, hint: str = "is the path right?") -> Any:
    """Parse a JSON file; an object with a repeated key comes back as a `RepeatedKey`.

    DataError for a missing file (with `hint`), a pipe, a Git LFS pointer, a web page, and anything that is not JSON.
    """
    check_regular(path, hint=hint)
    data = path.read_bytes()
    try:
        return json.loads(data, object_pairs_hook=_unique)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        found = foreign_content(data[:512])
        raise DataError(f"{path}: not JSON but {found}" if found else f"{path}: not valid JSON: {error}") from error
    except RecursionError:
        raise DataError(f"{path}: nested too deeply to be a file of this kind") from None
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"{path}: not valid JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON's (key, value) pairs, a `RepeatedKey` where a key appears twice."""
    record = dict(pairs)
    if len(record) == len(pairs):
        return record
    repeated = RepeatedKey(record)
    keys = Counter(key for key, _ in pairs)
    repeated.key = next(key for key, _ in pairs if keys[key] > 1)
    return repeated


def fingerprint(path: Path) -> dict[str, Any]:
    """Size, time of change and a hash of the first `HEAD` bytes of a file, to be compared for equality later.

    Times are never compared by order: a file that was replaced by an older one has changed, too.
    """
    status = check_regular(path)
    with open(path, "rb") as file:
        head = file.read(HEAD)
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "head": hashlib.sha256(head).hexdigest()[:16]}


def folder_fingerprint(paths: Iterable[Path]) -> dict[str, Any]:
    """One fingerprint of many files by name, size and time of change; their contents are not read."""
    digest, count, total = hashlib.sha256(), 0, 0
    for path in sorted(paths):
        status = check_regular(path)
        digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        count, total = count + 1, total + status.st_size
    return {"files": count, "bytes": total, "names_and_times": digest.hexdigest()[:16]}
