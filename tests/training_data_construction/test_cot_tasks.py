"""From a sample to a task by hand: which expressions, which frames, which boxes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.writer import build_world
from grpo_reward.target import Target
from training_data_construction.cot_tasks import CotTask, Rules, choose, keyframe_grid, plan, to_model
from training_data_construction.records import CotRecord
from veason import masks
from veason.datasets.revos import ReVOS
from veason.errors import DataError
from veason.types import VideoSample

SIZE = (48, 64)


def sample(video: str, exp_id: str, **changes) -> VideoSample:
    kept = VideoSample("revos", video, exp_id, "the cat", ("0", "1"), Path("frames"), SIZE, type_id=0, anno_ids=(1,))
    return replace(kept, **changes)


class InMemory(list):
    """A data set of samples with given tracks."""

    def __init__(self, *pairs):
        super().__init__(sample for sample, _ in pairs)
        self._tracks = {sample.key: tracks for sample, tracks in pairs}

    def object_rles(self, sample):
        return self._tracks[sample.key]


def rect(x1, y1, x2, y2):
    """RLE of a filled rectangle, inclusive corners."""
    mask = np.zeros(SIZE, bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = True
    return masks.encode(mask)


# the grid


@pytest.mark.parametrize(
    ("length", "n", "keyframe", "expected"),
    [
        (16, 8, 5, (1, 3, 5, 7, 9, 11, 13, 15)),  # step 2
        (20, 8, 0, (0, 2, 5, 7, 10, 12, 15, 17)),  # step 2.5, rounded down
        (20, 8, 19, (1, 4, 6, 9, 11, 14, 16, 19)),
        (5, 8, 3, (0, 1, 2, 3, 4)),
        (9, 1, 4, (4,)),
    ],
)
def test_the_grid_by_hand(length, n, keyframe, expected):
    assert keyframe_grid(length, n, keyframe=keyframe) == expected


@given(st.data(), st.integers(1, 5000), st.integers(1, 40))
def test_the_grid_is_uniform_and_holds_the_keyframe(data, length, n):
    keyframe = data.draw(st.integers(0, length - 1))
    ids = keyframe_grid(length, n, keyframe=keyframe)
    assert len(ids) == min(n, length)
    assert keyframe in ids
    gaps = set(np.diff(ids))
    assert all(gap >= 1 for gap in gaps)  # ascending, unique
    assert not gaps or max(gaps) - min(gaps) <= 1
    step = max(1, length / n)
    assert 0 <= ids[0] < step
    assert length - step - 1 < ids[-1] < length  # nothing left out at either end


def test_a_keyframe_outside_the_video_is_no_grid():
    with pytest.raises(ValueError, match="keyframe 4 is not a frame of a video of 4"):
        keyframe_grid(4, 8, keyframe=4)


def test_the_masks_may_lie_elsewhere(hand_made, tmp_path):
    root = hand_made.write()
    masks_file = (root / "mask_dict.json").rename(tmp_path / "other_masks.json")
    meta = root / "meta_expressions_valid_.json"
    dataset = ReVOS(root / "JPEGImages", split="x", image_root=root / "JPEGImages", meta=meta, masks=masks_file)
    assert dataset.files["masks"] == masks_file
    assert len(plan(dataset, 1, Rules(seed=0)).clip) == 4


# the choice


def test_absent_and_excluded_ones_are_left_out_and_counted():
    samples = [sample("a", "0"), sample("a", "1", type_id=2), sample("b", "0"), sample("b", "1")]
    numbers, left_out = choose(samples, per_video=10, seed=0, exclude=frozenset({"b/0"}))
    assert numbers == [0, 3]
    assert left_out == {"absent target": 1, "excluded": 1}


def test_at_most_so_many_of_a_video_drawn_by_seed_and_video():
    samples = [sample(video, str(i)) for video in "ab" for i in range(12)]
    numbers, left_out = choose(samples, per_video=10, seed=3)
    assert [sum(n < 12 for n in numbers), sum(n >= 12 for n in numbers)] == [10, 10]
    assert numbers == sorted(numbers)
    assert left_out == {"over the limit per video": 4}
    assert choose(samples, per_video=10, seed=3)[0] == numbers
    assert choose(samples, per_video=10, seed=4)[0] != numbers
    alone = choose(samples[12:], per_video=10, seed=3)[0]
    assert [n + 12 for n in alone] == numbers[10:]  # another video more or less changes nothing


def test_an_expression_that_no_prompt_can_hold_is_named_before_anything_is_paid_for():
    with pytest.raises(DataError, match=r"^a/7: .*control mark"):
        choose([sample("a", "7", expression="the <image> cat")], per_video=1, seed=0)


# the boxes


def test_overlapping_objects_keep_a_box_each():
    """The released bug: the per-object mask was never emptied, so box 1 was that of both objects."""
    tracks = [[rect(0, 0, 31, 23)] * 2, [rect(16, 12, 47, 35)] * 2]
    task = plan(InMemory((sample("a", "0"), tracks)), 0, Rules(seed=0, model_size=(560, 560), box_decimals=2))
    sx, sy = 560 / 64, 560 / 48  # 8.75, 11.67
    first = (0.5, 0.5, round(31 * sx + 0.5, 2), round(23 * sy + 0.5, 2))
    second = (round(16 * sx + 0.5, 2), round(12 * sy + 0.5, 2), round(47 * sx + 0.5, 2), round(35 * sy + 0.5, 2))
    assert first == (0.5, 0.5, 271.75, 268.83)
    assert second == (140.5, 140.5, 411.75, 408.83)
    assert task.answer.boxes == (first, second)
    assert task.boxes == (((0, 0, 31, 23), (16, 12, 47, 35)),) * 2
    assert solution(task)["bbox_2d_list"] == [list(first), list(second)]


def test_an_object_absent_on_the_keyframe_has_no_box():
    """The released bug: it had the box [0, 0, 0, 0]."""
    tracks = [[rect(4, 4, 40, 40), None], [None, rect(8, 8, 12, 12)], [rect(50, 2, 55, 7), None]]
    for seed in range(8):
        task = plan(InMemory((sample("a", "0"), tracks)), 0, Rules(seed=seed, box_decimals=0))
        expected = {0: [[36, 47, 350, 467], [438, 24, 482, 82]], 1: [[70, 94, 106, 140]]}[task.answer.keyframe]
        assert solution(task)["bbox_2d_list"] == expected


def solution(task: CotTask) -> dict:
    return CotRecord(sample=task.sample, clip=task.clip, thinking="x", answer=task.answer).to_json()["solution"]


def test_the_answer_is_the_reward_s_true_boxes(tmp_path):
    """The answers of the SFT data get the full spatial reward: two packages that do not import each other agree."""
    build_world(tmp_path / "world", videos=4, seed=7, policy=False)
    dataset = ReVOS(tmp_path / "world", split="train")
    compared = 0
    for number, asked in enumerate(dataset):
        if asked.type_id == 2:
            continue
        task = plan(dataset, number, Rules(seed=1))
        target = Target.of_tracks(dataset.object_rles(asked), task.clip, size=asked.size)
        true = [box for box in target.boxes[task.clip.position(task.answer.keyframe)] if box is not None]
        inside = [[min(value, 559) for value in box] for box in true]
        assert np.allclose(task.answer.boxes, inside, atol=0.005 + 1e-9)
        compared += len(true)
    assert compared > 20


def test_boxes_stay_in_a_shrunk_picture():
    native, model = (1080, 1920), (560, 560)
    assert to_model((0, 0, 1919, 1079), native, model, decimals=2) == (0.5, 0.5, 559, 559)
    assert to_model((1919, 1079, 1919, 1079), native, model, decimals=0) == (559, 559, 559, 559)  # still a box


def test_a_target_in_no_frame_is_no_task():
    assert plan(InMemory((sample("a", "0"), [[None, None]])), 0, Rules(seed=0)) is None


def test_the_keyframe_is_one_of_the_five_of_largest_area():
    length = 12
    tracks = [[rect(0, 0, t, 10) for t in range(length)]]  # grows
    asked = sample("a", "0", frames=tuple(str(t) for t in range(length)))
    tasks = [plan(InMemory((asked, tracks)), 0, Rules(seed=seed, frames=4)) for seed in range(40)]
    assert {task.answer.keyframe for task in tasks} == {7, 8, 9, 10, 11}
    assert all(task.clip.position(task.answer.keyframe) is not None and len(task.clip) == 4 for task in tasks)
