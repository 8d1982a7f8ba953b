"""A ReVOS root of a few small videos, and folders of predictions for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest

from veason import masks

Mask = np.ndarray


@dataclass
class World:
    """The source of a data set's files: videos with object masks, and expressions about them."""

    root: Path
    frames: dict[str, list[str]] = field(default_factory=dict)
    objects: dict[int, list[Mask | None]] = field(default_factory=dict)
    expressions: dict[str, dict[str, tuple[int, list[int], str]]] = field(default_factory=dict)
    """video -> exp_id -> (type_id, anno_ids, text)"""
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def video(self, name: str, size: tuple[int, int], frames: list[str]) -> None:
        self.sizes[name], self.frames[name], self.expressions[name] = size, frames, {}

    def ask(self, video: str, exp_id: str, type_id: int, anno_ids: list[int], text: str = "the thing") -> None:
        self.expressions[video][exp_id] = (type_id, anno_ids, text)

    def write(self) -> World:
        self.root.mkdir(parents=True, exist_ok=True)
        videos = {
            video: {
                "expressions": {
                    exp_id: {"exp": text, "obj_id": list(range(len(ids))), "anno_id": ids, "type_id": type_id}
                    for exp_id, (type_id, ids, text) in self.expressions[video].items()
                },
                "vid_id": index,
                "frames": self.frames[video],
                "height": self.sizes[video][0],
                "width": self.sizes[video][1],
            }
            for index, video in enumerate(self.frames)
        }
        (self.root / "meta_expressions_valid_.json").write_text(json.dumps({"videos": videos}))
        tracks = {
            str(anno): [None if mask is None else masks.encode(mask) for mask in track]
            for anno, track in self.objects.items()
        }
        (self.root / "mask_dict.json").write_text(json.dumps(tracks))
        foreground = {
            video: {"masks_rle": [masks.encode(mask != 0) for mask in self.foreground(video)]} for video in self.frames
        }
        (self.root / "mask_dict_foreground.json").write_text(json.dumps(foreground))
        return self

    def count(self, video: str, exp_id: str) -> list[Mask]:
        """Number of the target's objects over each pixel, a frame each."""
        return self._sum(video, self.expressions[video][exp_id][1])

    def foreground(self, video: str) -> list[Mask]:
        return self._sum(video, sorted({i for _, ids, _ in self.expressions[video].values() for i in ids}))

    def _sum(self, video: str, anno_ids: list[int]) -> list[Mask]:
        total = [np.zeros(self.sizes[video], np.uint8) for _ in self.frames[video]]
        for anno_id in anno_ids:
            for t, mask in enumerate(self.objects[anno_id]):
                if mask is not None:
                    total[t] = total[t] + mask.astype(np.uint8)
        return total

    def predict(self, out: Path, say: Callable[[Mask], Mask], *, value: int = 255) -> Path:
        """Write `say` of each frame's target as PNGs of 0 and `value`."""
        for video, expressions in self.expressions.items():
            for exp_id in expressions:
                for frame, target in zip(self.frames[video], self.count(video, exp_id), strict=True):
                    path = out / video / exp_id / f"{frame}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    assert cv2.imwrite(str(path), (say(target != 0) != 0).astype(np.uint8) * value)
        return out


def rectangle(size: tuple[int, int], top: int, left: int, bottom: int, right: int) -> Mask:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def empty_world(tmp_path: Path) -> World:
    """A world without videos, to be filled by the test."""
    return World(tmp_path / "gt")


@pytest.fixture
def world(empty_world: World) -> World:
    """Overlapping objects, an object on the border, a late one, a full frame, an empty foreground, all three types."""
    size = (24, 31)
    empty_world.video("UVO/all/-a_1", size, ["00000", "00005", "00010"])
    empty_world.objects[101] = [rectangle(size, 3, 4, 15, 16), rectangle(size, 4, 5, 16, 17), None]
    empty_world.objects[102] = [rectangle(size, 10, 10, 20, 25), rectangle(size, 11, 11, 24, 31), None]
    empty_world.ask("UVO/all/-a_1", "0", 0, [101], "the cat, on the left")
    empty_world.ask("UVO/all/-a_1", "1", 1, [101, 102], 'who is "it"?')
    empty_world.ask("UVO/all/-a_1", "10", 2, [], "the absent dog")
    empty_world.ask("UVO/all/-a_1", "2", 0, [102])
    size = (40, 18)
    empty_world.video("MOSE/b", size, ["00000", "00001"])
    empty_world.objects[201] = [None, np.ones(size, bool)]
    empty_world.objects[202] = [rectangle(size, 0, 0, 5, 5), rectangle(size, 30, 10, 40, 18)]
    empty_world.ask("MOSE/b", "0", 1, [201])
    empty_world.ask("MOSE/b", "1", 0, [202])
    return empty_world.write()
