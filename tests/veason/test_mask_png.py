"""PNG masks of 8 bits and 1 bit: same pixels, the promised depth."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from veason import mask_png


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))))
@pytest.mark.parametrize("bits", [1, 8])
def test_masks_come_back_as_0_and_255(bits, mask):
    data = mask_png.encode(mask, bits=bits)
    assert data[24:26] == bytes([bits, 0])  # depth and colour type "grey" of the header
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert back.dtype == np.uint8
    assert np.array_equal(back, mask * np.uint8(255))


def test_any_nonzero_value_is_inside():
    counts = np.array([[0, 1], [2, 255]], np.uint8)
    assert mask_png.encode(counts, bits=1) == mask_png.encode(np.asfortranarray(counts != 0), bits=1)
