"""Which expressions a comparison shows: the largest gains from first to last run, typical ones, and losses too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inference.compare_runs import Entry

ABSENT_FROM = 6
"""Examples from which on one is of an absent target, if there are any."""
NOTE = (
    "Chosen by the change of J&F from the first run to the last: the largest gains and losses (one of each video "
    "before a second of any), and between them expressions evenly spaced in the order of all changes."
)


@dataclass(frozen=True)
class Example:
    """An expression that is shown, and why."""

    entry: Entry
    kind: str
    """gain, typical, loss, or absent"""


def choose(entries: Sequence[Entry], n: int) -> list[Example]:
    """At most `n` examples: a quarter losses, a quarter typical, one without a target, the others gains.

    Where gains or losses are too few, typical ones take their places. The same for the same entries.
    """
    quarter = n // 4
    present = sorted((entry for entry in entries if entry.targets), key=lambda entry: -entry.change)
    absent = sorted((entry for entry in entries if not entry.targets), key=lambda entry: -abs(entry.change))
    absent = absent[: max(int(n >= ABSENT_FROM), n - len(present))]
    room = n - len(absent)
    gains = _spread(entry for entry in present if entry.change > 0)[: room - 2 * quarter]
    losses = _spread(entry for entry in reversed(present) if entry.change < 0)[:quarter]
    shown = {entry.sample.key for entry in (*gains, *losses)}
    typical = _evenly([e for e in present if e.sample.key not in shown], room - len(shown))
    kinds = (("gain", gains), ("typical", typical), ("loss", losses), ("absent", absent))
    return [Example(entry, kind) for kind, members in kinds for entry in members]


def _spread(ranked: Iterable[Entry]) -> list[Entry]:
    """`ranked` with the first of every video before the second of any."""
    seen: Counter[str] = Counter()
    rounds = []
    for entry in ranked:
        rounds.append((seen[entry.sample.video], entry))
        seen[entry.sample.video] += 1
    return [entry for _, entry in sorted(rounds, key=lambda pair: pair[0])]


def _evenly(ranked: Sequence[Entry], n: int) -> list[Entry]:
    """`n` of `ranked` at the middles of `n` equal parts, or all."""
    n = min(n, len(ranked))
    return [ranked[(2 * i + 1) * len(ranked) // (2 * n)] for i in range(n)]
