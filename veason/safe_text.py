"""Text from elsewhere made fit for a terminal, a log and a file: no control characters, no secrets, no end of lines.

Servers quote the key they refuse, file names and replies may hold terminal escape sequences. Every message that repeats
such text goes through `printable`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "***"
_SHORTEST_PART = 6
"""Characters of a secret that may not be shown in a row."""
_KEY_LIKE = re.compile(
    r"""\bsk-[A-Za-z0-9_\-]{6,}          # keys of most services
    |\bhf_[A-Za-z0-9]{8,}                # of model hubs
    |(?<![\w\-])[\w\-]*+\*{3,}[\w\-*]*  # what a server has blackened in part
    |(?<=[Bb]earer\s)[^\s"',;]{4,}       # whatever follows "Bearer "
    |(?<=://)[^\s/@:]+:[^\s/@]+(?=@)     # user:password of an address""",
    re.VERBOSE,
)


def printable(text: object, *, secrets: Iterable[str] = (), limit: int | None = None) -> str:
    r"""`text` on one line, control characters shown as escapes, secrets as ``***``, cut after `limit` characters.

    A secret is masked wherever six or more of its characters stand in a row, since servers and exceptions quote keys in
    part; what looks like a key of a well-known service is masked without being given.

    >>> printable("bad key sk-abcdefghij", secrets=["sk-abcdefghij"])
    'bad key ***'
    >>> printable("a\x1b[31mb\nc")
    'a\\x1b[31mb c'
    """
    line = " ".join(str(text).split())
    for secret in secrets:
        line = _mask(line, secret.strip())
    line = "".join(char if _shown(char) else _escape(char) for char in _KEY_LIKE.sub(MASK, line))
    return line if limit is None or len(line) <= limit else line[: max(0, limit - 1)] + "…"


def _mask(line: str, secret: str) -> str:
    """`line` with every run of the secret's characters, from `_SHORTEST_PART` on, replaced."""
    if len(secret) < _SHORTEST_PART:
        return line.replace(secret, MASK) if secret else line
    parts = {secret[i : i + _SHORTEST_PART] for i in range(len(secret) - _SHORTEST_PART + 1)}
    hidden = bytearray(len(line))
    for i in range(len(line) - _SHORTEST_PART + 1):
        if line[i : i + _SHORTEST_PART] in parts:
            hidden[i : i + _SHORTEST_PART] = b"\x01" * _SHORTEST_PART
    made, before = [], 0
    for char, now in zip(line, hidden, strict=True):
        if not now:
            made.append(char)
        elif not before:
            made.append(MASK)
        before = now
    return "".join(made)


def _shown(char: str) -> bool:
    return char.isprintable() or char == "\u200d"  # which joins emoji


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()
