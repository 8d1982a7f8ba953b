"""The records that the whole project uses. Read this file first.

Conventions, everywhere in the project:

- a size is ``(height, width)`` in pixels, as NumPy shapes and COCO RLEs have it;
- a box is ``(x1, y1, x2, y2)``, inclusive pixel corners, x to the right and y down, origin in the top-left pixel;
- a frame id is the index of a frame in its video, 0 … T-1: neither a position in a clip nor the number in a file name;
- frames are ``(H, W, 3)`` uint8 RGB arrays, masks ``(H, W)`` bool arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np

Size = tuple[int, int]
"""(height, width) in pixels."""

Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2): inclusive pixel corners."""


class Rle(TypedDict):
    """COCO compressed run-length encoding of one mask; column-major, as pycocotools reads and writes it."""

    size: list[int]
    """[height, width]"""
    counts: str
    """The compressed runs, ASCII."""


@dataclass(frozen=True)
class VideoSample:
    """One expression about one video, as a benchmark has it. Holds no pixels and no masks."""

    dataset: str
    video: str
    """Key of the video in its data set; may contain slashes (``UVO/all/-abc``), never leaves the image root."""
    exp_id: str
    expression: str
    frames: tuple[str, ...]
    """Frame names without suffix, sorted; the index of a name is the frame id."""
    frame_dir: Path
    """Folder of the frames."""
    size: Size
    """Native (height, width) of the video."""
    type_id: int | None = None
    """0 referring, 1 reasoning, 2 absent target; None where the benchmark has no types."""
    obj_ids: tuple[int | str, ...] = ()
    anno_ids: tuple[int | str, ...] = ()
    """Ids of the target's mask tracks, parallel to obj_ids; empty where the target is absent or unknown."""
    suffix: str = ".jpg"

    def __len__(self) -> int:
        """Number of frames T."""
        return len(self.frames)

    @property
    def key(self) -> str:
        """``video/exp_id``: unique within a split, and the sample's folder below ``Annotations``."""
        return f"{self.video}/{self.exp_id}"

    def frame_path(self, frame_id: int) -> Path:
        return self.frame_dir / f"{self.frames[frame_id]}{self.suffix}"


@dataclass(frozen=True)
class Clip:
    """The few frames of a video that the policy is shown."""

    frame_ids: tuple[int, ...]
    """Ascending ids of the shown frames."""
    size: Size
    """Model (height, width), to which every frame is resized before the policy sees it."""

    def __len__(self) -> int:
        return len(self.frame_ids)

    def position(self, frame_id: int) -> int | None:
        """Index of `frame_id` among the shown frames; None if the frame was not shown."""
        return self.frame_ids.index(frame_id) if frame_id in self.frame_ids else None


@dataclass(frozen=True)
class Answer:
    """The answer of a policy: a keyframe, and the boxes of the target in it."""

    keyframe: int
    """Frame id in the video, not a clip index."""
    boxes: tuple[Box, ...]
    """Boxes on the keyframe, in the model family's answer space (Qwen2.5-VL: model pixels)."""


@dataclass(frozen=True)
class Reply:
    """A policy's whole reply, parsed: the usable answer, the last step of reading that succeeded, the first problem."""

    text: str
    thinking: str | None = None
    """Text of the think block; None if there is none."""
    answer: Answer | None = None
    """Present as soon as keyframe and box list could be read; its boxes are the valid entries only."""
    entries: int = 0
    """Number of entries in ``bbox_2d_list``, valid or not."""
    well_formed: bool = False
    """The whole reply is a think block, optional white space, an answer block, and nothing else."""
    reached: str = "text"
    """The last step that succeeded, one of `veason.answer.STAGES`."""
    problem: str | None = None
    """Code of the first thing wrong (`veason.answer.PROBLEMS`), None if nothing is."""
    detail: str = ""
    """One sentence on the problem, for a person."""
    repairs: tuple[str, ...] = ()
    """The faults that a lenient reading forgave (`veason.answer.REPAIRS`); empty where the strict reading counts."""

    @property
    def usable(self) -> bool:
        """There is a keyframe and at least one box to prompt a tracker with."""
        return self.answer is not None and bool(self.answer.boxes)


@dataclass(frozen=True)
class MaskTrack:
    """Masks of N objects over T frames, per object and compressed; `veason.masks.track_union` gives their union."""

    size: Size
    objects: tuple[tuple[Rle, ...], ...]
    """N objects x T frames, in the order of the boxes that prompted them."""
    length: int
    """T; needed where there is no object."""

    def __post_init__(self) -> None:
        for rles in self.objects:
            assert len(rles) == self.length, f"a track of {len(rles)} masks in a video of {self.length} frames"

    @classmethod
    def empty(cls, size: Size, length: int) -> MaskTrack:
        """The track of no object: an empty mask in every frame."""
        return cls(size=size, objects=(), length=length)


@dataclass(frozen=True)
class Prediction:
    """The result of inference for one sample."""

    sample: VideoSample
    clip: Clip
    family: str
    """Name of the model family (`veason.family`) whose box convention the reply uses."""
    reply: Reply
    keyframe: int | None
    """Frame id; None without a usable answer."""
    boxes: tuple[Box, ...]
    """Boxes on the keyframe in **video** pixels; empty without a usable answer."""
    track: MaskTrack = field(repr=False)


@dataclass(frozen=True)
class Question:
    """A question to a policy: a sample and the frames that it is shown."""

    sample: VideoSample
    clip: Clip
    images: tuple[np.ndarray, ...] = field(repr=False)
    """The shown frames at model size, (H, W, 3) uint8 RGB each; empty for a policy that looks at no picture."""
