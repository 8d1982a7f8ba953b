"""Makes a ReVOS root and predictions for it quickly: few pictures are drawn, most files are links to them.

Each video has 20 expressions about 8 targets (6 objects, 2 pairs) that move through 40 frames of 480 x 854; a
prediction is its target moved by a few pixels. The frames are missing, since scoring does not need them. Ten videos are
drawn, the others repeat them under new names.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.bench_metrics import blob, moved
from veason import mask_png, masks
from veason.types import Rle, Size

SIZE: Size = (480, 854)
FRAMES, EXPRESSIONS = 40, 20
TARGETS = ((0,), (1,), (2,), (3,), (4,), (5,), (0, 1), (2, 3))
DRAWN = 10
NAMES = [f"{t:05d}" for t in range(FRAMES)]
FORMS = ("png", "png1", "rle")


def build(root: Path, videos: int) -> None:
    """Writes ``gt`` and a prediction folder for each of `FORMS` below `root`, whole or not at all."""
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "gt").mkdir(parents=True)
    tracks: dict[str, list[Rle]] = {}
    foreground: dict[str, dict[str, list[Rle | None]]] = {}
    meta: dict[str, dict] = {}
    (partial / "rle").mkdir()
    with open(partial / "rle" / "masks.jsonl", "w") as lines:
        for index in range(videos):
            video, drawn = f"UVO/all/-bench_{index:04d}", index % DRAWN
            objects = [_track(drawn, k) for k in range(6)]
            ids = [1000 + 6 * index + k for k in range(6)]
            tracks |= {str(anno_id): track for anno_id, track in zip(ids, objects, strict=True)}
            foreground[video] = {"masks_rle": [masks.merge(list(rles)) for rles in zip(*objects, strict=True)]}
            expressions = {}
            for e in range(EXPRESSIONS):
                anno_ids = [ids[k] for k in TARGETS[e % len(TARGETS)]]
                numbers = list(range(len(anno_ids)))
                expressions[str(e)] = {"exp": f"thing {e}", "obj_id": numbers, "anno_id": anno_ids, "type_id": e % 2}
            height, width = SIZE
            about = {"vid_id": index, "frames": NAMES, "height": height, "width": width}
            meta[video] = {"expressions": expressions, **about}
            for line in _predict(partial, video, drawn):
                lines.write(json.dumps(line) + "\n")
    (partial / "gt" / "mask_dict.json").write_text(json.dumps(tracks))
    (partial / "gt" / "mask_dict_foreground.json").write_text(json.dumps(foreground))
    (partial / "gt" / "meta_expressions_valid_.json").write_text(json.dumps({"videos": meta}))
    os.replace(partial, root)


_tracks: dict[tuple[int, int], list[Rle]] = {}


def _track(drawn: int, k: int) -> list[Rle]:
    if (drawn, k) not in _tracks:
        rng = np.random.default_rng((drawn, k))
        side, start, way = rng.uniform(0.1, 0.45), rng.uniform(0.2, 0.8, 2), rng.uniform(-0.004, 0.004, 2)
        places = [tuple(start + way * t) for t in range(FRAMES)]
        _tracks[drawn, k] = [masks.encode(blob(SIZE, side=side, at=at, seed=1000 * drawn + k)) for at in places]
    return _tracks[drawn, k]


def _predict(root: Path, video: str, drawn: int) -> Iterator[dict]:
    """Writes or links a video's PNGs; yields the lines of its RLEs."""
    for e in range(EXPRESSIONS):
        target = e % len(TARGETS)
        predicted = [_predicted(drawn, target, t) for t in range(FRAMES)]
        for form, bits in (("png", 8), ("png1", 1)):
            folder = root / form / video / str(e)
            folder.mkdir(parents=True)
            for t, name in enumerate(NAMES):
                source = root / "drawn" / form / str(drawn) / f"{target}-{t}.png"
                if not source.exists():
                    source.parent.mkdir(parents=True, exist_ok=True)
                    source.write_bytes(mask_png.encode(masks.decode(predicted[t], SIZE), bits=bits))
                os.link(source, folder / f"{name}.png")
        yield {"video": video, "exp_id": str(e), "size": list(SIZE), "counts": [rle["counts"] for rle in predicted]}


_predictions: dict[tuple[int, int, int], Rle] = {}


def _predicted(drawn: int, target: int, t: int) -> Rle:
    """Returns the predicted mask: the true one, moved by a few pixels."""
    key = (drawn, target, t)
    if key not in _predictions:
        rles = [_track(drawn, k)[t] for k in TARGETS[target]]
        _predictions[key] = masks.encode(moved(masks.union(rles, SIZE), 3, -4 - target))
    return _predictions[key]
