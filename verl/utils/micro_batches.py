"""Which rows go through the model together.

Rows of one group share what they have in common: its prompt is read once per micro-batch. Where nothing is shared,
every row is a group of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence

Size = tuple[int, int]
"""(prompt tokens, reply tokens) of a row."""


def by_count(groups: Sequence[Hashable], size: int) -> list[list[int]]:
    """At most `size` rows at a time, group after group. A group begins a new micro-batch rather than being cut: one
    pass more is less work than a prompt read twice."""
    parts: list[list[int]] = []
    for rows in _members(groups):
        if parts and len(parts[-1]) + len(rows) <= size:
            parts[-1] += rows
        else:
            parts += [rows[start : start + size] for start in range(0, len(rows), size)]
    return parts


def by_tokens(sizes: Sequence[Size], groups: Sequence[Hashable], max_tokens: int) -> list[list[int]]:
    """As few micro-batches of at most `max_tokens` as rows in order of prompt length and group allow, then as even as
    that number allows, which leaves most groups whole. Padding counts as tokens. A row that is too long is alone."""
    if not sizes:
        return []
    members = sorted(_members(groups), key=lambda rows: -sizes[rows[0]][0])
    order = [row for rows in members for row in rows]

    def tokens(rows: Sequence[int]) -> int:
        return tokens_of([sizes[row] for row in rows], [groups[row] for row in rows])

    count = len(_fill(order, tokens, max_tokens))
    even = bisect_left(range(max_tokens), True, key=lambda limit: len(_fill(order, tokens, limit)) <= count)
    return _fill(order, tokens, even)


def tokens_of(sizes: Sequence[Size], groups: Sequence[Hashable]) -> int:
    """Tokens of a micro-batch of such rows. As soon as two share a prompt, it is packed: each prompt once, each reply,
    no padding. Otherwise prompts are padded to the longest prompt, replies to the longest reply."""
    prompts = {group: prompt for group, (prompt, _) in zip(groups, sizes, strict=True)}
    if len(prompts) < len(sizes):
        return sum(prompts.values()) + sum(reply for _, reply in sizes)
    return len(sizes) * (max(prompt for prompt, _ in sizes) + max(reply for _, reply in sizes))


def _members(groups: Sequence[Hashable]) -> list[list[int]]:
    """The rows of each group, groups in order of their first row."""
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return list(rows.values())


def _fill(order: Sequence[int], tokens: Callable[[Sequence[int]], int], limit: int) -> list[list[int]]:
    parts: list[list[int]] = []
    for row in order:
        if parts and tokens([*parts[-1], row]) <= limit:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts
