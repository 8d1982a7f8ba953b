"""MeViS and ReasonVOS roots of two tiny videos, and predictions whose scores can be done by hand.

Frames are 20 x 20, so boundaries match within ceil(0.008 * sqrt(800)) = 1 pixel, up, down and sideways.

The square covers rows and columns 5 to 9, 25 pixels. Its boundary lies half a pixel up and left: the rim of rows and
columns 4 to 9, 20 pixels. The other one, rows and columns 12 to 16, is nowhere near.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from veason import masks

SIZE = (20, 20)
SHIFTED_J, SHIFTED_F = 3 / 7, 0.6
"""The square against itself two columns to the right: 5 * 3 of 25 + 25 - 15 pixels; of its rim of 20 pixels 5 of 6 on
top, 5 of 6 below, 2 of 4 of the left side, none of 4 of the right one are within a pixel of the other rim, and the same
the other way round."""
FULL_J, FULL_F = 25 / 400, 0.0
"""The square against the whole frame, which has no boundary: precision 1, recall 0."""


def square(top: int = 5, left: int = 5) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + 5, left : left + 5] = True
    return mask


SQUARE, OTHER, SHIFTED = square(), square(12, 12), square(5, 7)
NOTHING, EVERYTHING = np.zeros(SIZE, bool), np.ones(SIZE, bool)

MEVIS_TRACKS = {11: [SQUARE, SQUARE], 12: [None, OTHER], 21: [SQUARE]}
"""Annotation -> its masks; 11 and 12 in the video ``v1`` of two frames, 21 in ``v2`` of one."""
MEVIS_ASKED = {"v1": {"0": [11], "1": [11, 12], "2": [12]}, "v2": {"0": [21]}}
FRAMES = {"v1": ["00000", "00001"], "v2": ["00000"]}


def write_mevis(root: Path, split: str = "valid_u") -> Path:
    """The MeViS root; `split` with masks."""
    folder = root / split
    for video, frames in FRAMES.items():
        for frame in frames:
            picture(folder / "JPEGImages" / video / f"{frame}.jpg")
    videos = {
        video: {
            "expressions": {
                exp_id: {"exp": f"thing {exp_id}", "obj_id": list(range(len(ids))), "anno_id": ids}
                for exp_id, ids in asked.items()
            },
            "vid_id": number,
            "frames": FRAMES[video],
        }
        for number, (video, asked) in enumerate(MEVIS_ASKED.items())
    }
    tracks = {
        str(anno_id): [None if mask is None else masks.encode(mask) for mask in track]
        for anno_id, track in MEVIS_TRACKS.items()
    }
    (folder / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (folder / "mask_dict.json").write_text(json.dumps(tracks))
    return root


MEVIS_SAID = {
    "v1/0": [SHIFTED, SHIFTED],
    "v1/1": [SQUARE, SQUARE | OTHER],  # perfect
    "v1/2": [SQUARE, SQUARE],  # the wrong object: where it is absent, and where it is elsewhere
    "v2/0": [EVERYTHING],
}
MEVIS_J = [SHIFTED_J, 1.0, 0.0, FULL_J]
MEVIS_F = [SHIFTED_F, 1.0, 0.0, FULL_F]


def picture(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (90, 90, 90)).save(path)


def write_masks(folder: Path, frames: Iterable[str], said: Iterable[np.ndarray], value: int = 255) -> None:
    """Masks as 8-bit PNGs of 0 and `value`."""
    folder.mkdir(parents=True, exist_ok=True)
    for frame, mask in zip(frames, said, strict=True):
        assert cv2.imwrite(str(folder / f"{frame}.png"), mask.astype(np.uint8) * value)


def predict_mevis(out: Path, value: int = 255) -> Path:
    for key, said in MEVIS_SAID.items():
        write_masks(out / key, FRAMES[key.partition("/")[0]], said, value)
    return out


# ReasonVOS: expressions by (obj_id, exp_id, is_sent); the file's exp_id starts anew with each object

REASON_ASKED = {
    "v1": ("mose", [("1", "0", False), ("12", "0", True), ("12", "1", True)]),
    "v2": ("burst", [("1", "7", False)]),
}
REASON_FRAMES = {"v1": ["00000", "00003", "00006"], "v2": ["00000"]}
REASON_MASKS = {
    "mose_v1_1": {"00000": SQUARE, "00003": SQUARE, "00006": SQUARE},
    "mose_v1_12": {"00000": OTHER, "00006": NOTHING},  # the frame between is not annotated
    "burst_v2_1": {"00000": SQUARE},
}
REASON_SAID = {
    "v1/0": [SHIFTED, SHIFTED, SHIFTED],
    "v1/1": [OTHER, EVERYTHING, NOTHING],  # perfect where it counts
    "v1/2": [NOTHING, NOTHING, EVERYTHING],  # empty for a square: 0, 0; full for nothing: J 0, F 1, for no boundaries
    "v2/0": [EVERYTHING],
}
REASON_J = [SHIFTED_J, 1.0, 0.0, FULL_J]
REASON_F = [SHIFTED_F, 1.0, 0.5, FULL_F]
OBJECT_FOLDERS = {"v1/0": "mose_v1_1/0", "v1/1": "mose_v1_12/0", "v1/2": "mose_v1_12/1", "v2/0": "burst_v2_1/7"}
"""Position in the list -> folder in the published layout."""


def reason_meta() -> dict:
    return {
        "videos": {
            video: {
                "source": source,
                "frames": REASON_FRAMES[video],
                "expressions": [
                    {"exp_id": exp_id, "obj_id": obj_id, "exp_text": f"thing {exp_id}", "is_sent": sentence}
                    for obj_id, exp_id, sentence in asked
                ],
            }
            for video, (source, asked) in REASON_ASKED.items()
        }
    }


def write_reasonvos(root: Path, name: str = "meta_expressions.json") -> Path:
    """The ReasonVOS root, its expressions in the file `name`; one object's masks are 0 and 1, the others' 0 and 255."""
    for video, frames in REASON_FRAMES.items():
        for frame in frames:
            picture(root / "JPEGImages" / video / f"{frame}.jpg")
    for folder, track in REASON_MASKS.items():
        write_masks(root / "Annotations" / folder, track, track.values(), 1 if folder.endswith("_12") else 255)
    (root / name).write_text(json.dumps(reason_meta()))
    return root


def predict_reasonvos(out: Path, place: Callable[[str], str] = str, value: int = 255) -> Path:
    """place: sample key -> folder below `out`."""
    for key, said in REASON_SAID.items():
        write_masks(out / place(key), REASON_FRAMES[key.partition("/")[0]], said, value)
    return out
