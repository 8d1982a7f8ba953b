"""The outcome of a check, and the table of all outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from verl.utils.tracking import short

OK, SKIPPED, FAILED = "ok", "skipped", "FAILED"
NAME = 11
HEADER = f"{'check':{NAME}}  size  ranks  seconds  peak GiB  result"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check at one size."""

    check: str
    size: str
    ranks: int
    state: str
    """`OK`, `SKIPPED` or `FAILED`."""
    why: str = ""
    """One line: why it was left out or failed."""
    seconds: float = 0.0
    """Duration of the check itself on the slowest rank; the start of its processes is not counted."""
    peak_gib: float = 0.0
    """Most memory that torch held on the device, on the rank that held most (CPU: of the process)."""
    numbers: dict[str, float] = field(default_factory=dict)
    edges: list[dict[str, Any]] = field(default_factory=list)
    """Memory at the edges of the check, see `place.Place.edge`; of rank 0."""
    trace: str = ""
    """Traceback, or the end of what the process printed."""
    device: str = ""
    died: bool = False
    """A process ended without a word."""


def table(outcomes: Sequence[Outcome], *, seconds: float) -> str:
    """A row a check, the memory at the edges of each, the devices, the counts."""
    edges = ["", "memory in GiB, by torch's tensors / given away by the device:"]
    for outcome in outcomes:
        notes = [f"{e['at']} {e['tensors_gib']:.2f} / {e['device_gib']:.2f}" for e in outcome.edges]
        if notes:
            edges.append(f"{outcome.check:{NAME}}  {outcome.size:4}  {', '.join(notes)}")
    devices = dict.fromkeys(each.device for each in outcomes if each.device)
    counts = ", ".join(f"{sum(each.state == state for each in outcomes)} {state}" for state in (OK, SKIPPED, FAILED))
    return "\n".join([HEADER, *map(row, outcomes), *edges, "", *devices, f"{counts} in {seconds:.0f} s"])


def row(outcome: Outcome) -> str:
    """A line of the table under `HEADER`."""
    ran = outcome.seconds > 0
    seconds, peak = (f"{outcome.seconds:.1f}", f"{outcome.peak_gib:.2f}") if ran else ("–", "–")
    found = outcome.why or ", ".join(f"{name} {short(value)}" for name, value in outcome.numbers.items())
    told = f"{outcome.state} ({found})" if outcome.state == SKIPPED else f"{outcome.state}: {found}"
    return f"{outcome.check:{NAME}}  {outcome.size:4}  {outcome.ranks:5}  {seconds:>7}  {peak:>8}  {told.rstrip(': ')}"
