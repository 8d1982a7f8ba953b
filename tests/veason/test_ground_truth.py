"""Clip targets by hand: areas, boxes and masks of the union."""

import numpy as np
import pytest
import torch

from veason import ground_truth, masks
from veason.types import Clip

SIZE = (4, 6)


def blob(rows: slice, columns: slice):
    mask = np.zeros(SIZE, bool)
    mask[rows, columns] = True
    return masks.encode(mask)


TRACKS = [
    [blob(slice(0, 2), slice(0, 2)), blob(slice(0, 2), slice(1, 4)), None],
    [None, blob(slice(0, 4), slice(3, 4)), None],
]


def test_areas_are_of_the_union():
    assert ground_truth.areas(TRACKS, 3) == (4, 6 + 4 - 2, 0)
    assert ground_truth.areas([], 3) == (0, 0, 0)


def test_boxes_are_by_object():
    assert ground_truth.boxes(TRACKS, 0) == [(0, 0, 1, 1), None]
    assert ground_truth.boxes(TRACKS, 1) == [(1, 0, 3, 1), (3, 0, 3, 3)]


def test_clip_masks_are_unions_at_model_size():
    shown = ground_truth.clip_masks(TRACKS, Clip(frame_ids=(1, 2), size=(8, 12)), SIZE)
    expected = np.zeros((8, 12), bool)
    expected[0:4, 2:8] = True  # everything twice as large
    expected[0:8, 6:8] = True
    assert shown.shape == (2, 8, 12)
    assert np.array_equal(shown[0], expected)
    assert not shown[1].any()


@pytest.mark.parametrize(("length", "out"), [(720, 560), (360, 560), (854, 560), (480, 84), (7, 5), (5, 7)])
def test_masks_are_resized_as_torch_resizes_them(length, out):
    mask = np.random.default_rng(length).random((length, 3)) > 0.5
    shown = ground_truth.clip_masks([[masks.encode(mask)]], Clip(frame_ids=(0,), size=(out, 3)), (length, 3))[0]
    expected = torch.nn.functional.interpolate(torch.tensor(mask)[None, None].float(), size=(out, 3), mode="nearest")
    assert np.array_equal(shown, expected[0, 0].bool().numpy())
