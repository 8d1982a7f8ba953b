"""Writes a world as a ReVOS data set: plans the videos, draws their scenes, chooses questions, writes the files.

The folder appears whole or not at all, and the same arguments give the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import itertools
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.expressions import Expression, questions
from demo.facts import measure_masks
from demo.render import render_clip, render_masks
from demo.sampling import sample_scene
from demo.scene import Scene
from veason import atomic, masks
from veason.errors import DataError
from veason.files import load_json
from veason.types import Rle, Size

VERSION = 1
"""Version of the generator: worlds of two versions differ in their bytes."""

SIZES: tuple[Size, ...] = ((168, 224), (180, 240), (224, 168), (160, 208), (192, 192), (161, 219))
"""(height, width) of the videos, in turn."""

TRAIN_PLOTS = ("crossing", "curtain", "giant", "departure", "growth", "arrival", "parade", "mixed")
VALID_PLOTS = ("crossing", "mixed", "departure", "arrival", "growth", "curtain", "parade", "giant")
LONG_PLOTS = ("crossing", "curtain", "departure", "arrival")
LONG = 8
"""Number of frames that the plots of `LONG_PLOTS` need."""
MUST = {"crossing": ("meet", "hidden"), "giant": ("fills",), "departure": ("leaves_first",), "arrival": ("enters",)}
"""Facts that each plot must give rise to: at least one expression asks for each of them."""

_SOURCES = (
    "UVO/all/-syn_{i:03d}",
    "LV-VIS/train/{i:05d}",
    "MOSE/{hex}",
    "OVIS/{hex}",
    "TAO/syn_{i:04d}",
    "MeViS/{hex}",
)


@dataclass(frozen=True)
class VideoPlan:
    """The properties of a video that are fixed before its scene is drawn."""

    index: int
    """Index over both splits."""
    split: str
    key: str
    plot: str
    size: Size
    frames: int
    names: tuple[str, ...]
    """Frame names without suffix; the strided video counts in fives."""
    expressions: int
    """Number of expressions to ask, at most."""


@dataclass(frozen=True)
class Video:
    """One video with its scene and its expressions."""

    plan: VideoPlan
    scene: Scene
    expressions: tuple[Expression, ...]
    anno_ids: tuple[int, ...]
    """Annotation id of each shape of the scene."""


def build_world(
    out: str | Path,
    *,
    videos: int = 12,
    seed: int = 0,
    size: Size | None = None,
    frames: tuple[int, int] = (8, 20),
    background: str = "ramp",
    policy: bool = False,
) -> dict[str, Any]:
    """Write a ReVOS-format world to `out` and return its description (also in ``world.json``).

    `size` None varies the size from video to video. `policy` adds ``tiny_policy``, which needs torch. A folder that
    already holds this very world is left as it is; one that holds anything else is a DataError.
    """
    out = Path(out)
    low, high = frames
    if seed < 0:
        raise DataError(f"seed is {seed}, expected 0 or more")
    if videos < 1:
        raise DataError(f"videos is {videos}, a world has at least 1")
    if not 4 <= low <= high:
        raise DataError(
            f"frames are {low} to {high}; give at least 4, and a maximum that is no smaller than the minimum"
        )
    if size and min(size) < 56:
        raise DataError(f"size is {size}; at least 56 pixels a side, or nothing can be seen")
    parameters = {
        "version": VERSION,
        "videos": videos,
        "seed": seed,
        "size": list(size) if size else None,
        "frames": list(frames),
        "background": background,
        "policy": policy,
    }
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        return _check_existing(out, parameters)
    with folder_in_place(out) as temporary:
        drawn = _write_videos(
            temporary, plan_videos(videos=videos, seed=seed, size=size, frames=frames), seed, background
        )
        if policy:
            from demo.policy import write_tiny_policy  # torch, only when asked for

            write_tiny_policy(temporary / "tiny_policy", seed=seed)
        world = {"parameters": parameters, "counts": _count(drawn)}
        atomic.write_json(temporary / "world.json", world)
        return world


@contextlib.contextmanager
def folder_in_place(out: Path) -> Iterator[Path]:
    """Gives a folder to write into, which becomes `out` at the end of the block and is removed by an exception.

    Folders that killed writers of `out` left beside it are removed. An error of the disk names the folder; a DataError
    says that another process was quicker.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{glob.escape(out.name)}.{'[a-z0-9_]' * 8}/"):
        with contextlib.suppress(DataError), atomic.Lock(left / ".lock"):  # refused where the writer is alive
            shutil.rmtree(left)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        with atomic.Lock(temporary / ".lock"):
            yield temporary
            (temporary / ".lock").unlink()
            temporary.chmod(0o755)
            temporary.rename(out)  # replaces an empty folder, refuses any other
    except BaseException as error:
        shutil.rmtree(temporary)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise DataError(f"{out}: another process has written it meanwhile; run the same command again") from None
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(out)
        raise


