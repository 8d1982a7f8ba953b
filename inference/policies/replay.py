"""Answers with recorded replies: a run's ``predictions.jsonl``, or a few boxes written by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from veason import boxes, frames
from veason.answer import MAX_COORDINATE, format_reply
from veason.errors import DataError
from veason.family import BY_MODEL_TYPE, QWEN2_5_VL
from veason.files import foreign_content, read_head
from veason.types import Answer, Box, Clip, Question, Size, VideoSample


class ReplayPolicy:
    """Gives the replies of a predictions file: one JSON object a line, with ``video`` and ``exp_id`` and either

    - ``reply``, ``frame_ids`` and ``model_size`` as `inference.predict` writes them: the same text on the same clip; or
    - ``keyframe`` (frame id) and ``boxes`` (xyxy in **video** pixels): what a person would write by hand.
    """

    name = "replay"
    looks = False

    def __init__(self, records: Sequence[dict[str, Any]], *, source: str, n: int, size: Size) -> None:
        """Takes the number of frames to show, `n`, and their model size for records without a clip of their own."""
        self._source, self._n, self._size = source, n, size
        self._records = {f"{record.get('video')}/{record.get('exp_id')}": record for record in records}
        if len(self._records) < len(records):
            raise DataError(f"{source}: {len(records)} lines for {len(self._records)} samples; keep one line for each")
        names = {str(record.get("family", QWEN2_5_VL.name)) for record in records}
        known = {family.name: family for family in BY_MODEL_TYPE.values()}
        if len(names) != 1 or not names <= known.keys():
            raise DataError(f"{source}: expected records of one known model family, found {sorted(names)}")
        self.family = known[names.pop()]

    @classmethod
    def from_file(cls, path: str | Path, *, n: int, size: Size) -> ReplayPolicy:
        return cls(read_records(path), source=str(path), n=n, size=size)

    def _record(self, sample: VideoSample) -> dict[str, Any]:
        if sample.key not in self._records:
            raise DataError(f"{self._source}: nothing is recorded for {sample.key}; record it or narrow the run")
        return self._records[sample.key]

    def choose_clip(self, sample: VideoSample) -> Clip:
        record, where = self._record(sample), f"{self._source}: {sample.key}"
        if "reply" in record and "frame_ids" in record:
            size = record.get("model_size", list(self._size))
            return Clip(frame_ids=_frame_ids(record["frame_ids"], len(sample), where), size=_size(size, where))
        shown = set(frames.linspace(len(sample), self._n))
        if type(record.get("keyframe")) is int:
            shown.add(_frame_ids([record["keyframe"]], len(sample), where)[0])
        return Clip(frame_ids=tuple(sorted(shown)), size=self._size)

    def answer(self, questions: Sequence[Question], *, seed: int) -> list[str]:
        replies = []
        for question in questions:
            record, where = self._record(question.sample), f"{self._source}: {question.sample.key}"
            reply, keyframe = record.get("reply"), record.get("keyframe")
            if not isinstance(reply, str):
                if type(keyframe) is not int:
                    raise DataError(f"{where}: needs a reply, or a keyframe (frame id) and boxes in video pixels")
                to_size = self.family.answer_size(question.clip.size)
                scaled = boxes.rescale(_boxes(record.get("boxes"), where), question.sample.size, to_size)
                reply = format_reply("Replayed.", Answer(keyframe=keyframe, boxes=scaled))
            replies.append(reply)
        return replies

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "replay": self._source}


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Reads the records of a predictions file; a DataError names the file and the line that is no record.

    A last line without its line feed counts, since people write such files by hand. If it is no record, the file is cut
    off.
    """
    path = Path(path)
    head = read_head(path)
    found = foreign_content(head)
    if found:
        raise DataError(f"{path}: not a predictions file but {found}")
    records = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                cut = "" if line.endswith(b"\n") else "; the file is cut off: copy it again"
                raise DataError(f"{path}:{number}: not a JSON record: {error}{cut}") from error
            if not isinstance(record, dict):
                raise DataError(
                    f"{path}:{number}: expected a JSON object a line, such as predictions.jsonl has, found "
                    f"{type(record).__name__}"
                )
            records.append(record)
    return records


def _frame_ids(value: object, length: int, where: str) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else []
    if not ids or not all(type(t) is int and 0 <= t < length for t in ids):
        raise DataError(f"{where}: frame ids must be ints from 0 to {length - 1}, found {str(value)[:80]}")
    return tuple(ids)


def _size(value: object, where: str) -> Size:
    sides = value if isinstance(value, list) else []
    if len(sides) != 2 or not all(type(side) is int and 0 < side < 1 << 15 for side in sides):
        raise DataError(f"{where}: model_size must be [height, width], found {str(value)[:80]}")
    return (sides[0], sides[1])


def _boxes(value: object, where: str) -> list[Box]:
    found: list[Box] = []
    for entry in value if isinstance(value, list) else [None]:
        numbers = entry if isinstance(entry, list) and len(entry) == 4 else [math.nan]
        if not all(type(v) in (int, float) and abs(v) <= MAX_COORDINATE for v in numbers):  # false for NaN
            raise DataError(f"{where}: boxes must be [[x1, y1, x2, y2], …] in video pixels, found {str(value)[:80]}")
        x1, y1, x2, y2 = map(float, numbers)
        if x2 < x1 or y2 < y1:
            raise DataError(f"{where}: the box {entry} has its second corner left of or above its first one")
        found.append((x1, y1, x2, y2))
    return found
