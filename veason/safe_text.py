"""Makes text from elsewhere fit for a terminal, a log and a file: one line, no control characters, no secrets.

Servers quote the key they refuse, file names and replies may hold terminal escape sequences. Every message that repeats
such text goes through `printable`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "***"
_SHORTEST_PART = 6
"""Characters of a secret that a message may not show in a row."""
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
        line = mask(line, secret.strip())
    line = _KEY_LIKE.sub(MASK, line)
    line = "".join(
        char if char.isprintable() or char == "\u200d" else char.encode("unicode_escape").decode()  # it joins emoji
        for char in line
    )
    return line if limit is None or len(line) <= limit else line[: max(0, limit - 1)] + "…"


def mask(text: str, secret: str, *, run: int = _SHORTEST_PART) -> str:
    """`text` with every run of `run` or more characters of the secret replaced; a shorter secret counts as a whole.

    >>> mask("the key ends in 89abcdef, I think", "0123456789abcdef")
    'the key ends in ***, I think'
    """
    if len(secret) < run:
        return text.replace(secret, MASK) if secret else text
    parts = {secret[i : i + run] for i in range(len(secret) - run + 1)}
    if not any(part in text for part in parts):
        return text
    hidden = bytearray(len(text))
    for i in range(len(text) - run + 1):
        if text[i : i + run] in parts:
            hidden[i : i + run] = b"\x01" * run
    made, before = [], 0
    for char, now in zip(text, hidden, strict=True):
        if not now:
            made.append(char)
        elif not before:
            made.append(MASK)
        before = now
    return "".join(made)
