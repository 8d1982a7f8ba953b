"""How a run's replies fared: a table at its end, a stop where none is usable, and what to try then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from veason.answer import PROBLEMS, REPAIRS
from veason.early_stop import EarlyStop
from veason.errors import DataError
from veason.safe_text import printable

FIRST = 32
"""Replies after which a run stops if none of them was usable and all were unfit for one reason."""
FEW = 0.1
"""Share of usable replies below which a run's summary says what to try."""

_FORMAT = (
    "the model does not answer in the format it is asked for: is it the checkpoint you mean, and is it asked as it was "
    "trained (--frames, --model-size, --prompt-template)?"
)
_HINTS = {
    "answer_not_closed": "replies are cut off: raise --max-new-tokens",
    "keyframe_not_shown": "it names frames that it was not shown: is it asked as it was trained (--frames)?",
    "no_answer": f"{_FORMAT} Or it is cut off while it thinks: raise --max-new-tokens",
}


def answered(record: dict[str, Any]) -> bool:
    """A line of predictions has a keyframe with boxes, or says clearly that there is no target."""
    return bool(record["boxes"]) or record["problem"] == "no_boxes"


class Watch:
    """Counts replies as they come, and stops a run all of whose first replies are unfit for one reason."""

    def __init__(self) -> None:
        self._first = EarlyStop(FIRST)

    def add(self, record: dict[str, Any]) -> None:
        """Count a line of predictions; DataError where it is the last of `FIRST` that nothing can be made of."""
        if self._first.add(None if answered(record) else record["problem"]):
            problem, shown = record["problem"], printable(record["reply"], limit=200)
            raise DataError(
                f"none of the first {FIRST} replies was usable, all for one reason: {problem} "
                f"({PROBLEMS[problem]}); the last one was {shown!r}. {hint(problem)}. What came is kept; "
                "--keep-going goes on in spite of it"
            )


def hint(problem: str) -> str:
    """A remedy to try against a problem that most replies have."""
    return _HINTS.get(problem, _FORMAT)


def summary(records: Iterable[dict[str, Any]], name: str) -> Iterator[str]:
    """Lines for a terminal about all predictions of a run: problems, readings, and a hint if hardly any was usable."""
    problems: Counter[str | None] = Counter()
    repairs: Counter[str] = Counter()
    usable = lenient = 0
    for record in records:
        problems[record["problem"]] += 1
        usable += answered(record)
        lenient += record.get("reading") == "lenient"
        repairs.update(record.get("repairs", ()))
    yield f"{name}: {problems.total()} expressions, {problems[None]} answered without a problem"
    yield from (f"  {count:6d}  {problem}" for problem, count in problems.most_common() if problem is not None)
    if lenient:
        yield f"replies read: {problems.total() - lenient} strictly, {lenient} leniently (--reading), where"
        yield from (f"  {count:6d}  {REPAIRS.get(repair, repair)}" for repair, count in repairs.most_common())
    if usable < FEW * problems.total():
        worst = [(problem, count) for problem, count in problems.most_common() if problem is not None]
        often = ", ".join(f"{problem} ({count})" for problem, count in worst[:3])
        yield (
            f"hardly any reply was usable: {usable} of {problems.total()}, so most masks are empty; most often "
            f"{often}. {hint(worst[0][0])}"
        )
