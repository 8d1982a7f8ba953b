"""Shared fixtures: a small ReVOS root made by hand, and the synthetic world with its tiny policy."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from veason import masks

# `make test` takes few random examples, `make test-all` many (--hypothesis-profile thorough). Machines may be slow.
CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("fast", max_examples=25, deadline=None, suppress_health_check=CHECKS)
settings.register_profile("thorough", max_examples=300, deadline=None, suppress_health_check=CHECKS)
settings.load_profile("fast")

SIZE = (48, 64)
FRAMES = ("00000", "00005", "00010", "00015")


# A worker takes a file at a time. The longest begin first, so that no worker is left alone with one at the end.
LONGEST = (
    "verl/test_training.py",
    "inference/test_distributed.py",
    "demo/test_demo.py",
    "training_data_construction/test_sft_scripts.py",
    "training_scripts/test_slurm.py",
    "verl/test_nodes.py",
    "gpu/test_checks_on_cpu.py",
    "inference/test_commands.py",
    "inference/policies/test_engine.py",
    "verl/test_reward_pool.py",
    "verl/test_actor.py",
    "verl/test_export.py",
    "veason/test_mask_png.py",
    "verl/test_checkpoint.py",
    "verl/test_actor_ranks.py",
    "verl/test_worker_group.py",
    "inference/test_served_policy.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {str(Path(__file__).parent / name): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Commands that are called in this process set up logging for themselves; the next test finds it as it was."""
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler).__module__ == "verl.utils.logs"]:
        root.removeHandler(handler)
    logging.getLogger("verl").setLevel(logging.NOTSET)


def square(t: int) -> np.ndarray:
    """A 10 x 10 square that moves 8 px to the right per frame: (48, 64) bool."""
    mask = np.zeros(SIZE, bool)
    mask[20:30, 4 + 8 * t : 14 + 8 * t] = True
    return mask


def dot(t: int) -> np.ndarray:
    """A 6 x 6 square that stays in the corner."""
    mask = np.zeros(SIZE, bool)
    mask[2:8, 50:56] = True
    return mask


class HandMadeRoot:
    """A ReVOS root with one video of four frames, `UVO/-a_b`, that a test may break before reading it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.video = "UVO/-a_b"
        square_rles = [masks.encode(square(t)) for t in range(4)]
        dot_rles = [None, *(masks.encode(dot(t)) for t in range(1, 4))]  # appears late
        self.mask_dict = {"9000000001": square_rles, "9000000002": dot_rles}
        self.meta = {
            "videos": {
                self.video: {
                    "vid_id": 0,
                    "height": SIZE[0],
                    "width": SIZE[1],
                    "frames": list(FRAMES),
                    "expressions": {
                        "0": {"exp": "the square", "obj_id": [0], "anno_id": [9000000001], "type_id": 0},
                        "1": {
                            "exp": "what is there?",
                            "obj_id": [0, 1],
                            "anno_id": [9000000001, 9000000002],
                            "type_id": 1,
                        },
                        "2": {"exp": "the dog", "obj_id": [], "anno_id": [], "type_id": 2},
                    },
                }
            }
        }
        for t, frame in enumerate(FRAMES):
            picture = np.full((*SIZE, 3), 90, np.uint8)
            picture[square(t)] = (220, 40, 40)
            picture[dot(t)] = (40, 40, 220)
            self.frame(frame).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(self.frame(frame), quality=95)

    def frame(self, name: str) -> Path:
        return self.path / "JPEGImages" / self.video / f"{name}.jpg"

    def write(self) -> Path:
        """Write the JSON files as they now are; the root."""
        (self.path / "meta_expressions_valid_.json").write_text(json.dumps(self.meta))
        (self.path / "mask_dict.json").write_text(json.dumps(self.mask_dict))
        return self.path


@pytest.fixture
def hand_made(tmp_path: Path) -> HandMadeRoot:
    return HandMadeRoot(tmp_path / "root")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic world (ReVOS root) with ``tiny_policy`` beside it."""
    from demo import world as command

    root = tmp_path_factory.mktemp("world") / "root"
    command.main(["--out", str(root), "--videos", "8", "--seed", "7"])
    return root


@pytest.fixture(scope="session")
def two_videos(tmp_path_factory) -> Path:
    """A synthetic world of two short videos, to be read only."""
    from demo import world as command

    root = tmp_path_factory.mktemp("two") / "world"
    arguments = ["--videos", "2", "--size", "84x112", "--max-frames", "8", "--seed", "5", "--no-policy"]
    assert command.main(["--out", str(root), *arguments]) == 0
    return root
