"""Rewrites a world in the files of another benchmark: the same videos, objects and masks as MeViS, ReasonVOS,
Ref-YouTube-VOS, Ref-DAVIS17 or ViCaS. What a format cannot express is left out.
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
from veason.datasets import open_dataset
from veason.datasets.base import sha256
from veason.datasets.reasonvos import META_NAMES, SOURCES
from veason.datasets.refvos import expression_file
from veason.datasets.sample_list import SampleList
from veason.errors import DataError
from veason.files import load_json
from veason.types import Rle, VideoSample

VERSION = 1
"""Of the writers: twins of two versions may differ in their bytes."""

TARGET_VALUES = (255, 1)
"""Grey values of a target, in turn: readers that ask for one of them fail, since nonzero is all that counts."""

PALETTE = (0, 0, 0, 236, 95, 103, 153, 199, 148, 250, 200, 99, 102, 153, 204, 197, 148, 197)
"""RGB of the object numbers; readers that look at these colours instead of the numbers fail."""

VICAS_VERSION = "v1.0"
GT_EVERY = 5
"""Every so many frames one that counts, the first included; the published videos have one in thirty."""


def build_twin(name: str, world: str | Path, out: str | Path) -> Path:
    """Write the ReVOS world in the folder `world` to `out` in the form of the benchmark `name`; give `out`.

    The folder appears whole or not at all. One that already holds this very twin is left as it is; one that holds
    anything else is a DataError.
    """
    world, out = Path(world), Path(out)
    record = {"format": name, "version": VERSION, "world_sha256": sha256(world / "world.json")}
    if _stands(out, record):
        return out
    with folder_in_place(out) as temporary:
        WRITERS[name](world, temporary)
        atomic.write_json(temporary / "twin.json", record)
    return out


def _stands(out: Path, record: dict[str, object]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    described = out / "twin.json"
    if described.is_file() and load_json(described) == record:
        return True
    raise DataError(f"{out}: holds something else than this world as {record['format']}; choose another folder")


def flat(key: str) -> str:
    """A video's key without slashes, which these data sets do not have."""
    return key.replace("/", "-")


def copy_frames(sample: VideoSample, folder: Path, names: Sequence[str]) -> None:
    """The pictures of a sample's video under other names."""
    folder.mkdir(parents=True)
    for t, name in enumerate(names):
        shutil.copyfile(sample.frame_path(t), folder / f"{name}.jpg")


# ---------------------------------------------------------------------------------------------------------------- MeViS


def write_mevis(world: Path, out: Path) -> None:
    """MeViS from the world's folder: train, valid_u from the valid videos, valid the same again without masks."""
    for source, splits in (("train", ("train",)), ("valid", ("valid_u", "valid"))):
        dataset = open_dataset("revos", world, split=source)
        videos = {key: [s for s in samples if s.anno_ids] for key, samples in dataset.by_video.items()}
        for split in splits:
            _write_mevis_split(dataset, {key: asked for key, asked in videos.items() if asked}, out / split)


def _write_mevis_split(dataset: SampleList, videos: dict[str, list[VideoSample]], out: Path) -> None:
    masked = out.name != "valid"
    meta: dict[str, Any] = {}
    tracks: dict[str, tuple[Rle | None, ...]] = {}
    for number, (key, asked) in enumerate(videos.items()):
        names = [f"{t:05d}" for t in range(len(asked[0]))]
        copy_frames(asked[0], out / "JPEGImages" / flat(key), names)
        meta[flat(key)] = {
            "expressions": {str(i): _mevis_expression(sample, masked=masked) for i, sample in enumerate(asked)},
            "vid_id": number,
            "frames": names,
        }
        for sample in asked if masked else ():
            tracks |= {str(anno_id): dataset.track(sample, anno_id) for anno_id in sample.anno_ids}
    atomic.write_json(out / "meta_expressions.json", {"videos": meta})
    if masked:
        atomic.write_json(out / "mask_dict.json", tracks)


def _mevis_expression(sample: VideoSample, *, masked: bool) -> dict[str, Any]:
    said = {"exp": sample.expression}
    return said | {"obj_id": list(sample.obj_ids), "anno_id": list(sample.anno_ids)} if masked else said


# ------------------------------------------------------------------------------------------------------------ ReasonVOS


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
            _write_reasonvos_masks(dataset, sample, out / "Annotations" / f"{source}_{name}_{ids[sample.anno_ids]}")
        expressions = [_reasonvos_expression(sample, i, ids[sample.anno_ids]) for i, sample in enumerate(asked)]
        videos[name] = {"source": source, "frames": list(asked[0].frames), "expressions": expressions}
    for name in META_NAMES:
        atomic.write_bytes(out / name, json.dumps({"videos": videos}, ensure_ascii=False).encode())


def _object_ids(samples: list[VideoSample]) -> dict[tuple[int | str, ...], str]:
    """A textual id for each distinct target; from the second one on it has two digits, "12" being one object."""
    targets = dict.fromkeys(sample.anno_ids for sample in samples)
    return {target: str(number if number < 2 else number + 10) for number, target in enumerate(targets, start=1)}


def _write_reasonvos_masks(dataset: SampleList, sample: VideoSample, folder: Path) -> None:
    folder.mkdir(parents=True)
    tracks = dataset.object_rles(sample)
    value = TARGET_VALUES[int(folder.name.rpartition("_")[2]) % len(TARGET_VALUES)]
    for t, frame in enumerate(sample.frames):
        mask = masks.union([track[t] for track in tracks], sample.size)
        ok, data = cv2.imencode(".png", np.ascontiguousarray(mask).view(np.uint8) * value)
        assert ok
        (folder / f"{frame}.png").write_bytes(data.tobytes())


def _reasonvos_expression(sample: VideoSample, number: int, obj_id: str) -> dict[str, Any]:
    return {
        "exp_id": str(number),
        "obj_id": obj_id,
        "exp_text": sample.expression,
        "is_sent": sample.type_id == REASONING,
    }


# -------------------------------------------------------------------------------------- Ref-YouTube-VOS and Ref-DAVIS17


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


# ---------------------------------------------------------------------------------------------------------------- ViCaS


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
            content = _vicas_annotation(number, dataset, asked, names)
            atomic.write_json(out / "annotations" / VICAS_VERSION / f"{number:06d}.json", content)
            parts["train" if split == "train" else ("test", "val")[place % 2]].append(number)
            number += 1
    for part, ids in parts.items():
        atomic.write_json(out / "splits" / VICAS_VERSION / f"{part}.json", ids)


def _vicas_annotation(
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
        "segmentations": [_vicas_segmentation(t, name, tracks) for t, name in enumerate(names)],
        "all_track_ids": list(tracks),
    }


def _vicas_segmentation(t: int, name: str, tracks: dict[int, Sequence[Any]]) -> dict[str, Any]:
    """The masks of one frame; a track that is not in it has no entry."""
    present = {i: track[t] for i, track in tracks.items() if track[t] is not None}
    return {
        "filename": f"{name}.jpg",
        "is_gt": t % GT_EVERY == 0,
        "track_ids": list(present),
        "mask_rles": list(present.values()),
    }


WRITERS = {
    "mevis": write_mevis,
    "reasonvos": write_reasonvos,
    "refytvos": write_refytvos,
    "refdavis": write_refdavis,
    "vicas": write_vicas,
}
"""Name of a benchmark -> function ``(world, out) -> None`` that writes a ReVOS world in its format."""
