"""One written world for all tests, read back with the standard library and pycocotools only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from demo.writer import build_world


@dataclass(frozen=True)
class World:
    root: Path
    metas: dict[str, dict[str, Any]]
    """split -> video -> entry"""
    mask_dict: dict[str, list[Any]]
    foreground: dict[str, Any]

    @property
    def videos(self) -> dict[str, dict[str, Any]]:
        return self.metas["train"] | self.metas["valid"]

    def masks(self, anno_id: int) -> np.ndarray:
        """(T, H, W) bool of one annotation; all False where it is null."""
        rles = self.mask_dict[str(anno_id)]
        height, width = next(rle for rle in rles if rle)["size"]
        return np.stack([coco.decode(r).astype(bool) if r else np.zeros((height, width), bool) for r in rles])

    def frame(self, video: str, position: int) -> np.ndarray:
        return np.asarray(
            Image.open(self.root / "JPEGImages" / video / f"{self.videos[video]['frames'][position]}.jpg")
        )


def read(root: Path) -> World:
    metas = {s: json.loads((root / f"meta_expressions_{s}_.json").read_text())["videos"] for s in ("train", "valid")}
    mask_dict = json.loads((root / "mask_dict.json").read_text())
    return World(root, metas, mask_dict, json.loads((root / "mask_dict_foreground.json").read_text()))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("worlds") / "world"
    build_world(root, videos=12, seed=5)
    return read(root)
