"""The vllm policy gives what the hf policy gives: replies, and through a tracker the same files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import tree

from inference import predict
from inference.policies.engine import EnginePolicy
from veason.datasets import open_dataset
from veason.errors import DataError
from veason.types import Clip, Question

MODEL = Path(__file__).parents[2] / "demo" / "base_policy"
"""The policy that the demo starts from: half of its replies are well-formed."""
SHOWN = ["--model", str(MODEL), "--frames", "6", "--model-size", "84", "--max-new-tokens", "120", "--device", "cpu"]


@pytest.fixture(scope="module")
def questions(world):
    rng = np.random.default_rng(0)
    samples, clip = list(open_dataset("revos", world, split="valid")), Clip(frame_ids=(0, 2), size=(84, 84))
    images = [tuple(rng.integers(0, 255, (84, 84, 3), dtype=np.uint8) for _ in clip.frame_ids) for _ in samples]
    return [Question(sample=s, clip=clip, images=shown) for s, shown in zip(samples, images, strict=True)]


def test_prediction_files_are_those_of_hf_byte_for_byte(world, tmp_path):
    for policy in ("hf", "vllm"):
        data = ["--data-root", str(world), "--split", "valid", "--output", str(tmp_path / policy)]
        predict.main([*data, "--policy", policy, *SHOWN, "--batch-size", "8"])
    ours, theirs = (tree(tmp_path / name) for name in ("vllm", "hf"))
    assert ours == theirs
    replies = [json.loads(line) for line in (tmp_path / "vllm" / "predictions.jsonl").read_text().splitlines()]
    assert any(line["keyframe"] is not None for line in replies)  # so that masks were compared
    assert len(replies) > 8


def test_sampled_replies_repeat_by_seed_in_any_company(questions):
    policy = EnginePolicy("vllm", MODEL, device="cpu", max_new_tokens=40, temperature=1.0, max_model_len=2048)
    together = policy.answer(questions, seed=3)
    assert together == [policy.answer([question], seed=3)[0] for question in questions]
    assert together != policy.answer(questions, seed=4)


def test_a_checkpoints_recommendation_holds_where_it_is_asked_for_as_for_hf(questions, tmp_path):
    copy = tmp_path / "penal"
    shutil.copytree(MODEL, copy)
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1.3}))
    taken = {"device": "cpu", "max_new_tokens": 40, "generation_defaults": "checkpoint"}
    ours = EnginePolicy("vllm", copy, max_model_len=2048, **taken)
    theirs = EnginePolicy("hf", copy, **taken)
    plain = EnginePolicy("hf", copy, device="cpu", max_new_tokens=40)
    assert ours.answer(questions[:6], seed=0) == theirs.answer(questions[:6], seed=0)
    assert ours.answer(questions[:6], seed=0) != plain.answer(questions[:6], seed=0)
    assert ours.describe() == {**theirs.describe(), "name": "vllm"}


def test_a_size_that_would_be_resized_is_refused(questions, tmp_path):
    copy = tmp_path / "small"
    shutil.copytree(MODEL, copy)
    config = json.loads((copy / "processor_config.json").read_text())
    config["image_processor"]["size"] = {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}
    (copy / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="the processor would resize pictures of \\(84, 84\\)"):
        EnginePolicy("vllm", copy, device="cpu", max_model_len=2048).answer(questions[:1], seed=0)
