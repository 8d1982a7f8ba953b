"""A run folder read back: its settings, what it says of each expression, where its time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veason.atomic import read_journal
from veason.datasets.base import check_name
from veason.errors import DataError
from veason.files import foreign_content, load_json, read_head
from veason.types import Box

_LARGEST = 1e12
"""Beyond any pixel or second."""


@dataclass(frozen=True)
class Outcome:
    """A line of ``predictions.jsonl``, checked."""

    video: str
    exp_id: str
    expression: str
    frame_ids: tuple[int, ...]
    """Frames the policy was shown."""
    keyframe: int | None
    boxes: tuple[Box, ...]
    """In video pixels."""
    problem: str | None
    detail: str
    thinking: str | None
    reply: str
    repairs: tuple[str, ...] = ()
    """What a lenient reading of the reply forgave; empty where it was read strictly, as in runs of before."""

    @property
    def key(self) -> str:
        return f"{self.video}/{self.exp_id}"


@dataclass(frozen=True)
class Run:
    """A run folder, opened: ``run.json`` in memory, the rest read line by line when asked for."""

    path: Path
    settings: dict[str, Any]
    versions: dict[str, Any]

    def outcomes(self) -> Iterator[Outcome]:
        """What the run says, in the order of the data set; the lines of an unfinished run so far."""
        for number, record in enumerate(_read_lines(self.path / "predictions.jsonl"), start=1):
            yield _outcome(record, f"{self.path / 'predictions.jsonl'}:{number}")

    def problems(self) -> Counter[str | None]:
        """How many expressions had which problem; None counts those without."""
        return Counter(outcome.problem for outcome in self.outcomes())

    def repairs(self) -> Counter[str]:
        """How many replies were read leniently, by what was forgiven; one reply may need several."""
        return Counter(name for outcome in self.outcomes() for name in outcome.repairs)

    def seconds(self) -> dict[str, float]:
        """Mean seconds an expression took, by stage; empty without ``timings.jsonl``."""
        path = self.path / "timings.jsonl"
        sums: Counter[str] = Counter()
        lines = 0
        for lines, record in enumerate(_read_lines(path) if path.is_file() else (), start=1):
            stages = record.get("seconds")
            if not isinstance(stages, dict) or not all(_is_number(value) for value in stages.values()):
                raise DataError(f"{path}:{lines}: seconds must map stages to numbers, found {str(stages)[:80]}")
            sums.update(stages)
        return {stage: total / lines for stage, total in sums.items()}


def open_run(path: Path) -> Run:
    """The run in a folder that `inference.predict` wrote; a DataError for any other folder."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; expected a run folder as inference.predict writes")
    if not (path / "predictions.jsonl").is_file():
        remedy = "run the shards that are left" if (path / "shards").is_dir() else "expected a run of inference.predict"
        raise DataError(f"{path}: holds no predictions.jsonl; {remedy}")
    record = load_json(path / "run.json", hint="expected a run of inference.predict")
    parts = [record.get(name) if isinstance(record, dict) else None for name in ("settings", "versions")]
    if not all(isinstance(part, dict) for part in parts):
        raise DataError(f"{path / 'run.json'}: expected an object with settings and versions, found {str(record)[:80]}")
    return Run(path=path, settings=parts[0], versions=parts[1])


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    found = foreign_content(read_head(path) or b"\n")  # an empty file has no lines
    if found:
        raise DataError(f"{path}: not lines of a run but {found}")
    try:
        yield from read_journal(path)
    except ValueError as error:
        raise DataError(f"{error}; predict again into a new folder") from error


def _outcome(record: dict[str, Any], where: str) -> Outcome:
    keyframe, boxes = record.get("keyframe"), record.get("boxes")
    if not (keyframe is None or type(keyframe) is int):
        raise DataError(f"{where}: keyframe must be a frame id or null, found {str(keyframe)[:80]!r}")
    if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
        raise DataError(f"{where}: boxes must be [[x1, y1, x2, y2], …], found {str(boxes)[:80]}")
    frame_ids = record.get("frame_ids")
    if not isinstance(frame_ids, list) or not all(type(t) is int for t in frame_ids):
        raise DataError(f"{where}: frame_ids must be a list of ints, found {str(frame_ids)[:80]}")
    return Outcome(
        video=check_name(record.get("video"), f"{where}: video", slashes=True),
        exp_id=check_name(record.get("exp_id"), f"{where}: exp_id"),
        expression=_text(record, "expression", where),
        frame_ids=tuple(frame_ids),
        keyframe=keyframe,
        boxes=tuple(tuple(map(float, box)) for box in boxes),
        problem=_text(record, "problem", where, optional=True),
        detail=_text(record, "detail", where),
        thinking=_text(record, "thinking", where, optional=True),
        reply=_text(record, "reply", where),
        repairs=tuple(_texts(record.get("repairs", []), f"{where}: repairs")),
    )


def _texts(value: object, where: str) -> list[str]:
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return value
    raise DataError(f"{where} must be a list of texts, found {str(value)[:80]}")


def _text(record: dict[str, Any], name: str, where: str, *, optional: bool = False) -> Any:
    value = record.get(name)
    if isinstance(value, str) or (optional and value is None):
        return value
    raise DataError(f"{where}: {name} must be a text, found {str(value)[:80]!r}")


def _is_box(box: object) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST  # false for NaN
