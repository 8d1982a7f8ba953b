"""Masks and boxes drawn into small pictures, checked pixel by pixel."""

import numpy as np
import pytest

from inference.overlay import PALETTE, draw_boxes, line_width, paint


@pytest.fixture
def frame():
    return np.full((40, 60, 3), 100, dtype=np.uint8)


def rectangle(y1, x1, y2, x2, shape=(40, 60)):
    mask = np.zeros(shape, dtype=bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = True
    return mask


def test_a_mask_is_filled_and_outlined_and_the_rest_is_left_alone(frame):
    picture = paint(frame, [rectangle(10, 10, 30, 40)], alpha=0.25)
    assert picture.dtype == np.uint8
    expected = [round(100 * 0.75 + value * 0.25) for value in PALETTE[0]]
    assert picture[20, 25].tolist() == expected
    assert picture[10, 10].tolist() == list(PALETTE[0])  # the outline is opaque
    assert picture[9, 20].tolist() == [50, 50, 50]  # its dark edge
    assert (picture[:8] == 100).all()
    assert (picture[:, 43:] == 100).all()
    assert (frame == 100).all()  # the input is not painted on


def test_each_object_has_its_colour_and_the_palette_starts_again(frame):
    masks = [rectangle(2, 2 + 7 * i, 6, 6 + 7 * i) for i in range(8)]
    picture = paint(frame, masks)
    assert [picture[2, 2 + 7 * i].tolist() for i in range(8)] == [list(c) for c in (*PALETTE, PALETTE[0])]
    assert len(set(PALETTE)) == len(PALETTE)


def test_a_mask_of_the_whole_frame_has_its_outline_at_the_border(frame):
    picture = paint(frame, [np.ones((40, 60), dtype=bool)])
    assert picture[0, 0].tolist() == picture[39, 59].tolist() == list(PALETTE[0])
    assert picture[20, 30].tolist() != list(PALETTE[0])


def test_no_mask_and_an_empty_mask_change_nothing(frame):
    assert (paint(frame, []) == frame).all()
    assert (paint(frame, [np.zeros((40, 60), dtype=bool)]) == frame).all()


def test_a_mask_of_another_size_is_refused(frame):
    with pytest.raises(ValueError, match=r"mask 0 is \(60, 40\) bool"):
        paint(frame, [np.zeros((60, 40), dtype=bool)])
    with pytest.raises(ValueError, match="uint8"):
        paint(frame, [np.zeros((40, 60), dtype=np.uint8)])


def test_the_corners_of_a_box_are_inclusive(frame):
    picture = draw_boxes(frame, [(10, 5, 30, 25)])
    for y, x in ((5, 10), (25, 30), (5, 30), (25, 10)):
        assert picture[y, x].tolist() == list(PALETTE[0])
    assert picture[15, 20].tolist() == [100, 100, 100]  # not filled
    assert picture[26, 20].tolist() == [50, 50, 50]  # the dark edge outside
    assert picture[28, 20].tolist() == [100, 100, 100]


@pytest.mark.parametrize("box", [(-50, -50, 200, 200), (30.4, 20.6, 1e6, 1e6), (59, 39, 59, 39), (0, 0, 0, 0)])
def test_a_box_that_leaves_the_frame_is_cut_off(frame, box):
    picture = draw_boxes(frame, [box])
    assert picture.shape == frame.shape
    assert (picture == PALETTE[0]).all(axis=2).any()


@pytest.mark.parametrize("box", [(60, 0, 70, 10), (-9, 0, -1, 10), (5, 5, 4, 10)])
def test_a_box_wholly_outside_or_without_extent_is_not_drawn(frame, box):
    assert (draw_boxes(frame, [box], labels=["away"]) == frame).all()


def test_labels_stay_in_the_picture_and_keep_their_objects_colour(frame):
    picture = draw_boxes(frame, [(-5, -5, -1, -1), (50, 1, 59, 39)], labels=["1", "猫 <b>"])
    assert (picture == PALETTE[1]).all(axis=2).sum() > (
        draw_boxes(frame, [(0, 0, -1, -1), (50, 1, 59, 39)]) == PALETTE[1]
    ).all(axis=2).sum()
    assert not (picture == PALETTE[0]).all(axis=2).any()
    with pytest.raises(ValueError, match="1 labels for 2 boxes"):
        draw_boxes(frame, [(0, 0, 1, 1), (2, 2, 3, 3)], labels=["1"])


def test_lines_grow_with_the_picture():
    assert [line_width(size) for size in ((40, 60), (480, 854), (1080, 1920))] == [2, 2, 5]
