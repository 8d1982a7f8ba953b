"""One call judges a group: frames encoded once, identical answers tracked once; presets and tracker from a config."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from grpo_reward.options import RELEASED, TERMS, DataOptions, RewardOptions
from grpo_reward.reward_score import KeyframeReward, build
from grpo_reward.target import Target
from grpo_reward.task import build as build_task
from veason import masks
from veason.answer import format_reply
from veason.trackers import open_tracker
from veason.trackers.sam2_tiny import tiny_sam2
from veason.types import Answer
from verl.config import ConfigError
from verl.protocol import Prompt
from verl.workers.reward import check_reward

NAME = "video_match_keyframe_sft_sam_mod"


def test_a_group_is_encoded_once_and_identical_answers_tracked_once(prompt, filler, say):
    reward = KeyframeReward(tracker=filler)
    again = say(12, "[[4, 20, 13, 29]]").replace("<think>t", "<think>other words")
    replies = [say(12, "[[4, 20, 13, 29]]"), again, "no", say(2, "[[4, 20, 13, 29]]"), say(12, "[[4.0, 20, 13, 29.0]]")]
    rewards = reward.score(prompt, [*replies, *replies])
    assert (filler.encoded, len(filler.tracked)) == (1, 2)
    assert rewards[0] == rewards[1] == rewards[4] == rewards[5]
    assert [r.problem for r in rewards[:5]] == [None, None, "no_answer", None, None]
    reward.score(prompt, replies[:1])
    assert filler.encoded == 1  # the same list of images


def test_true_masks_are_decoded_once_a_prompt(prompt, target, filler, say, monkeypatch):
    """Three shown frames, however many different answers there are; the tracker's own masks are not counted."""
    reward, decoded = KeyframeReward(tracker=filler), []
    decode = masks.decode
    true = {id(rle) for rle in target.masks}
    monkeypatch.setattr(masks, "decode", lambda rle, size: decoded.append(id(rle) in true) or decode(rle, size))
    replies = [say(12, f"[[4, {y}, 13, 29]]") for y in range(15, 23)]
    first = reward.score(prompt, replies)
    assert (len(filler.tracked), sum(decoded)) == (8, 3)
    assert len({one.parts["consistency"] for one in first}) > 4
    assert reward.score(prompt, replies) == first
    assert sum(decoded) == 3
    other = Target(target.frame_ids, target.size, target.boxes, (target.masks[2],) * 3)
    moved = reward.score(Prompt("v/1", [], prompt.images, other), replies)
    assert [one.parts["consistency"] for one in moved] != [one.parts["consistency"] for one in first]
    assert reward.score(prompt, replies) == first  # and back


def test_nothing_is_encoded_where_no_reply_needs_it(prompt, filler, say):
    KeyframeReward(tracker=filler).score(prompt, ["no", say(13, "[[1, 2, 3, 4]]"), say(12, "[]")])
    assert filler.encoded == 0


def test_without_consistency_no_tracker_is_built_and_no_pixels_are_needed(target, say):
    reward = build(RewardOptions(tracker="sam2", weights={"consistency": 0.0}))
    assert reward.tracker is None
    bare = Prompt(uid="v/0", messages=[], images=None, target=target)
    assert reward.score(bare, [say(12, "[[4.5, 20.5, 13.5, 29.5]]")])[0].total == 2.5


def test_the_replies_are_in_the_space_of_their_family(target, filler, prompt, say):
    """Qwen3-VL says 0 … 1000 over the picture: 500 is column 28 of 56."""
    thousand = Target(target.frame_ids, target.size, target.boxes, target.masks, family="Qwen3-VL")
    boxes = [[value * 1000 / 56 for value in (4.5, 20.5, 13.5, 29.5)]]
    asked = Prompt(uid="v/0", messages=[], images=prompt.images, target=thousand)
    reward = KeyframeReward(tracker=filler).score(asked, [say(12, boxes)])[0]
    assert reward.parts["spatial"] == pytest.approx(1, abs=1e-3)
    assert filler.tracked[0][1][0] == pytest.approx((4.5, 20.5, 13.5, 29.5), abs=1e-2)


