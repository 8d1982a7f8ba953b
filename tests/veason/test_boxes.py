"""Boxes have inclusive corners: numbers by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veason import boxes

NUMBER = st.floats(-50, 150, allow_nan=False)
BOX = st.tuples(NUMBER, NUMBER, NUMBER, NUMBER)


def test_iou_counts_inclusive_pixels():
    # 10x10 and 10x10 sharing 5x10: 50 / 150
    assert boxes.iou([(0, 0, 9, 9)], [(5, 0, 14, 9)])[0, 0] == pytest.approx(50 / 150)
    # one pixel is a box of area 1
    assert boxes.iou([(3, 3, 3, 3)], [(3, 3, 3, 3)])[0, 0] == 1.0
    # neighbours share nothing
    assert boxes.iou([(0, 0, 4, 4)], [(5, 0, 9, 4)])[0, 0] == 0.0


def test_iou_is_a_table():
    table = boxes.iou([(0, 0, 1, 1), (8, 8, 9, 9)], [(0, 0, 1, 1), (0, 0, 3, 1), (4, 4, 5, 5)])
    assert np.array_equal(table, [[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    assert boxes.iou([], [(0, 0, 1, 1)]).shape == (0, 1)


@given(BOX, BOX)
def test_iou_is_symmetric_and_bounded(a, b):
    value = boxes.iou([a], [b])[0, 0]
    assert 0.0 <= value <= 1.0 + 1e-12
    assert value == pytest.approx(boxes.iou([b], [a])[0, 0])


def test_rescale_takes_height_before_width():
    assert boxes.rescale([(10, 20, 30, 40)], (100, 200), (50, 400)) == ((20.0, 10.0, 60.0, 20.0),)


@given(BOX)
def test_rescale_there_and_back(box):
    there = boxes.rescale([box], (480, 854), (560, 560))
    assert boxes.rescale(there, (560, 560), (480, 854))[0] == pytest.approx(box)


def test_clip_to_the_picture():
    assert boxes.clip((-5, -5, 100, 3), (10, 20)) == (0.0, 0.0, 19.0, 3.0)
    assert boxes.clip((30, 0, 40, 5), (10, 20)) is None  # outside
    assert boxes.clip((5, 5, 4, 9), (10, 20)) is None  # inverted
    assert boxes.clip((19, 9, 19, 9), (10, 20)) == (19, 9, 19, 9)  # the last pixel
