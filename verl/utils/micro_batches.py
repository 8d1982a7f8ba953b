"""Which rows go through the model together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

Size = tuple[int, int]
"""(prompt tokens, reply tokens) of a row."""


def by_count(rows: int, size: int) -> list[list[int]]:
    """Neighbours, `size` at a time."""
    return [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]


def by_tokens(sizes: Sequence[Size], max_tokens: int) -> list[list[int]]:
    """As few micro-batches of at most `max_tokens` as rows in order of prompt length allow, then as even as that number
    allows. Padding counts as tokens; replies to one prompt stay together. A row that is too long is alone."""
    if not sizes:
        return []
    order = sorted(range(len(sizes)), key=lambda row: (-sizes[row][0], row))
    count = len(_fill(order, sizes, max_tokens))
    even = bisect_left(range(max_tokens), True, key=lambda limit: len(_fill(order, sizes, limit)) <= count)
    return _fill(order, sizes, even)


def padded_tokens(sizes: Sequence[Size]) -> int:
    """Tokens of a batch of such rows: prompts padded to the longest prompt, replies to the longest reply."""
    return len(sizes) * (max(prompt for prompt, _ in sizes) + max(reply for _, reply in sizes))


def _fill(order: Sequence[int], sizes: Sequence[Size], limit: int) -> list[list[int]]:
    parts: list[list[int]] = []
    for row in order:
        if parts and padded_tokens([sizes[r] for r in [*parts[-1], row]]) <= limit:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts
