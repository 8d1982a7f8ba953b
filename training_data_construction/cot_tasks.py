"""Plans the task about one expression: its keyframe, the shown frames, the true boxes. No pixels.

Everything here depends on the seed and the sample alone, so that a run can stop and resume at any sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from veason import boxes, frames, ground_truth, prompt
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.family import QWEN2_5_VL
from veason.types import Answer, Box, Clip, Size, VideoSample

ABSENT = 2
"""Type of the expressions without a target, for which there is nothing to reason about."""


@dataclass(frozen=True)
class Rules:
    """Settings by which a sample becomes a task."""

    seed: int
    frames: int = 8
    """Most frames that are shown."""
    model_size: Size = (560, 560)
    """(height, width) of the frames as the policy will see them; the answer's boxes are in these pixels."""
    box_decimals: int = 2


@dataclass(frozen=True)
class CotTask:
    """The task about one expression."""

    sample: VideoSample
    clip: Clip
    """The shown frames; the keyframe is one of them."""
    answer: Answer
    """Keyframe and true boxes on it, in model pixels."""
    boxes: tuple[tuple[Box, ...], ...]
    """Per shown frame the boxes of the objects that are in it, in native pixels; they are drawn for the teacher."""


def choose(
    samples: Iterable[VideoSample], *, per_video: int, seed: int, exclude: frozenset[str] = frozenset()
) -> tuple[list[int], Counter[str]]:
    """Chooses the samples to ask about: their numbers, ascending, and the count of those left out by reason.

    Each video gives at most `per_video` samples, drawn by (seed, video). An expression that no prompt can hold is a
    DataError here, before the first answer is paid for.
    """
    left_out: Counter[str] = Counter()
    by_video: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        if sample.key in exclude:
            left_out["excluded"] += 1
        elif sample.type_id == ABSENT:
            left_out["absent target"] += 1
        else:
            try:
                prompt.normalise(sample.expression)
            except DataError as error:
                raise DataError(f"{sample.key}: {error}") from error
            by_video.setdefault(sample.video, []).append(number)
    chosen: list[int] = []
    for video, numbers in by_video.items():
        left_out["over the limit per video"] += max(0, len(numbers) - per_video)
        chosen += Random(f"{seed}/{video}").sample(numbers, min(per_video, len(numbers)))
    return sorted(chosen), +left_out


def plan(dataset: Dataset, number: int, rules: Rules) -> CotTask | None:
    """Plans the task of sample `number`; None if its target is in no frame. Reads the masks without decoding them."""
    sample = dataset[number]
    tracks = dataset.object_rles(sample)
    areas = ground_truth.areas(tracks, len(sample))
    if not any(areas):
        return None
    keyframe = frames.draw_keyframe(areas, Random(f"{rules.seed}/{sample.key}"))
    clip = Clip(frame_ids=keyframe_grid(len(sample), rules.frames, keyframe=keyframe), size=rules.model_size)
    shown = tuple(tuple(_visible(tracks, t)) for t in clip.frame_ids)
    found = tuple(
        to_model(box, sample.size, rules.model_size, decimals=rules.box_decimals) for box in _visible(tracks, keyframe)
    )
    return CotTask(sample=sample, clip=clip, answer=Answer(keyframe=keyframe, boxes=found), boxes=shown)


def _visible(tracks: ground_truth.Tracks, frame_id: int) -> list[Box]:
    """Returns the boxes of the objects that are in a frame, each from its own mask, in the order of the objects."""
    return [box for box in ground_truth.boxes(tracks, frame_id) if box is not None]


def keyframe_grid(length: int, n: int, *, keyframe: int) -> tuple[int, ...]:
    """Returns the uniform grid of min(n, length) frame ids that holds `keyframe`, ascending.

    The step is length / n, and ids are rounded down: gaps differ by one at most. The whole step of `frames.train_grid`
    would lose up to half of the frames of a short video.
    """
    if n < 1:
        raise ValueError(f"a grid needs at least one frame, got n = {n}")
    if not 0 <= keyframe < length:
        raise ValueError(f"keyframe {keyframe} is not a frame of a video of {length}")
    if length <= n:
        return tuple(range(length))
    first = -(keyframe * n // length)  # the first step whose frame is not before the video
    return tuple(keyframe + step * length // n for step in range(first, first + n))


def to_model(box: Box, size: Size, model_size: Size, *, decimals: int) -> Box:
    """Converts a native box of a picture of `size` to the answer's: the reward's true box, clipped to the picture.

    Near the right and lower border of a shrunk picture the reward's box is up to a pixel outside.
    """
    height, width = QWEN2_5_VL.answer_size(model_size)
    x1, y1, x2, y2 = boxes.true_box(box, size, (height, width))
    inside = (min(x1, width - 1), min(y1, height - 1), min(x2, width - 1), min(y2, height - 1))
    return tuple(round(float(value), decimals) for value in inside)  # type: ignore[return-value]
