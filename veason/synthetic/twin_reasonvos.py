"""A synthetic world once more as ReasonVOS: lists of expressions, objects with textual ids, a PNG for each mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from veason import atomic, masks
from veason.datasets import open_dataset
from veason.datasets.reasonvos import META_NAMES, SOURCES
from veason.datasets.sample_list import SampleList
from veason.synthetic.expressions import REASONING
from veason.synthetic.twin_refvos import copy_frames, flat
from veason.types import VideoSample

INSIDE = (255, 1)
"""Grey values of a target, in turn: readers that ask for one of them fail, since nonzero is all that counts."""


def write_reasonvos(world: Path, out: Path) -> None:
    """ReasonVOS from the valid videos of the world's folder; the expressions under both file names that are about."""
    dataset = open_dataset("revos", world, split="valid")
    videos: dict[str, Any] = {}
    for number, (key, samples) in enumerate(dataset.by_video.items()):
        asked = [sample for sample in samples if sample.anno_ids]
        if not asked:
            continue
        source, name = SOURCES[number % len(SOURCES)], flat(key)
        ids = _object_ids(asked)
        copy_frames(asked[0], out / "JPEGImages" / name, asked[0].frames)
        for sample in {sample.anno_ids: sample for sample in asked}.values():
            _write_masks(dataset, sample, out / "Annotations" / f"{source}_{name}_{ids[sample.anno_ids]}")
        expressions = [_expression(sample, i, ids[sample.anno_ids]) for i, sample in enumerate(asked)]
        videos[name] = {"source": source, "frames": list(asked[0].frames), "expressions": expressions}
    for name in META_NAMES:
        atomic.write_bytes(out / name, json.dumps({"videos": videos}, ensure_ascii=False).encode())


def _object_ids(samples: list[VideoSample]) -> dict[tuple[int | str, ...], str]:
    """A textual id for each distinct target; from the second one on it has two digits, "12" being one object."""
    targets = dict.fromkeys(sample.anno_ids for sample in samples)
    return {target: str(number if number < 2 else number + 10) for number, target in enumerate(targets, start=1)}


def _write_masks(dataset: SampleList, sample: VideoSample, folder: Path) -> None:
    folder.mkdir(parents=True)
    tracks = dataset.object_rles(sample)
    inside = INSIDE[int(folder.name.rpartition("_")[2]) % len(INSIDE)]
    for t, frame in enumerate(sample.frames):
        mask = masks.union([track[t] for track in tracks], sample.size)
        ok, data = cv2.imencode(".png", np.ascontiguousarray(mask).view(np.uint8) * inside)
        assert ok
        (folder / f"{frame}.png").write_bytes(data.tobytes())


def _expression(sample: VideoSample, number: int, obj_id: str) -> dict[str, Any]:
    return {
        "exp_id": str(number),
        "obj_id": obj_id,
        "exp_text": sample.expression,
        "is_sent": sample.type_id == REASONING,
    }
