"""Track mAP, by hand: the hop from one true track to a later one, the order of tracks, the steps of the curve."""

import numpy as np
import pytest
import small_roots as small
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eval.vicas_map import NAMED, THRESHOLDS, average_precisions, hits, track_ious
from veason import masks

SQUARE, OTHER = masks.encode(small.SQUARE), masks.encode(small.OTHER)


def found(ious):
    return hits(np.array(ious, np.float32))


def test_thresholds_and_names():
    assert THRESHOLDS.tolist() == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
    assert {name: round(float(THRESHOLDS[i]), 2) for name, i in NAMED.items()} == {
        "AP@50": 0.5,
        "AP@75": 0.75,
        "AP@90": 0.9,
    }


def test_a_track_iou_is_of_the_pixels_of_all_frames():
    predicted, true = [SQUARE, None, SQUARE], [SQUARE, SQUARE, OTHER]
    ious = track_ious([predicted, [None, None, None]], [true, [None, None, None]])
    # 25 shared of 25 + 25 + 50; the empty tracks share nothing with anything, nor with each other
    assert ious.tolist() == [[0.25, 0.0], [0.0, 0.0]]
    assert ious.dtype == np.float32


def test_a_track_hops_to_a_later_one_and_frees_the_first():
    # the first track takes true 0, then true 1, and lets go of 0, which the second may have
    assert found([[0.6, 0.7], [0.55, 0.0]])[:5].tolist() == [
        [True, True],  # .50
        [True, True],  # .55: float32(.55) is above
        [True, False],  # .60: the second does not reach; the first reaches both
        [True, False],  # .65
        [False, False],  # .70: float32(.7) is 0.69999999, the threshold 0.7000000000000002
    ]


def test_a_hop_takes_the_later_one_from_a_better_track():
    # at .50 the first track leaves the true 0 that fits for true 1, the only one the second overlaps
    assert found([[0.9, 0.6], [0.0, 0.8]])[:4, :].tolist() == [
        [True, False],
        [True, False],
        [True, False],
        [True, True],  # .65: the first cannot hop
    ]


def test_six_tenths_is_reached_as_a_float32():
    assert found([[0.6]])[2, 0]
    assert THRESHOLDS[2] > 0.6  # and would not be as a float64


def test_area_below_the_steps():
    # right, wrong, right of 4 true: precision 1, 1/2, 2/3 at recall 1/4, 1/4, 1/2; below the envelope 1/4 + 1/4 * 2/3
    row = np.array([[True, False, True]] * 10)
    assert average_precisions(row, 4).tolist() == pytest.approx([100 * (1 / 4 + 1 / 4 * 2 / 3)] * 10)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([True, True, False], 50.0),  # precision 1, 1, 2/3 at recall 1/4, 1/2, 1/2
        ([False, True, True], 100 * 2 / 3 / 2),  # precision 0, 1/2, 2/3: the envelope is 2/3 up to recall 1/2
    ],
)
def test_the_order_of_equal_confidences_decides(order, expected):
    assert average_precisions(np.array([order] * 10), 4)[0] == pytest.approx(expected)


def test_nothing_predicted_and_nothing_true():
    assert average_precisions(np.zeros((10, 0), bool), 3).tolist() == [0.0] * 10
    assert average_precisions(np.zeros((10, 0), bool), 0).tolist() == [0.0] * 10
    assert average_precisions(np.zeros((10, 2), bool), 0).tolist() == [100.0] * 10
    assert hits(np.zeros((2, 0), np.float32)).tolist() == [[False, False]] * 10


@given(arrays(bool, st.integers(1, 40)), st.integers(0, 20))
def test_the_area_in_plain_words(right, further):
    """At each recall the best precision at this recall or a higher one."""
    true = int(right.sum()) + further
    if true == 0:
        return
    points = [(right[: n + 1].sum() / true, right[: n + 1].mean()) for n in range(len(right))]
    levels = [k / true for k in range(1, int(right.sum()) + 1)]
    best = [max(p for r, p in points if r >= level - 1e-9) for level in levels]
    expected = 100 * sum(best) / true
    assert average_precisions(np.tile(right, (10, 1)), true)[4] == pytest.approx(expected, rel=1e-4)


@given(arrays(np.float32, st.tuples(st.integers(0, 4), st.integers(0, 4)), elements=st.floats(0, 1, width=32)))
def test_no_more_tracks_are_found_than_there_are(ious):
    counts = hits(ious).sum(axis=1)
    assert (counts <= min(ious.shape)).all()
