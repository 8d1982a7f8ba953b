"""Reads single entries of a huge JSON object (`mask_dict.json`) without ever parsing the whole file.

The first opening scans the file once for the byte span of each top-level value. For files above `CACHE_ABOVE` bytes the
spans are kept under ``$VEASON_CACHE`` (default ``~/.cache/veason``), so that later processes start at once; where
nothing can be written there, each process scans for itself. Reading an entry costs one `pread` and parsing that entry.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import mmap
import multiprocessing
import os
import re
from pathlib import Path
from typing import Any

import orjson

from veason import atomic
from veason.errors import DataError
from veason.files import check_regular, fingerprint, foreign_content, read_head
from veason.safe_text import printable

_log = logging.getLogger(__name__)

CACHE_ABOVE = 8 << 20
"""Bytes above which the spans are cached on disk; smaller files are scanned in well under a tenth of a second."""

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_RLE = rb'\{\s*"size"\s*:\s*\[[\d\s,]*\]\s*,\s*"counts"\s*:\s*' + _STRING + rb"\s*\}"
_TOKEN = re.compile(rb"(?:" + _RLE + rb")|" + _STRING + rb"|[\[\]{}]", re.DOTALL)
_RELEASE_EVERY = 64 << 20
"""Bytes scanned between two releases of the mapped pages."""


Spans = dict[str, tuple[int, int, int]]
"""Key -> the bytes of the file at which the key begins, its value begins, and its value ends."""


class JsonIndex:
    """Mapping from the keys of a JSON object to its values, each parsed when asked for. Picklable and cheap to copy.

    An entry is read together with its key, so a file that has changed meanwhile is a `DataError`, never another
    entry's value.
    """

    def __init__(self, path: Path) -> None:
        """DataError for a missing file, a pipe, a Git LFS pointer, a web page, and what is no object of lists."""
        self.path = path
        check_regular(path, hint="is the data root right?")
        head = read_head(path)
        if found := foreign_content(head):
            raise DataError(f"{path}: not JSON but {found}")
        if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
            raise DataError(
                f"{path}: not a JSON object, it begins with {printable(head.decode(errors='replace')[:40])!r}"
            )
        self._spans, self._bytes = _load_spans(path)

    def __contains__(self, key: str) -> bool:
        return key in self._spans

    def __len__(self) -> int:
        return len(self._spans)

    def keys(self) -> list[str]:
        """Keys in the order of the file."""
        return list(self._spans)

    def __getitem__(self, key: str) -> Any:
        begin, start, end = self._spans[key]
        check_regular(self.path, hint="it was there when the run began")
        handle = os.open(self.path, os.O_RDONLY)
        try:
            size = os.fstat(handle).st_size
            data = os.pread(handle, end - begin, begin)
        finally:
            os.close(handle)
        token, colon, rest = data[: start - begin].rpartition(b":")  # of ``"key" :``
        try:
            found = orjson.loads(token) if colon and not rest.strip() else None
        except orjson.JSONDecodeError:
            found = None
        if size != self._bytes or found != key:
            _forget(self.path)
            raise DataError(
                f"{self.path}: the file has changed since it was indexed: entry {key!r} is not where it was; "
                "start the command again"
            )
        try:
            return orjson.loads(data[start - begin :])
        except orjson.JSONDecodeError as error:
            _forget(self.path)  # where the entry lies may be what is wrong
            raise DataError(f"{self.path}: entry {key!r} is not valid JSON: {error}") from error


def _load_spans(path: Path) -> tuple[Spans, int]:
    """(spans, bytes of the file), from the cache if it is of this very file."""
    found = fingerprint(path)
    if found["bytes"] <= CACHE_ABOVE:
        return scan(path), found["bytes"]
    cache, source = _cache_file(path), {"path": str(path.resolve()), "format": 2, **found}
    try:
        stored = orjson.loads(cache.read_bytes()) if cache else None
    except (OSError, orjson.JSONDecodeError):
        stored = None
    if isinstance(stored, dict) and stored.get("source") == source:
        return stored["spans"], found["bytes"]
    spans = scan(path)
    if fingerprint(path) != found:
        raise DataError(f"{path}: the file changed while it was read; start the command again")
    if cache:
        try:
            atomic.write_bytes(cache, orjson.dumps({"source": source, "spans": spans}))
        except OSError as error:
            _warn_once(_NO_CACHE.format(cache.parent, error.strerror))
    return spans, found["bytes"]


def _cache_file(path: Path) -> Path | None:
    """The file in which the spans of a file are kept; None without a home folder."""
    name = f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]}.spans.json"
    try:
        folder = Path(os.environ.get("VEASON_CACHE") or Path.home() / ".cache" / "veason")
    except RuntimeError:  # no HOME, and no entry in the list of users
        _warn_once(_NO_CACHE.format("~/.cache/veason", "there is no home folder"))
        return None
    return folder / name


def _forget(path: Path) -> None:
    """Remove the spans that are kept of a file, if there are any."""
    with contextlib.suppress(OSError):
        if cache := _cache_file(path):
            cache.unlink()


def check_cache(path: Path) -> None:
    """Warn now if the spans of `path` will not be kept: for a process that leaves the reading to workers."""
    if path.is_file() and path.stat().st_size > CACHE_ABOVE and (cache := _cache_file(path)) and not cache.exists():
        probe = cache.with_name(f".{cache.name}.{os.getpid()}")
        try:
            atomic.write_bytes(probe, b"?")
            probe.unlink()
        except OSError as error:
            _warn_once(_NO_CACHE.format(cache.parent, error.strerror))


_NO_CACHE = "{}: {}; going on without a cache, so every process scans large annotation files anew"


@functools.cache
def _warn_once(text: str) -> None:
    if multiprocessing.parent_process() is None:  # the parent of a worker has done it
        _log.warning("%s (VEASON_CACHE names another folder)", text)


def scan(path: Path) -> Spans:
    """The byte spans of the entries of the JSON object in `path`, in one pass, any nesting, bounded memory."""
    spans: Spans = {}
    depth, begin, start, released, closed = 0, 0, 0, 0, False  # begin, start: of `key` and of its value
    key: str | None = None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for token in _TOKEN.finditer(data):
            first = data[token.start()]
            if closed:
                raise DataError(
                    f"{path}: byte {token.start()}: more follows the end of the JSON object; fetch the file again"
                )
            if first == 0x22 or token.end() - token.start() > 1:  # a string, or a whole RLE: no change of depth
                if depth == 1:
                    if key is not None or first != 0x22:
                        raise DataError(f"{path}: byte {token.start()}: entry {key!r} is neither a list nor an object")
                    try:
                        key, begin = orjson.loads(token.group()), token.start()
                    except orjson.JSONDecodeError as error:
                        raise DataError(
                            f"{path}: the key {token.group()[:80]!r} is not a JSON string: {error}"
                        ) from error
                continue
            depth += 1 if first in b"[{" else -1
            if first in b"[{" and depth == 2:
                start = token.start()
            elif first in b"]}" and depth == 1:
                if key is None:
                    raise DataError(f"{path}: byte {token.start()}: a value without a key")
                if key in spans:
                    raise DataError(f"{path}: the key {key!r} appears twice; keep one of the two entries")
                spans[key] = (begin, start, token.end())
                key = None
                if token.end() - released > _RELEASE_EVERY:
                    data.madvise(mmap.MADV_DONTNEED)
                    released = token.end()
            closed = depth == 0
    if depth != 0 or key is not None:
        raise DataError(f"{path}: the JSON is cut off or not an object of lists; fetch the file again")
    return spans
