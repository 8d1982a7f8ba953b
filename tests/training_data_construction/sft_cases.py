"""Chain-of-thought records made by hand from ground truth: what a teacher's file looks like, without a teacher."""

import json
import os
from pathlib import Path

from training_data_construction.records import CotRecord
from veason import boxes, frames, ground_truth
from veason.datasets import open_dataset
from veason.types import Answer, Clip

ROOT = Path(__file__).parents[2]
SIDE = 84


def make_records(root: Path, *, n: int = 4, side: int = SIDE, split: str = "train") -> list[CotRecord]:
    """A record per expression with a target: `n` even frames, the one of largest target, true boxes, few words."""
    dataset = open_dataset("revos", root, split=split)
    records = []
    for sample in dataset:
        tracks = dataset.object_rles(sample)
        clip = Clip(frames.linspace(len(sample), n), (side, side))
        keyframe = max(clip.frame_ids, key=lambda t: ground_truth.area(tracks, t))
        found = [box for box in ground_truth.boxes(tracks, keyframe) if box is not None]
        if found:
            answer = Answer(keyframe, tuple(map(tuple, boxes.rescale(found, sample.size, clip.size))))
            records.append(CotRecord(sample, clip, f"Frame {keyframe} shows the target best.", answer))
    return records


def write_records(records: list[CotRecord], path: Path) -> Path:
    path.write_text(json.dumps([record.to_json() for record in records]))
    return path


def environment(folder: Path) -> dict[str, str]:
    """For a process of LLaMA-Factory: offline, one thread, its caches in `folder`, our packages at hand."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
