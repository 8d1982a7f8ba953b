"""Ref-YouTube-VOS, Ref-DAVIS17 and ViCaS roots of tiny videos; squares, sizes and scores as in `small_roots`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import small_roots as small
from PIL import Image

from veason import masks

SAME_GREY = (0, 0, 0, *[100] * (255 * 3))
"""A palette in which all objects have one colour: a reader that decodes to grey cannot tell them apart."""

Layers = Mapping[int, np.ndarray]
"""Object number -> mask (H, W)."""


def write_index(path: Path, layers: Layers, size: tuple[int, int] = small.SIZE) -> None:
    """A palette PNG; a later layer covers an earlier one."""
    index = np.zeros(size, np.uint8)
    for number, mask in layers.items():
        index[mask] = number
    image = Image.fromarray(index, mode="P")
    image.putpalette(SAME_GREY)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_expressions(root: Path, split: str, videos: Mapping[str, Any]) -> None:
    path = root / "meta_expressions" / split / "meta_expressions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"videos": videos}))


# Ref-YouTube-VOS: one video to train on, two in the file of valid, one of which is test's


def write_refytvos(root: Path) -> Path:
    for split, video in (("train", "t1"), ("valid", "v1"), ("valid", "v2")):
        for frame in ("00000", "00005"):
            small.picture(root / split / "JPEGImages" / video / f"{frame}.jpg")
    write_index(root / "train/Annotations/t1/00000.png", {1: small.SQUARE, 2: small.OTHER})
    write_index(root / "train/Annotations/t1/00005.png", {2: small.OTHER})
    frames = ["00000", "00005"]
    trained = {"0": {"exp": "a square", "obj_id": "1"}, "1": {"exp": "another", "obj_id": "2"}}
    write_expressions(root, "train", {"t1": {"expressions": trained, "frames": frames}})
    asked = {"expressions": {"0": {"exp": "a thing"}, "1": {"exp": "it"}}, "frames": frames}
    write_expressions(root, "valid", {"v1": asked, "v2": asked})
    write_expressions(root, "test", {"v2": asked})
    return root


# Ref-DAVIS17: `v` with two objects and two frames, `w` with one object and one frame

DAVIS_LAYERS: dict[str, list[Layers]] = {
    "v": [{1: small.SQUARE, 2: small.OTHER}, {1: small.SQUARE, 2: small.OTHER}],
    "w": [{1: small.SQUARE}],
}


def write_refdavis(root: Path, layers: Mapping[str, Sequence[Layers]] | None = None) -> Path:
    """Each object of a video's first frame asked for four times."""
    videos = {}
    for video, frames in (DAVIS_LAYERS if layers is None else layers).items():
        names = [f"{t:05d}" for t in range(len(frames))]
        for name, of_frame in zip(names, frames, strict=True):
            small.picture(root / "valid/JPEGImages" / video / f"{name}.jpg")
            write_index(root / "valid/Annotations" / video / f"{name}.png", of_frame)
        asked = [number for number in frames[0] if number != 255]
        expressions = {
            str(4 * k + a): {"exp": f"object {number}, annotator {a}", "obj_id": str(number)}
            for k, number in enumerate(asked)
            for a in range(4)
        }
        videos[video] = {"expressions": expressions, "frames": names}
    write_expressions(root, "valid", videos)
    return root


def predict(dataset: Any, out: Path, say: Callable[[str, int], np.ndarray | None], value: int = 255) -> Path:
    """PNGs of every sample; `say` gives the mask of a sample's key and frame id, None to predict the truth."""
    for sample in dataset:
        said = []
        for t in range(len(sample)):
            mask = say(sample.key, t)
            if mask is None:
                mask = masks.union([track[t] for track in dataset.object_rles(sample)], sample.size)
            said.append(mask)
        small.write_masks(out / sample.key, sample.frames, said, value)
    return out


# ViCaS: videos 3 and 12 of four frames; people annotated the first and the third

VICAS_TRACKS: dict[int, list[np.ndarray | None]] = {
    7: [small.SQUARE, small.SQUARE, small.SQUARE, None],
    9: [small.OTHER, None, None, small.OTHER],
}
VICAS_GT = (0, 2)


def vicas_annotation(number: int) -> dict[str, Any]:
    return {
        "video_id": number,
        "image_size": list(small.SIZE),
        "object_referrals": [
            {"prompt": "the first", "track_ids": [7]},
            {"prompt": "both", "track_ids": [7, 9]},
        ],
        "segmentations": [
            {
                "filename": f"{t:05d}.jpg",
                "is_gt": t in VICAS_GT,
                "track_ids": [i for i, track in VICAS_TRACKS.items() if track[t] is not None],
                "mask_rles": [masks.encode(track[t]) for track in VICAS_TRACKS.values() if track[t] is not None],
            }
            for t in range(4)
        ],
        "all_track_ids": list(VICAS_TRACKS),
    }


def write_vicas(root: Path) -> Path:
    for number in (12, 3):
        for t in range(4):
            small.picture(root / "video_frames" / f"{number:06d}" / f"{t:05d}.jpg")
        write_json(root / f"annotations/v1.0/{number:06d}.json", vicas_annotation(number))
    write_json(root / "splits/v1.0/test.json", [12, 3])
    return root


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def vicas_said(number: int, *tracks_of_referrals: Sequence[Sequence[np.ndarray]]) -> dict[str, Any]:
    """A prediction file: for each referral its tracks, a mask for each of the two scored frames."""
    return {
        "video_id": number,
        "pred_caption": "",
        "pred_lgvis_masks": [
            [
                {"filename": f"{t:05d}.jpg", "mask_rles": [masks.encode(track[k]) for track in tracks]}
                for k, t in enumerate(VICAS_GT)
            ]
            for tracks in tracks_of_referrals
        ],
    }
