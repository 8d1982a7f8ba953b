"""Writes files that are either whole or not there, journals that survive being cut off, and takes locks on both.

A process that writes a journal or a folder of results holds its lock, so that a second one is refused with a clear
error instead of mixing its lines into the first one's.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from veason.errors import DataError

NO_LOCKS = "VEASON_NO_LOCKS"
"""Environment variable: set to 1 where the file system has no locks and one process writes at a time."""
_TAIL = 1 << 16  # bytes of a journal read at a time, from its end


@contextmanager
def creating(path: Path) -> Iterator[None]:
    """In this block `path` is made, or a folder above it; DataError where nothing can be made, as in ``/proc``."""
    try:
        yield
    except FileNotFoundError:  # though all folders above it are there
        raise DataError(f"{path}: nothing can be created there; choose another folder") from None


def write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file piece by piece under a temporary name in its folder, then rename it into place.

    An error of the disk names the file, which a failed write alone does not. DataError for a path that is a pipe, a
    socket or a device: it would be replaced by the file.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path}: no regular file (a pipe, socket or device), and only such a one is written anew")
    with creating(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed writers of `path` left; the caller's lock keeps living writers out."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[a-z0-9_]' * 8}"):
        left.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; folders are made as needed."""
    write_parts(path, [data])


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN is refused: it is no JSON."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def sync_filesystem(path: Path) -> None:
    """Wait until everything written so far below `path` is on the disk: one call for any number of files."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if _SYNCFS is None:
            os.sync()
        elif _SYNCFS(handle) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(handle)


_SYNCFS = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


class Lock:
    """An exclusive lock on a file, held until `close` or the end of the process. The file stays when it is released.

    A `DataError` names the file when another process holds the lock, unless it is to be waited for, or when the file
    system has none.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self.path = path
        with creating(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab")  # noqa: SIM115 - until close()
        try:
            take_lock(self._file.fileno(), path, wait=wait)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def take_lock(handle: int, path: Path, *, wait: bool = False) -> None:
    """Lock an open file for this process alone, at once unless it may `wait`; DataError if it cannot be locked."""
    if os.environ.get(NO_LOCKS) == "1":
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise DataError(f"{path}: another process is writing here; wait for it or end it") from None
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL):
            raise
        raise DataError(
            f"{path}: this file system has no locks ({error.strerror}); write to another one, or set {NO_LOCKS}=1 and "
            "make sure that one process writes at a time"
        ) from None


class Journal:
    """A JSON-lines file that only grows: a record counts as written once its line feed is.

    Opening takes the file's lock and cuts off a half-written last line, which is what a killed writer leaves.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with creating(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - until close(); unbuffered
        try:
            take_lock(self._file.fileno(), path)
            self._file.truncate(_end_of_lines(self._file))
        except BaseException:
            self._file.close()
            raise

    def append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        rest = memoryview(line.encode("utf-8", "replace") + b"\n")  # a reply may hold lone surrogates
        while rest:
            rest = rest[self._file.write(rest) :]

    def sync(self) -> None:
        """Wait until everything appended so far is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end_of_lines(file: BinaryIO) -> int:
    """The place where the last whole line of an open file ends, searched from the file's end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _TAIL)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a JSON-lines file in order; a half-written last line is left out, any other bad line is an error."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{path}:{number}: not a JSON record: {error}") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}:{number}: expected a JSON object, found {type(record).__name__}")
            yield record
