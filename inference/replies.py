"""Judges the replies of a run: a summary at its end, an early stop where none is usable, and the remedies for both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from veason.answer import PROBLEMS, REPAIRS
from veason.early_stop import EarlyStop
from veason.errors import DataError
from veason.safe_text import printable

FIRST = 32
"""The number of replies after which a run stops if all of them had the same problem and none was usable."""
FEW = 0.1
"""The share of usable replies below which a run's summary names a remedy."""

_FORMAT = (
    "the model does not answer in the format it is asked for: is it the checkpoint you mean, and is it asked as it was "
    "trained (--frames, --model-size, --prompt-template)?"
)
_HINTS = {
    "answer_not_closed": "replies are cut off: raise --max-new-tokens",
    "keyframe_not_shown": "it names frames that were not shown: does --frames differ from its training?",
    "no_answer": f"{_FORMAT} Or it is cut off while it thinks: raise --max-new-tokens",
}


def answered(record: dict[str, Any]) -> bool:
    """Tells whether a line of predictions has a keyframe with boxes, or says clearly that there is no target."""
    return bool(record["boxes"]) or record["problem"] == "no_boxes"


class Watch:
    """Counts the first replies of a run and stops it if all of them have the same problem."""

    def __init__(self) -> None:
        self._first = EarlyStop(FIRST)

    def add(self, record: dict[str, Any]) -> None:
        """Counts a line of predictions; DataError if it is the last of the first `FIRST` and none was usable."""
        if self._first.add(None if answered(record) else record["problem"]):
            problem, shown = record["problem"], printable(record["reply"], limit=200)
            raise DataError(
                f"none of the first {FIRST} replies was usable, all for one reason: {problem} "
                f"({PROBLEMS[problem]}); the last one was {shown!r}. {hint(problem)}. What is finished is kept; "
                "--keep-going goes on in spite of it"
            )


def hint(problem: str) -> str:
    """Returns the remedy for a problem that most replies have."""
    return _HINTS.get(problem, _FORMAT)


def summary(records: Iterable[dict[str, Any]], name: str) -> Iterator[str]:
    """Writes lines for a terminal about a run's predictions: problems, readings, a hint if hardly any was usable."""
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
