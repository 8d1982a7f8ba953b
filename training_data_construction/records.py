"""Defines the chain-of-thought record: the teacher's frames, its words, and the reply that the policy learns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veason import answer, prompt
from veason.answer import format_reply
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.files import load_json
from veason.types import Answer, Clip, VideoSample

FIELDS = (
    "video", "exp", "obj_id", "anno_id", "exp_id", "length", "frame_ids", "sampled_video_frames", "model_size", "CoT",
    "solution", "conversation",
)  # fmt: skip
"""Keys of a record on disk: those of the released file, and the model size that its boxes are in."""


@dataclass(frozen=True)
class CotRecord:
    """One sample with its reasoning and its answer, the answer from ground truth."""

    sample: VideoSample
    clip: Clip
    """The frames that the teacher saw, at the size that the policy will see them."""
    thinking: str
    """The teacher's words."""
    answer: Answer
    """Keyframe and true boxes, one per object that is visible there, in the model family's answer space."""

    @property
    def reply(self) -> str:
        """The reply that the policy learns."""
        return format_reply(self.thinking, self.answer)

    def to_json(self, *, template: str | None = None) -> dict[str, Any]:
        """Returns the record in its form on disk; `template` is that of the prompt."""
        shown = [self.sample.frames[t] for t in self.clip.frame_ids]
        question = prompt.text(self.sample.expression, self.clip, template=template)
        reply = self.reply
        return {
            "video": self.sample.video,
            "exp": self.sample.expression,
            "obj_id": list(self.sample.obj_ids),
            "anno_id": list(self.sample.anno_ids),
            "exp_id": self.sample.exp_id,
            "length": len(self.sample),
            "frame_ids": list(self.clip.frame_ids),
            "sampled_video_frames": shown,
            "model_size": list(self.clip.size),
            "CoT": self.thinking,
            "solution": json.loads(reply[reply.rindex("<answer>") + len("<answer>") : -len("</answer>")]),
            "conversation": [{"from": "human", "value": question}, {"from": "gpt", "value": reply}],
        }


def read_records(path: str | Path, dataset: Dataset) -> Iterator[CotRecord]:
    """Reads the records of a file and joins them with the samples of the data set that they were made from.

    A DataError names the record and its fault: an unknown sample, frames that are not the video's, no valid answer.
    """
    path = Path(path)
    records = load_json(path, hint="make it with seed_cot_generation.py")
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a list of records, found {type(records).__name__}")
    by_key = {sample.key: i for i, sample in enumerate(dataset)}
    for number, record in enumerate(records):
        yield _read_record(record, f"{path}: record {number}", dataset, by_key)


def _read_record(record: Any, where: str, dataset: Dataset, by_key: dict[str, int]) -> CotRecord:
    missing = [field for field in FIELDS if not isinstance(record, dict) or field not in record]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}")
    key = f"{record['video']}/{record['exp_id']}"
    if key not in by_key:
        raise DataError(f"{where}: {key!r} is not in {dataset.files['meta']}")
    sample = dataset[by_key[key]]
    ids, size = record["frame_ids"], record["model_size"]
    ascending = isinstance(ids, list) and ids and all(type(t) is int and 0 <= t < len(sample) for t in ids)
    if not ascending or ids != sorted(set(ids)):
        raise DataError(f"{where}: frame_ids {str(ids)[:80]} are not ascending frames of a video of {len(sample)}")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise DataError(f"{where}: model_size {str(size)[:80]} is not [height, width]")
    clip = Clip(frame_ids=tuple(ids), size=(size[0], size[1]))
    try:
        thinking = record["CoT"]
        reply = f"<think></think><answer>{json.dumps(record['solution'], allow_nan=False)}</answer>"
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: its solution is not JSON ({error})") from error
    parsed = answer.place(answer.parse_reply(reply), clip)
    if parsed.problem or parsed.answer is None:
        raise DataError(f"{where}: its solution is no answer: {parsed.detail or parsed.problem}")
    if not isinstance(thinking, str):
        raise DataError(f"{where}: CoT is {type(thinking).__name__}, expected a string")
    return CotRecord(sample=sample, clip=clip, thinking=thinking, answer=parsed.answer)
