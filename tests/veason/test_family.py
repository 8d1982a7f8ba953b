"""Facts of the model families."""

import pytest

from veason.errors import DataError
from veason.family import QWEN2_5_VL, QWEN3_VL, family_of


def test_a_size_must_be_a_multiple_or_the_nearest_is_named():
    assert QWEN2_5_VL.check_size((560, 84)) == (560, 84)
    with pytest.raises(DataError, match="use 560x84"):
        QWEN2_5_VL.check_size((550, 80))
    with pytest.raises(DataError, match="use 28x28"):
        QWEN2_5_VL.check_size((3, 28))


def test_boxes_are_in_model_pixels_or_thousandths():
    assert family_of("qwen2_5_vl").answer_size((560, 588)) == (560, 588)
    assert QWEN3_VL.answer_size((640, 672)) == (1000, 1000)
    with pytest.raises(DataError, match="no known family for model type 'bert'"):
        family_of("bert")
