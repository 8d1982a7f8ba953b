"""Rewrites a world in the files of another benchmark: its twin has the same videos, objects and masks.

The benchmarks are MeViS, ReasonVOS, Ref-YouTube-VOS, Ref-DAVIS17 and ViCaS. A twin leaves out what its format cannot
express.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from demo.expressions import REASONING
from demo.render import render_masks
from demo.writer import folder_in_place, read_scenes
from veason import atomic, masks
from veason.datasets.base import sha256
from veason.datasets.reasonvos import META_NAMES, SOURCES
from veason.datasets.refvos import expression_file
from veason.datasets.revos import ReVOS
from veason.datasets.sample_list import SampleList
from veason.errors import DataError
from veason.files import load_json
from veason.types import Rle, VideoSample

VERSION = 1
"""Version of the writers: twins of two versions may differ in their bytes."""

TARGET_VALUES = (255, 1)
"""Grey values of a target, in turn: any nonzero value counts, so a reader that expects one of them fails."""

PALETTE = (0, 0, 0, 236, 95, 103, 153, 199, 148, 250, 200, 99, 102, 153, 204, 197, 148, 197)
"""RGB of the object numbers; a reader that looks at the colours instead of the numbers fails."""

VICAS_VERSION = "v1.0"
GT_EVERY = 5
"""Distance of the frames with ground truth, from the first one on; the published videos have one in thirty."""


def build_twin(name: str, world: str | Path, out: str | Path) -> Path:
    """Write the ReVOS world in the folder `world` to `out` in the files of the benchmark `name`; return `out`.

    The folder appears whole or not at all. One that already holds this very twin is left as it is; one that holds
    anything else is a DataError.
    """
    world, out = Path(world), Path(out)
    record = {"format": name, "version": VERSION, "world_sha256": sha256(world / "world.json")}
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        described = out / "twin.json"
        if not described.is_file() or load_json(described) != record:
            raise DataError(f"{out}: holds something other than this world as {name}; choose another folder")
        return out
    with folder_in_place(out) as temporary:
        WRITERS[name](world, temporary)
        atomic.write_json(temporary / "twin.json", record)
    return out


def flat(key: str) -> str:
    """Return a video's key without slashes, which these data sets do not have."""
    return key.replace("/", "-")


def copy_frames(sample: VideoSample, folder: Path, names: Sequence[str]) -> None:
    """Copy the frames of a sample's video under other names."""
    folder.mkdir(parents=True)
    for t, name in enumerate(names):
        shutil.copyfile(sample.frame_path(t), folder / f"{name}.jpg")


# ---------------------------------------------------------------------------------------------------------------- MeViS


def write_mevis(world: Path, out: Path) -> None:
    """Write MeViS: train; valid_u from the valid videos; valid, the same again without masks."""
    for source, splits in (("train", ("train",)), ("valid", ("valid_u", "valid"))):
        dataset = ReVOS(world, split=source)
        videos = {key: [s for s in samples if s.anno_ids] for key, samples in dataset.by_video.items()}
        videos = {key: asked for key, asked in videos.items() if asked}
        for split in splits:
            masked = split != "valid"
            meta: dict[str, Any] = {}
            tracks: dict[str, tuple[Rle | None, ...]] = {}
            for number, (key, asked) in enumerate(videos.items()):
                names = [f"{t:05d}" for t in range(len(asked[0]))]
                copy_frames(asked[0], out / split / "JPEGImages" / flat(key), names)
                expressions: dict[str, dict[str, Any]] = {}
                for i, sample in enumerate(asked):
                    expressions[str(i)] = {"exp": sample.expression}
                    if masked:
                        expressions[str(i)] |= {"obj_id": list(sample.obj_ids), "anno_id": list(sample.anno_ids)}
                        tracks |= {str(anno_id): dataset.track(sample, anno_id) for anno_id in sample.anno_ids}
                meta[flat(key)] = {"expressions": expressions, "vid_id": number, "frames": names}
            atomic.write_json(out / split / "meta_expressions.json", {"videos": meta})
            if masked:
                atomic.write_json(out / split / "mask_dict.json", tracks)