def test_a_tracker_that_fails_is_no_score(prompt, say):
    class Broken:
        name = "broken"

        def encode(self, frames):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        KeyframeReward(tracker=Broken()).score(prompt, [say(12, "[[4, 20, 13, 29]]")])
    assert caught.value.__notes__ == ["while judging the replies to video/0"]


def test_images_of_another_size_are_refused(prompt, target, filler, say):
    wrong = Prompt(uid="v/0", messages=[], images=[np.zeros((28, 28, 3), np.uint8)] * 3, target=target)
    with pytest.raises(ValueError, match=r"3 frames of \(56, 56\)"):
        KeyframeReward(tracker=filler).score(wrong, [say(12, "[[4, 20, 13, 29]]")])


def test_what_a_config_builds():
    config = RewardOptions(preset="released", tracker="grabcut", options={"zero_boxes": "false", "block": "first"})
    reward = build(config)
    assert reward.preset == RELEASED.switch(zero_boxes=False)
    assert reward.tracker.name == "grabcut"
    for wrong, message in (
        ({"preset": "relaesed"}, "no reward preset is called 'relaesed'; the nearest is 'released'"),
        ({"options": {"zero_boxes": "maybe"}}, "zero_boxes is 'maybe', expected true or false"),
        ({"options": {"block": "last"}}, "block is 'last'"),
        ({"tracker": "sam3"}, "no tracker is called 'sam3'"),
        ({"tracker": "sam2"}, "sam2_checkpoint is empty"),
        ({"tracker": "grabcut", "sam2_mode": "image"}, "sam2_mode is 'image'"),
    ):
        with pytest.raises(ValueError, match=message):
            build(RewardOptions(**wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"options": {"zero_boxs": "maybe"}}, "no reward switch is called 'zero_boxs'; the nearest is 'zero_boxes'"),
        ({"options": {"max_depth": "deep"}}, "max_depth is 'deep', expected a whole number"),
        ({"weights": {"spacial": 1.0}}, "no reward term is called 'spacial'; the nearest is 'spatial'"),
        ({"weights": {"spatial": -1.0}}, r"weights\.spatial is -1\.0, expected a finite number of 0 or more"),
        ({"weights": dict.fromkeys(TERMS, 0.0)}, "every weight of worker.reward.weights is 0"),
        ({"tracker": "sam2"}, "sam2_checkpoint is empty"),
        ({"tracker": "grabcat"}, "no tracker is called 'grabcat'"),
        (
            {"tracker": "grabcut", "sam2_checkpoint": "x.pt"},
            "sam2_checkpoint is 'x.pt', which the tracker grabcut never",
        ),
        ({"tracker": "grabcut", "sam2_mode": "image"}, "sam2_mode is 'image'"),
        ({"sam2_checkpoint": "{folder}/nowhere.pt"}, r"nowhere\.pt: no such checkpoint"),
        ({"sam2_checkpoint": "{folder}"}, "no such checkpoint"),
        ({"sam2_checkpoint": "{folder}/pointer.pt"}, r"pointer\.pt: not a file of weights but a Git LFS pointer"),
        ({"sam2_checkpoint": "{folder}/page.pt"}, r"page\.pt: not a file of weights but a web page"),
        ({"sam2_checkpoint": "{folder}/other.pt"}, r"other\.pt does not fit"),
        ({"sam2_checkpoint": "{folder}/cut.pt"}, r"cut\.pt: cannot be read"),
        ({"sam2_checkpoint": "{folder}/code.pt"}, r"code\.pt: cannot be read"),
        (
            {"sam2_checkpoint": "{folder}/other.pt", "sam2_config": "configs/none.yaml"},
            r"'configs/none\.yaml' is neither",
        ),
    ],
)
def test_a_run_that_its_reward_would_end_does_not_start(tiny, tmp_path, wrong, message):
    """By `check_reward`, which builds no worker, in one line."""
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html></html>")
    (tmp_path / "cut.pt").write_bytes(tiny.checkpoint.read_bytes()[:5000])
    (tmp_path / "code.pt").write_bytes(pickle.dumps(KeyframeReward, protocol=2))
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "other.pt")
    given = {key: v.format(folder=tmp_path) if isinstance(v, str) else v for key, v in wrong.items()}
    config = replace(RewardOptions(compute_score=NAME, sam2_config=str(tiny.config)), **given)
    if config.tracker != "sam2":
        config = replace(config, sam2_config=RewardOptions().sam2_config)
    with pytest.raises(ConfigError, match=message) as caught:
        check_reward(config)
    assert "\n" not in str(caught.value)


