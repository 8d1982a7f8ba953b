"""A synthetic world once more as ViCaS: numbered videos, prompts about tracks, few of the frames by people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from veason import atomic
from veason.datasets import open_dataset
from veason.datasets.sample_list import SampleList
from veason.synthetic.twin_refvos import copy_frames
from veason.types import VideoSample

VERSION = "v1.0"
GT_EVERY = 5
"""Every so many frames one that counts, the first included; the published videos have one in thirty."""


def write_vicas(world: Path, out: Path) -> None:
    """ViCaS from the world's folder: train is its train split; of its valid videos test and val take turns."""
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    number = 0
    for split in ("train", "valid"):
        dataset = open_dataset("revos", world, split=split)
        for place, samples in enumerate(dataset.by_video.values()):
            asked = [sample for sample in samples if sample.anno_ids]
            names = [f"{t:05d}" for t in range(len(asked[0]))]
            copy_frames(asked[0], out / "video_frames" / f"{number:06d}", names)
            content = _annotation(number, dataset, asked, names)
            atomic.write_json(out / "annotations" / VERSION / f"{number:06d}.json", content)
            parts["train" if split == "train" else ("test", "val")[place % 2]].append(number)
            number += 1
    for part, ids in parts.items():
        atomic.write_json(out / "splits" / VERSION / f"{part}.json", ids)


def _annotation(
    number: int, dataset: SampleList, samples: Sequence[VideoSample], names: Sequence[str]
) -> dict[str, Any]:
    """One annotation file; tracks are numbered from 1 in order of appearance."""
    anno_ids = list(dict.fromkeys(anno_id for sample in samples for anno_id in sample.anno_ids))
    tracks = {i: dataset.track(samples[0], anno_id) for i, anno_id in enumerate(anno_ids, start=1)}
    number_of = {anno_id: i for i, anno_id in enumerate(anno_ids, start=1)}
    referrals = [
        {"prompt": sample.expression, "track_ids": [number_of[anno_id] for anno_id in sample.anno_ids]}
        for sample in samples
    ]
    if len(tracks) > 1:
        referrals.append({"prompt": "everything that was asked for", "track_ids": list(tracks)})
    caption = "Coloured shapes move over a plain ground."
    return {
        "video_id": number,
        "src_dataset": "synthetic",
        "filename": f"{samples[0].video}.mp4",
        "image_size": list(samples[0].size),
        "caption_raw_en": caption,
        "caption_parsed_en": caption,
        "caption_raw_en_gpt": caption,
        "caption_parsed_en_gpt": caption,
        "caption_raw_cn": "",
        "reworded_en_captions": [],
        "object_referrals": referrals,
        "segmentations": [_segmentation(t, name, tracks) for t, name in enumerate(names)],
        "all_track_ids": list(tracks),
    }


def _segmentation(t: int, name: str, tracks: dict[int, Sequence[Any]]) -> dict[str, Any]:
    """The masks of one frame; a track that is not in it has no entry."""
    present = {i: track[t] for i, track in tracks.items() if track[t] is not None}
    return {
        "filename": f"{name}.jpg",
        "is_gt": t % GT_EVERY == 0,
        "track_ids": list(present),
        "mask_rles": list(present.values()),
    }
