"""What is printed and written about the checks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from verl.gpu_check.plan import CHECKS, FAILED, OK, SKIPPED, Outcome
from verl.utils.tracking import short

NAME = max(len(check.name) for check in CHECKS)
HEADER = f"{'check':{NAME}}  size  ranks  seconds  peak GiB  result"


def row(outcome: Outcome) -> str:
    """A line of the table under `HEADER`."""
    ran = outcome.seconds > 0
    seconds, peak = (f"{outcome.seconds:.1f}", f"{outcome.peak_gib:.2f}") if ran else ("–", "–")
    found = ", ".join(f"{name} {short(value)}" for name, value in outcome.numbers.items())
    told = (
        f"{outcome.state} ({outcome.why})" if outcome.state == SKIPPED else f"{outcome.state}: {outcome.why or found}"
    )
    return f"{outcome.check:{NAME}}  {outcome.size:4}  {outcome.ranks:5}  {seconds:>7}  {peak:>8}  {told.rstrip(': ')}"


def edges(outcomes: Iterable[Outcome]) -> str:
    """Memory at each edge of each check, a line a check."""
    lines = ["memory in GiB, by torch's tensors / given away by the device:"]
    for outcome in outcomes:
        notes = [f"{e['at']} {e['tensors_gib']:.2f} / {e['device_gib']:.2f}" for e in outcome.edges]
        if notes:
            lines.append(f"{outcome.check:{NAME}}  {outcome.size:4}  {', '.join(notes)}")
    return "\n".join(lines)


def failures(outcomes: Iterable[Outcome]) -> str:
    """What is known of each failure."""
    told = [each for each in outcomes if each.state == FAILED and each.trace]
    return "\n\n".join(f"== {each.check} {each.size}\n{each.trace.strip()}" for each in told)


def summary(outcomes: Sequence[Outcome], *, seconds: float) -> str:
    counts = {state: sum(each.state == state for each in outcomes) for state in (OK, SKIPPED, FAILED)}
    return ", ".join(f"{count} {state}" for state, count in counts.items()) + f" in {seconds:.0f} s"


def write_json(path: Path, outcomes: Sequence[Outcome]) -> None:
    """All that is known so far, in one go: a reader finds the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n")
    os.replace(partial, path)
