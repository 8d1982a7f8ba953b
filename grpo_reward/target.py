"""The ground truth of a prompt: boxes and masks on the shown frames, small enough to travel with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from veason import boxes as geometry
from veason import ground_truth, masks
from veason.family import QWEN2_5_VL
from veason.types import Box, Clip, Rle, Size


@dataclass(frozen=True)
class Target:
    """Replies to a prompt are judged against this, at model size: a few kB, picklable, and JSON both ways."""

    frame_ids: tuple[int, ...]
    """Ascending ids of the T shown frames."""
    size: Size
    """Model (height, width): the frame of everything below."""
    boxes: tuple[tuple[Box | None, ...], ...] = field(repr=False)
    """T frames x objects: the object's box scaled to model pixels **plus 0.5**; None where it is not in the frame."""
    masks: tuple[Rle, ...] = field(repr=False)
    """T: union over the objects."""
    family: str = QWEN2_5_VL.name
    """Name of the model family (`veason.family`) whose box convention the replies use."""

    def __post_init__(self) -> None:
        if not len(self.frame_ids) == len(self.boxes) == len(self.masks) > 0:
            counts = f"{len(self.frame_ids)} frames, {len(self.boxes)} box lists, {len(self.masks)} masks"
            raise ValueError(f"a target needs one of each per shown frame, found {counts}")

    @property
    def clip(self) -> Clip:
        return Clip(frame_ids=self.frame_ids, size=self.size)

    @cached_property
    def areas(self) -> tuple[int, ...]:
        """T: pixels of the union mask."""
        return tuple(masks.area(rle) for rle in self.masks)

    @classmethod
    def of_tracks(cls, tracks: ground_truth.Tracks, clip: Clip, *, size: Size, family: str = QWEN2_5_VL.name) -> Target:
        """The target of a clip from objects x frames of native RLEs; `size` is the native (height, width)."""
        return cls(
            frame_ids=clip.frame_ids,
            size=clip.size,
            boxes=tuple(
                tuple(box and geometry.true_box(box, size, clip.size) for box in ground_truth.boxes(tracks, t))
                for t in clip.frame_ids
            ),
            masks=tuple(masks.encode(mask) for mask in ground_truth.clip_masks(tracks, clip, size)),
            family=family,
        )

    def describe(self) -> str:
        """The truth in a line, for a person: per shown frame its share of the largest area, and its boxes."""
        largest = max(self.areas) or 1
        shown = []
        for frame_id, area, boxes in zip(self.frame_ids, self.areas, self.boxes, strict=True):
            sides = ", ".join(f"[{', '.join(f'{side:.1f}' for side in box)}]" for box in boxes if box is not None)
            shown.append(f"{frame_id}: {area / largest:.2f} {sides or 'absent'}")
        return f"truth: {'; '.join(shown)}"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> Target:
        """The target of `to_json`'s text, or of the mapping it stands for; ValueError where it is no target."""
        given = json.loads(text) if isinstance(text, str) else text
        missing = {"frame_ids", "size", "boxes", "masks"} - given.keys()
        if missing:
            raise ValueError(f"a target without {', '.join(sorted(missing))}; there are {', '.join(sorted(given))}")
        height, width = given["size"]
        return cls(
            frame_ids=tuple(given["frame_ids"]),
            size=(height, width),
            boxes=tuple(tuple(box and tuple(map(float, box)) for box in frame) for frame in given["boxes"]),
            masks=tuple(masks.check(dict(rle), (height, width), "target") for rle in given["masks"]),
            family=given.get("family", QWEN2_5_VL.name),
        )
