"""A synthetic world once more as Ref-YouTube-VOS and as Ref-DAVIS17: one object an expression, masks as palette PNGs.

What the forms cannot say is left out: expressions without a target or with several, and of two shapes that overlap on a
border the pixel belongs to the later one.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from veason import atomic, masks
from veason.datasets import open_dataset
from veason.datasets.refvos import expression_file
from veason.datasets.sample_list import SampleList
from veason.synthetic.render import render_masks
from veason.synthetic.writer import read_scenes
from veason.types import VideoSample

PALETTE = (0, 0, 0, 236, 95, 103, 153, 199, 148, 250, 200, 99, 102, 153, 204, 197, 148, 197)
"""RGB of the object numbers; readers that look at these colours instead of the numbers fail."""


def write_refytvos(world: Path, out: Path) -> None:
    """Ref-YouTube-VOS from the world's folder: train with masks; valid without, the last of its videos being test's."""
    for split in ("train", "valid"):
        dataset = open_dataset("revos", world, split=split)
        videos = {}
        for key, samples in dataset.by_video.items():
            single = [sample for sample in samples if len(sample.anno_ids) == 1]
            if not single:
                continue
            name = flat(key)
            numbers = _numbers(single)
            videos[name] = {
                "expressions": {
                    str(i): {"exp": sample.expression}
                    | ({"obj_id": str(numbers[sample.anno_ids[0]])} if split == "train" else {})
                    for i, sample in enumerate(single)
                },
                "frames": list(single[0].frames),
            }
            copy_frames(single[0], out / split / "JPEGImages" / name, single[0].frames)
            if split == "train":
                _write_annotations(dataset, single, numbers, out / split / "Annotations" / name)
        _write_expressions(out, split, videos)
    last = list(videos)[-1:] if len(videos) > 1 else []
    _write_expressions(out, "test", {name: videos[name] for name in last})


def write_refdavis(world: Path, out: Path) -> None:
    """Ref-DAVIS17 from the world's valid videos: each shape of the first frame named four times, by two annotators."""
    scenes, videos = read_scenes(world), {}
    for key, samples in open_dataset("revos", world, split="valid").by_video.items():
        scene, name, frames = scenes[key], flat(key), samples[0].frames
        visible, _ = render_masks(scene)  # (N, T, H, W)
        present = [i for i, shape in enumerate(visible) if shape[0].any()]
        if not present:
            continue
        phrases = [phrase for i in present for phrase in _four_ways(scene.shapes[i].texture, scene.shapes[i].name)]
        videos[name] = {
            "expressions": {str(i): {"exp": phrase, "obj_id": str(i // 4 + 1)} for i, phrase in enumerate(phrases)},
            "frames": list(frames),
        }
        copy_frames(samples[0], out / "valid" / "JPEGImages" / name, frames)
        for t, frame in enumerate(frames):
            _write_index(out / "valid" / "Annotations" / name / f"{frame}.png", visible[present, t])
    _write_expressions(out, "valid", videos)


def flat(key: str) -> str:
    """A video's key without slashes, which these data sets do not have."""
    return key.replace("/", "-")


def copy_frames(sample: VideoSample, folder: Path, names: Sequence[str]) -> None:
    """The pictures of a sample's video under other names."""
    folder.mkdir(parents=True)
    for t, name in enumerate(names):
        shutil.copyfile(sample.frame_path(t), folder / f"{name}.jpg")


def _four_ways(texture: str, name: str) -> tuple[str, str, str, str]:
    return (f"a {name}", f"a {texture} {name}", f"the {name}", f"the {name} with a {texture} surface")


def _numbers(samples: Sequence[VideoSample]) -> dict[int | str, int]:
    """Object number of each annotation, from 1 in order of appearance."""
    ids = dict.fromkeys(sample.anno_ids[0] for sample in samples)
    return {anno_id: number for number, anno_id in enumerate(ids, start=1)}


def _write_annotations(
    dataset: SampleList, samples: Sequence[VideoSample], numbers: dict[int | str, int], folder: Path
) -> None:
    tracks = [dataset.track(samples[0], anno_id) for anno_id in numbers]
    for t, frame in enumerate(samples[0].frames):
        objects = np.stack([masks.decode(track[t], samples[0].size) for track in tracks])  # (N, H, W)
        _write_index(folder / f"{frame}.png", objects)


def _write_index(path: Path, objects: np.ndarray) -> None:
    """(N, H, W) bool as one palette PNG of the numbers 1 … N."""
    index = np.zeros(objects.shape[1:], np.uint8)
    for number, mask in enumerate(objects, start=1):
        index[mask] = number
    image = Image.fromarray(index, mode="P")
    image.putpalette(PALETTE + (255,) * (768 - len(PALETTE)))  # whole: of a shorter one Pillow stores fewer bits
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _write_expressions(out: Path, split: str, videos: dict) -> None:
    atomic.write_json(expression_file(out, split), {"videos": videos})