def read_scenes(root: str | Path) -> dict[str, Scene]:
    """Read the scene behind each video of a written world, by video key."""
    path = Path(root) / "scenes.json"
    records = load_json(path, hint="is this a world that `python -m demo.world` wrote?")
    try:
        return {key: Scene.from_json(record) for key, record in records.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the scenes of a synthetic world ({error!r}); write the world again") from error


def _check_existing(out: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the description of the world in `out`; DataError unless it is whole and has these parameters."""
    described = out / "world.json"
    if not described.is_file():
        raise DataError(f"{out}: exists and is no synthetic world; choose another folder")
    world = load_json(described)
    found = world.get("parameters") if isinstance(world, dict) else None
    if not isinstance(found, dict) or "counts" not in world:
        raise DataError(f"{described}: not the description of a synthetic world; remove the folder or choose another")
    if found != parameters:
        wrong = [f"{k} {found.get(k)!r}, not {v!r}" for k, v in parameters.items() if found.get(k) != v]
        raise DataError(f"{out}: holds another world ({'; '.join(wrong)}); remove it or choose another folder")
    files = [out / name for name in ("mask_dict.json", "mask_dict_foreground.json", "scenes.json")]
    for split in ("train", "valid"):
        meta = out / f"meta_expressions_{split}_.json"
        for video, entry in load_json(meta)["videos"].items():
            files += [out / "JPEGImages" / video / f"{name}.jpg" for name in entry["frames"]]
    for path in files:
        if not path.is_file() or path.stat().st_size == 0:
            raise DataError(f"{path}: gone or empty, so this world is not whole; remove {out} and write it again")
    return world


def _write_videos(root: Path, plans: list[VideoPlan], seed: int, background: str) -> list[Video]:
    """Draw the planned videos and write frames, expressions, masks and scenes; return the videos."""
    mask_dict: dict[str, list[Rle | None]] = {}
    foreground: dict[str, Any] = {}
    metas: dict[str, dict[str, Any]] = {"train": {}, "valid": {}}
    drawn: list[Video] = []
    for plan in plans:
        video = draw_video(plan, seed, background)
        frames, visible = render_clip(video.scene)
        (root / "JPEGImages" / plan.key).mkdir(parents=True)
        for name, frame in zip(plan.names, frames, strict=True):
            Image.fromarray(frame).save(root / "JPEGImages" / plan.key / f"{name}.jpg", quality=95, subsampling=0)
        for anno_id, track in zip(video.anno_ids, visible, strict=True):  # (T, H, W) each
            # null where the shape is not seen, never an all-zero mask
            mask_dict[str(anno_id)] = [masks.encode(mask) if mask.any() else None for mask in track]
        referred = sorted({i for expression in video.expressions for i in expression.targets})
        union = np.asarray(visible[referred].any(axis=0))  # (T, H, W): every shape that some expression refers to
        foreground[plan.key] = {
            "masks_rle": [masks.encode(mask) for mask in union],  # an RLE even where it is empty
            "foreground_ratio": [np.count_nonzero(mask) / mask.size for mask in union],
        }
        metas[plan.split][plan.key] = {
            "expressions": {
                str(n): {
                    "exp": expression.text,
                    "obj_id": list(expression.targets),
                    "anno_id": [video.anno_ids[i] for i in expression.targets],
                    "type_id": expression.type_id,
                }
                for n, expression in enumerate(video.expressions)
            },
            "vid_id": plan.index,
            "height": plan.size[0],
            "width": plan.size[1],
            "frames": list(plan.names),
        }
        drawn.append(video)
    for split, entries in metas.items():
        _write_json(root / f"meta_expressions_{split}_.json", {"videos": entries})
    _write_json(root / "mask_dict.json", mask_dict)
    _write_json(root / "mask_dict_foreground.json", foreground)
    _write_json(root / "scenes.json", {video.plan.key: video.scene.to_json() for video in drawn})
    return drawn


def plan_videos(*, videos: int, seed: int, size: Size | None, frames: tuple[int, int]) -> list[VideoPlan]:
    """Plan three quarters train, one quarter valid (one of each from two videos up), each video with its plot."""
    valid = max(round(videos / 4), 1) if videos >= 2 else 0
    rng = np.random.default_rng([seed, 1])
    low, high = frames
    plans = []
    for index in range(videos):
        split = "train" if index < videos - valid else "valid"
        place = index if split == "train" else index - (videos - valid)  # within the split
        single = split == "valid" and place == 1  # the second valid video is a single frame
        plots = TRAIN_PLOTS if split == "train" else VALID_PLOTS
        plot = "still" if single else plots[place % len(plots)]
        if plot in LONG_PLOTS and high < LONG:
            plot = "growth"
        count = 1 if single else int(rng.integers(max(low, LONG) if plot in LONG_PLOTS else low, high + 1))
        first, stride = (145, 5) if split == "train" and place == 1 else (0, 1)
        names = tuple(f"{first + stride * t:05d}" for t in range(count))
        code = "".join("0123456789abcdef"[digit] for digit in rng.integers(0, 16, size=8))
        key = _SOURCES[index % len(_SOURCES)].format(i=index, hex=code)
        expressions = 14 if place == 0 else 7
        plans.append(VideoPlan(index, split, key, plot, size or SIZES[index % len(SIZES)], count, names, expressions))
    return plans


def draw_video(plan: VideoPlan, seed: int, background: str) -> Video:
    """Draw the scene and the questions of a video, from the plan and the seed alone, without the other videos."""
    rng = np.random.default_rng([seed, 2, plan.index])
    shapes = (3, 4) if plan.expressions > 8 else (2, 4)
    for _ in range(100):
        scene = sample_scene(
            rng, size=plan.size, frames=plan.frames, shapes=shapes, plot=plan.plot, background=background
        )
        asked = questions(scene, measure_masks(*render_masks(scene)))
        facts = {expression.fact for expression in asked}
        if facts.issuperset(MUST.get(plan.plot, ())):
            break
    else:
        raise DataError(
            f"found no {plan.plot} of {plan.frames} frames at {plan.size} that can be asked about; allow more"
        )
    chosen = choose(rng, asked, plan.expressions, must=MUST.get(plan.plot, ()))
    first = 3_000_000 + 1_000 * plan.index + int(rng.integers(500))
    return Video(plan, scene, tuple(chosen), tuple(first + 7 * i for i in range(len(scene.shapes))))


def choose(
    rng: np.random.Generator, asked: list[Expression], count: int, *, must: tuple[str, ...] = ()
) -> list[Expression]:
    """Choose up to `count` expressions: the facts `must`, then types 0, 1, 1, 0, 2 in turn, a fact seldom twice."""
    left = [asked[i] for i in rng.permutation(len(asked))]
    chosen: list[Expression] = []
    for fact in must:
        chosen.append(next(e for e in left if e.fact == fact and e.targets))
        left.remove(chosen[-1])
    for wanted in itertools.cycle((0, 1, 1, 0, 2)):
        if not left or len(chosen) >= count:
            break
        of_type = [e for e in left if e.type_id == wanted] or left
        crowded = 3 * sum(len(e.targets) > 1 for e in chosen) >= len(chosen)  # a third or more have several targets
        used = Counter(e.fact for e in chosen)
        chosen.append(min(of_type, key=lambda e: 2 * used[e.fact] + ((len(e.targets) > 1) == crowded)))
        left.remove(chosen[-1])
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _count(drawn: list[Video]) -> dict[str, dict[str, int]]:
    """Count per split: videos, frames, shapes, expressions, and those of each type and number of targets."""
    table = {}
    for split in ("train", "valid"):
        videos = [video for video in drawn if video.plan.split == split]
        expressions = [expression for video in videos for expression in video.expressions]
        types = Counter(expression.type_id for expression in expressions)
        table[split] = {
            "videos": len(videos),
            "frames": sum(video.plan.frames for video in videos),
            "shapes": sum(len(video.scene.shapes) for video in videos),
            "expressions": len(expressions),
            "referring": types[0],
            "reasoning": types[1],
            "absent": types[2],
            "multi_object": sum(len(expression.targets) > 1 for expression in expressions),
        }
    return table


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False), encoding="utf-8")
