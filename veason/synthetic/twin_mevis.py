"""A synthetic world once more as MeViS: frames counted from 00000, no types, no expression without a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from veason import atomic
from veason.datasets import open_dataset
from veason.datasets.sample_list import SampleList
from veason.synthetic.twin_refvos import copy_frames, flat
from veason.types import Rle, VideoSample


def write_mevis(world: Path, out: Path) -> None:
    """MeViS from the world's folder: train, valid_u from the valid videos, valid the same again without masks."""
    for source, splits in (("train", ("train",)), ("valid", ("valid_u", "valid"))):
        dataset = open_dataset("revos", world, split=source)
        videos = {key: [s for s in samples if s.anno_ids] for key, samples in dataset.by_video.items()}
        for split in splits:
            _write_split(dataset, {key: asked for key, asked in videos.items() if asked}, out / split)


def _write_split(dataset: SampleList, videos: dict[str, list[VideoSample]], out: Path) -> None:
    masked = out.name != "valid"
    meta: dict[str, Any] = {}
    tracks: dict[str, tuple[Rle | None, ...]] = {}
    for number, (key, asked) in enumerate(videos.items()):
        names = [f"{t:05d}" for t in range(len(asked[0]))]
        copy_frames(asked[0], out / "JPEGImages" / flat(key), names)
        meta[flat(key)] = {
            "expressions": {str(i): _expression(sample, masked=masked) for i, sample in enumerate(asked)},
            "vid_id": number,
            "frames": names,
        }
        for sample in asked if masked else ():
            tracks |= {str(anno_id): dataset.track(sample, anno_id) for anno_id in sample.anno_ids}
    atomic.write_json(out / "meta_expressions.json", {"videos": meta})
    if masked:
        atomic.write_json(out / "mask_dict.json", tracks)


def _expression(sample: VideoSample, *, masked: bool) -> dict[str, Any]:
    said = {"exp": sample.expression}
    return said | {"obj_id": list(sample.obj_ids), "anno_id": list(sample.anno_ids)} if masked else said
