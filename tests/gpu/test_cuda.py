"""What only a GPU can show: bfloat16 generation, SAM2 under autocast, and offloading that changes no mask."""

import numpy as np
import pytest
import torch

from inference.policies.engine import EnginePolicy
from veason.datasets import open_dataset
from veason.trackers.sam2 import Sam2Tracker
from veason.trackers.sam2_tiny import tiny_sam2
from veason.types import Clip, Question

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CLIP = Clip(frame_ids=(0, 1), size=(84, 84))
BOXES = [(10.0, 8.0, 40.0, 30.0), (50.0, 20.0, 80.0, 55.0)]


@pytest.fixture
def frames():
    picture = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    return [np.roll(picture, 2 * t, axis=1) for t in range(24)]


def test_a_policy_answers_in_bfloat16(world):
    samples = list(open_dataset("revos", world, split="valid"))[:3]
    images = (np.zeros((84, 84, 3), np.uint8), np.full((84, 84, 3), 200, np.uint8))
    policy = EnginePolicy("hf", world / "tiny_policy", max_new_tokens=8)
    assert (policy.device.type, policy.dtype) == ("cuda", torch.bfloat16)
    questions = [Question(sample=sample, clip=CLIP, images=images) for sample in samples]
    assert policy.answer(questions, seed=0) == policy.answer(questions, seed=0)


def test_offloading_changes_no_mask(frames, tmp_path):
    tiny = tiny_sam2(tmp_path, 0)
    options = {"config": tiny.config, "checkpoint": tiny.checkpoint}
    kept = Sam2Tracker(**options)
    assert (kept.device.type, kept.dtype) == ("cuda", torch.bfloat16)
    moved = Sam2Tracker(**options, offload_features_to_cpu=True, offload_state_to_cpu=True, feature_budget_bytes=0)
    tracks = [tracker.track(tracker.encode(frames), keyframe=9, boxes=BOXES) for tracker in (kept, moved)]
    assert tracks[0] == tracks[1]
    assert any(mask.any() for mask in tracks[0].unions())