# ------------------------------------------------------------------------------------------------------------ ReasonVOS


def write_reasonvos(world: Path, out: Path) -> None:
    """Write ReasonVOS from the valid videos; the expressions go under both file names that are in circulation."""
    dataset = ReVOS(world, split="valid")
    videos: dict[str, Any] = {}
    for number, (key, samples) in enumerate(dataset.by_video.items()):
        asked = [sample for sample in samples if sample.anno_ids]
        if not asked:
            continue
        source, name = SOURCES[number % len(SOURCES)], flat(key)
        targets = dict.fromkeys(sample.anno_ids for sample in asked)
        # a textual id for each distinct target; from the second one on it has two digits, "12" being one object
        ids = {target: str(n if n < 2 else n + 10) for n, target in enumerate(targets, start=1)}
        copy_frames(asked[0], out / "JPEGImages" / name, asked[0].frames)
        for sample in {sample.anno_ids: sample for sample in asked}.values():
            number_of_target = int(ids[sample.anno_ids])
            folder = out / "Annotations" / f"{source}_{name}_{number_of_target}"
            folder.mkdir(parents=True)
            tracks = dataset.object_rles(sample)
            for t, frame in enumerate(sample.frames):
                mask = masks.union([track[t] for track in tracks], sample.size)
                value = TARGET_VALUES[number_of_target % len(TARGET_VALUES)]
                ok, data = cv2.imencode(".png", np.ascontiguousarray(mask).view(np.uint8) * value)
                assert ok
                (folder / f"{frame}.png").write_bytes(data.tobytes())
        expressions = [
            {
                "exp_id": str(i),
                "obj_id": ids[sample.anno_ids],
                "exp_text": sample.expression,
                "is_sent": sample.type_id == REASONING,
            }
            for i, sample in enumerate(asked)
        ]
        videos[name] = {"source": source, "frames": list(asked[0].frames), "expressions": expressions}
    for name in META_NAMES:
        atomic.write_bytes(out / name, json.dumps({"videos": videos}, ensure_ascii=False).encode())


# -------------------------------------------------------------------------------------- Ref-YouTube-VOS and Ref-DAVIS17


def write_refytvos(world: Path, out: Path) -> None:
    """Write Ref-YouTube-VOS: train with masks; valid without; test, which is the last video of valid."""
    for split in ("train", "valid"):
        dataset = ReVOS(world, split=split)
        videos = {}
        for key, samples in dataset.by_video.items():
            single = [sample for sample in samples if len(sample.anno_ids) == 1]
            if not single:
                continue
            name = flat(key)
            ids = dict.fromkeys(sample.anno_ids[0] for sample in single)
            numbers = {anno_id: number for number, anno_id in enumerate(ids, start=1)}  # in order of appearance
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
                tracks = [dataset.track(single[0], anno_id) for anno_id in numbers]
                for t, frame in enumerate(single[0].frames):
                    objects = np.stack([masks.decode(track[t], single[0].size) for track in tracks])  # (N, H, W)
                    _write_index(out / split / "Annotations" / name / f"{frame}.png", objects)
        _write_expressions(out, split, videos)
    last = list(videos)[-1:] if len(videos) > 1 else []
    _write_expressions(out, "test", {name: videos[name] for name in last})


