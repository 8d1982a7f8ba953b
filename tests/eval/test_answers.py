"""Answers on a clip small enough to judge by hand.

Four frames of 24 x 40, all but the last shown. Object A is 4 x 5 at (2, 3) in frame 0, 10 x 10 there from frame 1 on.
Object B is 10 x 10 at (20, 3) in frames 2 and 3. Areas of the union: 20, 100, 200, 200.
"""

import math

import numpy as np
import pytest

from eval.answers import Quality, judge, means
from grpo_reward.terms import keyframe_term, spatial_term
from veason import masks

SIZE, SHOWN = (24, 40), (0, 1, 2)
A, B = (2.0, 3.0, 11.0, 12.0), (20.0, 3.0, 29.0, 12.0)
REPLY = '<think>t</think><answer>{"keyframe_timestamp": 1, "bbox_2d_list": []}</answer>'


def rle(box):
    x1, y1, x2, y2 = map(int, box)
    mask = np.zeros(SIZE, bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = True
    return masks.encode(mask)


TRACKS = ([rle((2, 3, 5, 7)), rle(A), rle(A), rle(A)], [None, None, rle(B), rle(B)])


def answer(keyframe, *boxes, tracks=TRACKS, reply=REPLY, shown=SHOWN):
    return judge(tracks, frame_ids=shown, keyframe=keyframe, boxes=boxes, reply=reply)


@pytest.mark.parametrize(("keyframe", "ratio"), [(0, 0.1), (1, 0.5), (2, 1.0)])
def test_keyframe_ratio_is_of_the_largest_shown_area(keyframe, ratio):
    assert answer(keyframe, A).keyframe_ratio == ratio


def test_only_shown_frames_count():
    """Frames 0 and 1 are shown: the largest area among them is 100, though the video has 200."""
    assert answer(1, A, shown=(0, 1)).keyframe_ratio == 1.0
    assert answer(0, A, shown=(0, 1)).keyframe_ratio == 0.2


def test_a_missing_box_halves():
    assert answer(2, A, B).box_iou == 1.0
    assert answer(2, B).box_iou == 0.5


def test_a_surplus_box_halves_and_order_does_not_matter():
    assert answer(1, (30.0, 18.0, 35.0, 20.0), A).box_iou == 0.5


def test_box_iou_counts_inclusive_pixels():
    """Five columns off: 50 pixels in common of 150; B is missed."""
    assert answer(2, (7.0, 3.0, 16.0, 12.0)).box_iou == pytest.approx((1 / 3) / 2)


def test_an_object_that_is_not_on_the_keyframe_is_not_missed():
    assert answer(1, A).box_iou == 1.0


@pytest.mark.parametrize(("keyframe", "boxes"), [(None, ()), (2, ()), (3, (A, B))])
def test_without_a_usable_answer_there_is_nothing(keyframe, boxes):
    """No answer, no boxes, a keyframe that was not shown."""
    assert answer(keyframe, *boxes) == Quality(2, usable=False, well_formed=True, keyframe_ratio=0.0, box_iou=0.0)


def test_a_box_for_an_absent_target_is_worth_nothing():
    for tracks in ((), ([None, None, None, None],)):
        quality = answer(1, A, tracks=tracks)
        assert (quality.targets, quality.usable) == (0, True)
        assert (quality.keyframe_ratio, quality.box_iou) == (0.0, 0.0)


def test_targets_are_counted_where_they_are_seen():
    assert answer(None).targets == 2
    assert answer(None, tracks=(TRACKS[0], [None] * 4)).targets == 1


def test_form_is_of_the_whole_reply():
    assert not answer(1, A, reply=REPLY + " so.").well_formed
    assert not answer(1, A, reply="\x00<think><think>").well_formed


def test_numbers_are_those_of_the_reward():
    assert answer(1, A).keyframe_ratio == keyframe_term((20, 100, 200), 1)
    assert answer(2, B).box_iou == spatial_term([1.0], predicted=1, true=2)


def test_means_leave_absent_targets_out_but_for_the_form():
    absent = answer(None, tracks=(), reply="no")
    found = means([answer(1, A), answer(2, B), answer(None), absent])
    assert found.well_formed == 0.75
    assert found.usable == pytest.approx(2 / 3)
    assert found.keyframe_ratio == pytest.approx((0.5 + 1 + 0) / 3)
    assert found.box_iou == pytest.approx((1 + 0.5 + 0) / 3)


def test_means_of_nothing_are_none():
    nothing = means([])
    assert all(math.isnan(value) for value in vars(nothing).values())
    assert math.isnan(means([answer(None, tracks=())]).box_iou)
