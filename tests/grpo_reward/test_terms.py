"""The four terms on numbers done by hand, and their bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_reward.terms import consistency_term, format_term, keyframe_term, spatial_term
from veason import box_matching


@pytest.mark.parametrize(
    ("well_formed", "valid", "entries", "expected"),
    [(True, 2, 2, 2.0), (True, 1, 4, 1.25), (False, 3, 3, 1.0), (True, 0, 0, 1.0), (False, 0, 5, 0.0)],
)
def test_format(well_formed, valid, entries, expected):
    assert format_term(well_formed=well_formed, valid=valid, entries=entries) == expected


def test_keyframe_is_the_share_of_the_largest_area():
    assert keyframe_term((50, 100, 200), 0) == 0.25
    assert keyframe_term((50, 100, 200), 2) == 1.0
    assert keyframe_term((50, 100, 200), None) == 0.0  # not shown
    assert keyframe_term((0, 0), 1) == 0.0  # in no shown frame


def test_two_boxes_one_said():
    """Ten by ten, five columns off: 50 pixels in common of 150; the second true box is missed."""
    found = box_matching.match([(5, 0, 14, 9)], [(30, 30, 39, 39), (0, 0, 9, 9)])
    assert (found.pairs, found.overlaps) == (((0, 1),), (pytest.approx(1 / 3),))
    assert spatial_term(found.overlaps, predicted=1, true=2) == pytest.approx(1 / 6)


def test_more_said_than_true():
    found = box_matching.match([(30, 30, 39, 39), (0, 0, 9, 9), (0, 0, 9, 4)], [(0, 0, 9, 9)])
    assert found.pairs == ((1, 0),)
    assert spatial_term(found.overlaps, predicted=3, true=1) == pytest.approx(1 / 3)


def test_the_assignment_is_the_best_one_not_the_first():
    """The first box overlaps both true ones; giving it its own best would leave the second with nothing."""
    found = box_matching.match([(0, 0, 9, 9), (0, 0, 9, 4)], [(0, 0, 9, 4), (0, 0, 9, 9)])
    assert found.pairs == ((0, 1), (1, 0))
    assert found.overlaps == (1.0, 1.0)


def test_boxes_past_the_limit_are_not_looked_at():
    said = [(100.0, 100.0, 101.0, 101.0)] * 120 + [(0.0, 0.0, 9.0, 9.0)]
    found = box_matching.match(said, [(0, 0, 9, 9)])
    assert (found.predicted, found.overlaps) == (120, (0.0,))


def test_nothing_said_nothing_there():
    assert box_matching.match([], []).pairs == ()
    assert spatial_term([], predicted=0, true=0) == 0.0
    assert spatial_term([], predicted=0, true=2) == 0.0


def test_consistency_counts_a_frame_empty_in_both():
    full, half, empty = np.ones((4, 4), bool), np.eye(4, dtype=bool).repeat(2, 1)[:, ::2], np.zeros((4, 4), bool)
    assert half.sum() == 4
    assert consistency_term([full, full, empty], [half, full, empty]) == pytest.approx((4 / 16 + 1 + 1) / 3)


BOX = st.tuples(*[st.integers(0, 30)] * 4).map(lambda b: (min(b[::2]), min(b[1::2]), max(b[::2]), max(b[1::2])))
BOXES = st.lists(BOX, min_size=1, max_size=5)


@given(BOXES, BOXES, st.randoms(use_true_random=False))
def test_spatial_is_bounded_and_takes_boxes_in_any_order(said, true, rng):
    found = box_matching.match(said, true)
    value = spatial_term(found.overlaps, predicted=found.predicted, true=found.true)
    assert 0 <= value <= 1
    rng.shuffle(said)
    rng.shuffle(true)
    again = box_matching.match(said, true)
    assert spatial_term(again.overlaps, predicted=again.predicted, true=again.true) == pytest.approx(value)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6), st.data())
def test_keyframe_is_bounded(areas, data):
    assert 0 <= keyframe_term(areas, data.draw(st.integers(0, len(areas) - 1))) <= 1