def write_refdavis(world: Path, out: Path) -> None:
    """Write Ref-DAVIS17 from the valid videos: two annotators name each shape of the first frame twice."""
    scenes, videos = read_scenes(world), {}
    for key, samples in ReVOS(world, split="valid").by_video.items():
        scene, name, frames = scenes[key], flat(key), samples[0].frames
        visible, _ = render_masks(scene)  # (N, T, H, W)
        present = [i for i, shape in enumerate(visible) if shape[0].any()]
        if not present:
            continue
        phrases = []  # each shape is named in four ways
        for shape in (scene.shapes[i] for i in present):
            phrases += [f"a {shape.name}", f"a {shape.texture} {shape.name}"]
            phrases += [f"the {shape.name}", f"the {shape.name} with a {shape.texture} surface"]
        videos[name] = {
            "expressions": {str(i): {"exp": phrase, "obj_id": str(i // 4 + 1)} for i, phrase in enumerate(phrases)},
            "frames": list(frames),
        }
        copy_frames(samples[0], out / "valid" / "JPEGImages" / name, frames)
        for t, frame in enumerate(frames):
            _write_index(out / "valid" / "Annotations" / name / f"{frame}.png", visible[present, t])
    _write_expressions(out, "valid", videos)


def _write_index(path: Path, objects: np.ndarray) -> None:
    """Write (N, H, W) bool as one palette PNG of the numbers 1 … N."""
    index = np.zeros(objects.shape[1:], np.uint8)
    for number, mask in enumerate(objects, start=1):
        index[mask] = number
    image = Image.fromarray(index, mode="P")
    image.putpalette(
        PALETTE + (255,) * (768 - len(PALETTE))
    )  # the whole palette: for a shorter one Pillow stores fewer bits
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _write_expressions(out: Path, split: str, videos: dict) -> None:
    atomic.write_json(expression_file(out, split), {"videos": videos})


# ---------------------------------------------------------------------------------------------------------------- ViCaS


def write_vicas(world: Path, out: Path) -> None:
    """Write ViCaS: train is the world's train split; its valid videos go to test and val in turn."""
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    number = 0
    for split in ("train", "valid"):
        dataset = ReVOS(world, split=split)
        for place, samples in enumerate(dataset.by_video.values()):
            asked = [sample for sample in samples if sample.anno_ids]
            names = [f"{t:05d}" for t in range(len(asked[0]))]
            copy_frames(asked[0], out / "video_frames" / f"{number:06d}", names)
            content = _vicas_annotation(number, dataset, asked, names)
            atomic.write_json(out / "annotations" / VICAS_VERSION / f"{number:06d}.json", content)
            parts["train" if split == "train" else ("test", "val")[place % 2]].append(number)
            number += 1
    for part, ids in parts.items():
        atomic.write_json(out / "splits" / VICAS_VERSION / f"{part}.json", ids)


def _vicas_annotation(
    number: int, dataset: SampleList, samples: Sequence[VideoSample], names: Sequence[str]
) -> dict[str, Any]:
    """Make the content of one annotation file; tracks are numbered from 1 in order of appearance."""
    anno_ids = list(dict.fromkeys(anno_id for sample in samples for anno_id in sample.anno_ids))
    tracks = {i: dataset.track(samples[0], anno_id) for i, anno_id in enumerate(anno_ids, start=1)}
    number_of = {anno_id: i for i, anno_id in enumerate(anno_ids, start=1)}
    referrals = [
        {"prompt": sample.expression, "track_ids": [number_of[anno_id] for anno_id in sample.anno_ids]}
        for sample in samples
    ]
    if len(tracks) > 1:
        referrals.append({"prompt": "everything that was asked for", "track_ids": list(tracks)})
    segmentations = []
    for t, name in enumerate(names):
        present = {i: track[t] for i, track in tracks.items() if track[t] is not None}
        segmentations.append(
            {
                "filename": f"{name}.jpg",
                "is_gt": t % GT_EVERY == 0,
                "track_ids": list(present),
                "mask_rles": list(present.values()),
            }
        )
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
        "segmentations": segmentations,
        "all_track_ids": list(tracks),
    }


WRITERS = {
    "mevis": write_mevis,
    "reasonvos": write_reasonvos,
    "refytvos": write_refytvos,
    "refdavis": write_refdavis,
    "vicas": write_vicas,
}
"""By benchmark, the function ``(world, out) -> None`` that writes the ReVOS world of a folder in its files."""
