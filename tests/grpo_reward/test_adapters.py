"""Upstream verl and TRL get the numbers of `KeyframeReward`, whatever form their frames and completions have."""

import json

import numpy as np
import pytest
from PIL import Image

from grpo_reward.adapters import compute_score, keyframe_reward, trl_reward
from grpo_reward.options import DataOptions, RewardOptions
from grpo_reward.reward_score import build
from grpo_reward.task import build as build_task
from veason.answer import format_reply
from veason.trackers.grabcut import GrabCutTracker
from veason.types import Answer

SETTINGS = {"tracker": "grabcut", "preset": "released"}


@pytest.fixture(scope="module")
def asked(world):
    config = DataOptions(train_files=str(world), keyframe_resize=112, reference_image_resize=112)
    return [build_task(config, split="train").get(index, epoch=0) for index in (0, 7)]


@pytest.fixture(scope="module")
def replies(asked):
    """Two of the first prompt, one of the second."""
    said = []
    for prompt, position in ((asked[0], 0), (asked[0], 1), (asked[1], 0)):
        boxes = tuple(box for box in prompt.target.boxes[position] if box)
        said.append(format_reply("t", Answer(prompt.target.frame_ids[position], boxes)))
    return [said[0], said[1] + " ", said[2]]


@pytest.fixture(scope="module")
def expected(asked, replies):
    reward = build(RewardOptions(**SETTINGS))
    return [*reward.score(asked[0], replies[:2]), *reward.score(asked[1], replies[2:])]


@pytest.fixture
def paths(asked, tmp_path):
    """The shown frames of the first prompt as files; PNG, so that the pixels are the same."""
    files = [tmp_path / f"{position}.png" for position in range(len(asked[0].images))]
    for file, image in zip(files, asked[0].images, strict=True):
        Image.fromarray(image).save(file)
    return [str(file) for file in files]


def test_upstream_verl(asked, replies, expected, paths):
    truth = asked[0].target.to_json()
    for shown in (asked[0].images, list(map(Image.fromarray, asked[0].images)), paths):
        for given in (truth, json.loads(truth)):
            result = compute_score("revos", replies[0], given, {"frames": shown}, **SETTINGS)
            assert result == {"score": pytest.approx(expected[0].total), **expected[0].parts, "problem": ""}
    broken = compute_score("revos", "no", truth, {"frames": paths}, **SETTINGS)
    assert (broken["score"], broken["problem"]) == (0.0, "no_answer")


def test_upstream_verl_encodes_paths_once_for_a_group(asked, replies, paths, monkeypatch):
    calls = []
    encode = GrabCutTracker.encode
    monkeypatch.setattr(GrabCutTracker, "encode", lambda self, f: calls.append(1) or encode(self, f))
    for reply in replies[:2]:
        compute_score("revos", reply, asked[0].target.to_json(), {"frames": paths}, **SETTINGS)
    assert len(calls) == 1


def test_trl(asked, replies, expected):
    owners = [asked[0], asked[0], asked[1]]
    chats = [
        [{"role": "assistant", "content": replies[0]}],
        [{"role": "assistant", "content": [{"type": "text", "text": replies[1]}]}],
        [{"role": "assistant", "content": replies[2]}],
    ]
    columns = {"target": [p.target.to_json() for p in owners], "frames": [p.images for p in owners]}
    function = trl_reward(**SETTINGS)
    assert function.__name__ == "keyframe_reward"
    for completions in (replies, chats):
        totals = function(["?"] * 3, completions, completion_ids=[[1]] * 3, trainer_state=None, **columns)
        assert totals == [pytest.approx(reward.total) for reward in expected]


def test_without_consistency_no_frames_are_needed(asked, replies, expected):
    settings = {"preset": "released", "weights": {"consistency": 0}}
    truth = asked[0].target.to_json()
    wanted = expected[0].total - expected[0].parts["consistency"]
    assert compute_score("revos", replies[0], truth, None, **settings)["score"] == pytest.approx(wanted)
    assert keyframe_reward(["?"], replies[:1], target=[truth], settings=settings) == [pytest.approx(wanted)]
    with pytest.raises(ValueError, match="needs the shown frames"):
        compute_score("revos", replies[0], truth, None, **SETTINGS)


def test_frames_of_another_size_are_resized(asked, replies, monkeypatch):
    seen = []
    encode = GrabCutTracker.encode
    monkeypatch.setattr(GrabCutTracker, "encode", lambda self, f: seen.extend(f) or encode(self, f))
    large = [np.zeros((224, 224, 3), np.uint8)] * len(asked[0].images)
    compute_score("revos", replies[0], asked[0].target.to_json(), {"frames": large}, **SETTINGS)
    assert [image.shape for image in seen] == [(112, 112, 3)] * len(large)