def test_what_is_right_passes_the_check(tiny):
    config = RewardOptions(compute_score=NAME, sam2_config=str(tiny.config), sam2_checkpoint=str(tiny.checkpoint))
    check_reward(config)
    check_reward(RewardOptions(compute_score=NAME, tracker="grabcut", options={"zero_boxes": "true"}))
    check_reward(replace(config, sam2_checkpoint="nowhere.pt", weights={"consistency": 0.0}))  # an ablation is one line


def test_the_nearest_reward_is_named():
    with pytest.raises(
        ConfigError, match=r"compute_score=video_match: .*did you mean video_match_keyframe_sft_sam_mod"
    ):
        check_reward(RewardOptions(compute_score="video_match"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_sam2(tmp_path_factory.mktemp("sam2"), 0)


def test_a_target_pickles_and_is_json_both_ways(target, prompt):
    assert pickle.loads(pickle.dumps(prompt)).target == target
    assert Target.from_json(target.to_json()) == target
    assert target.areas == (50, 100, 200)
    assert len(pickle.dumps(target)) < 2000
    with pytest.raises(ValueError, match="a target without masks"):
        Target.from_json({"frame_ids": [1], "size": [4, 4], "boxes": []})


@pytest.fixture(scope="module")
def shown(world):
    """A prompt of the synthetic world with its true answer on its best frame."""
    config = DataOptions(train_files=str(world), keyframe_resize=112, reference_image_resize=112)
    prompt = build_task(config, split="train").get(0, epoch=0)
    position = int(np.argmax(prompt.target.areas))
    boxes = tuple(box for box in prompt.target.boxes[position] if box)
    return prompt, Answer(prompt.target.frame_ids[position], boxes)


def test_grabcut_on_the_synthetic_world(shown):
    """The truth is worth more than a box beside it, and the whole is what the tracker alone gives."""
    prompt, truth = shown
    reward = build(RewardOptions(tracker="grabcut"))
    [(x1, y1, x2, y2)] = truth.boxes
    beside = Answer(truth.keyframe, ((x1 - 20, y1 - 20, x2 - 20, y2 - 20),))
    good, bad = reward.score(prompt, [format_reply("t", truth), format_reply("t", beside)])
    assert good.parts["spatial"] > 0.99
    assert good.parts["keyframe"] == 1.0
    assert good.parts["consistency"] > bad.parts["consistency"]
    tracker, target = open_tracker("grabcut"), prompt.target
    said = tuple(round(value, 2) for value in truth.boxes[0])
    track = tracker.track(
        tracker.encode(prompt.images), keyframe=target.clip.position(truth.keyframe), boxes=[said]
    )  # fmt: skip
    ious = [
        masks.iou(masks.track_union(track, t), masks.decode(target.masks[t], target.size))
        for t in range(len(target.clip))
    ]
    assert good.parts["consistency"] == pytest.approx(np.mean(ious))


def test_sam2_encodes_each_shown_frame_once(shown, tmp_path):
    prompt, truth = shown
    files = tiny_sam2(tmp_path, 0)
    reward = build(RewardOptions(sam2_config=str(files.config), sam2_checkpoint=str(files.checkpoint)))
    calls = []
    reward.tracker.predictor.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    frame_ids = prompt.target.frame_ids
    rewards = reward.score(prompt, [format_reply("t", Answer(k, truth.boxes)) for k in frame_ids])
    assert len(calls) == len(frame_ids)
    assert all(0 <= r.parts["consistency"] <= 1 for r in rewards)
