"""The policies that need no model."""

import json
import os

import pytest

from inference.policies.oracle import OraclePolicy
from inference.policies.replay import ReplayPolicy, read_records
from veason import boxes
from veason.answer import parse_reply
from veason.datasets import open_dataset
from veason.errors import DataError
from veason.types import Clip, Question

SIZE = (56, 56)


def ask(policy, sample, clip):
    return parse_reply(policy.answer([Question(sample=sample, clip=clip, images=())], seed=0)[0])


def test_the_oracle_picks_the_largest_shown_frame_and_its_true_boxes(hand_made):
    dataset = open_dataset("revos", hand_made.write(), split="valid")
    reply = ask(OraclePolicy(dataset), dataset[1], Clip(frame_ids=(0, 2, 3), size=SIZE))
    assert reply.problem is None
    assert reply.answer.keyframe == 2  # square and dot: 136 px, as in frame 3, which comes later
    found = boxes.rescale(reply.answer.boxes, SIZE, (48, 64))
    assert found == (pytest.approx((20, 20, 29, 29), abs=0.02), pytest.approx((50, 2, 55, 7), abs=0.02))


def test_an_object_that_is_not_in_the_keyframe_gets_no_box(hand_made):
    dataset = open_dataset("revos", hand_made.write(), split="valid")
    reply = ask(OraclePolicy(dataset), dataset[1], Clip(frame_ids=(0,), size=SIZE))
    assert len(reply.answer.boxes) == 1


def test_the_oracle_says_when_there_is_no_target(hand_made):
    dataset = open_dataset("revos", hand_made.write(), split="valid")
    reply = ask(OraclePolicy(dataset), dataset[2], Clip(frame_ids=(0, 3), size=SIZE))
    assert (reply.problem, reply.answer.keyframe, reply.well_formed) == ("no_boxes", 0, True)


def replay(tmp_path, *records):
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return ReplayPolicy.from_file(path, n=2, size=SIZE)


def test_a_recorded_reply_is_replayed_on_its_own_clip(hand_made, tmp_path):
    sample = open_dataset("revos", hand_made.write(), split="valid")[0]
    text = '<think>x</think><answer>{"keyframe_timestamp": 1, "bbox_2d_list": [[1, 2, 3, 4]]}</answer>'
    record = {"video": sample.video, "exp_id": "0", "reply": text, "frame_ids": [1, 3], "model_size": [84, 112]}
    policy = replay(tmp_path, record)
    assert policy.choose_clip(sample) == Clip(frame_ids=(1, 3), size=(84, 112))
    assert ask(policy, sample, policy.choose_clip(sample)).text == text


def test_hand_written_boxes_are_in_video_pixels(hand_made, tmp_path):
    sample = open_dataset("revos", hand_made.write(), split="valid")[0]
    policy = replay(tmp_path, {"video": sample.video, "exp_id": "0", "keyframe": 2, "boxes": [[16, 24, 32, 36]]})
    clip = policy.choose_clip(sample)
    assert clip == Clip(frame_ids=(0, 2, 3), size=SIZE)  # two frames evenly, and the keyframe
    reply = ask(policy, sample, clip)
    assert reply.answer.keyframe == 2
    assert reply.answer.boxes == ((14, 28, 28, 42),)  # x * 56 / 64, y * 56 / 48


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"exp_id": "7"}, "nothing is recorded for UVO/-a_b/0"),
        ({"boxes": [[1, 2, 3, 4]]}, "needs a reply, or a keyframe"),
        ({"keyframe": 9, "boxes": []}, "frame ids must be ints from 0 to 3"),
        ({"keyframe": 1, "boxes": [[1, 2, 3]]}, "boxes must be"),
        ({"keyframe": 1, "boxes": [[1, 2, 3, None]]}, "boxes must be"),
        ({"keyframe": 1}, "boxes must be"),
        ({"keyframe": 1, "boxes": [[1, 2, 3, float("nan")]]}, "boxes must be"),
        ({"keyframe": 1, "boxes": [[1, 2, 3, float("inf")]]}, "boxes must be"),
        ({"keyframe": 1, "boxes": [[1, 2, 3, 10**400]]}, "boxes must be"),
        ({"keyframe": 1, "boxes": [[3, 2, 1, 4]]}, "second corner left of or above"),
        ({"keyframe": True, "boxes": [[1, 2, 3, 4]]}, "needs a reply, or a keyframe"),
        ({"keyframe": -1, "boxes": [[1, 2, 3, 4]]}, "frame ids must be ints from 0 to 3"),
        ({"reply": "x", "frame_ids": [0, 99]}, "frame ids must be"),
        ({"reply": "x", "frame_ids": [0], "model_size": [0, 1]}, "model_size must be"),
        ({"family": "Nobody"}, "known model family"),
    ],
)
def test_a_bad_record_is_named(hand_made, tmp_path, record, message):
    sample = open_dataset("revos", hand_made.write(), split="valid")[0]
    with pytest.raises(DataError, match=message):
        answer_once(replay(tmp_path, {"video": sample.video, "exp_id": "0", **record}), sample)


def answer_once(policy, sample):
    return ask(policy, sample, policy.choose_clip(sample))


def test_two_records_for_a_sample_are_refused(tmp_path):
    with pytest.raises(DataError, match="2 lines for 1 samples"):
        replay(tmp_path, {"video": "a", "exp_id": "0"}, {"video": "a", "exp_id": "0"})
    with pytest.raises(DataError, match="no such file"):
        ReplayPolicy.from_file(tmp_path / "none.jsonl", n=2, size=SIZE)


GOOD_LINE = b'{"video": "a", "exp_id": "0", "keyframe": 0, "boxes": []}'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html></html>\n", "a web page"),
        (b"", "empty"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (GOOD_LINE + b"\n" + GOOD_LINE[:30], r"\.jsonl:2: not a JSON record.*cut off"),
        (GOOD_LINE + b"\nnonsense\n", r"\.jsonl:2: not a JSON record"),
        (b"[1]\n", r"\.jsonl:1: expected a JSON object a line.*found list"),
        (b"[" * 100_000, "not a JSON record"),
    ],
)
def test_a_file_that_is_no_predictions_says_what_it_is(tmp_path, data, message):
    path = tmp_path / "said.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        ReplayPolicy.from_file(path, n=2, size=SIZE)


def test_a_last_line_without_its_line_feed_counts_and_a_pipe_is_refused(tmp_path):
    path = tmp_path / "said.jsonl"
    path.write_bytes(GOOD_LINE)
    assert read_records(path) == [{"video": "a", "exp_id": "0", "keyframe": 0, "boxes": []}]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe"):
        read_records(tmp_path / "pipe")
