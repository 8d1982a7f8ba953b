"""Sizes from headers, and annotation PNGs by index whatever their colours."""

import numpy as np
import pytest
from PIL import Image

from veason.datasets.pictures import picture_size, read_indices
from veason.errors import DataError

INDICES = np.array([[0, 1, 2], [2, 0, 1]], np.uint8)


def test_a_size_needs_no_pixels(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.effect_noise((40, 30), 90).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])  # the header is there
    assert picture_size(path) == (30, 40)


def test_a_palette_gives_its_indices_though_all_are_black(tmp_path):
    image = Image.fromarray(INDICES, mode="P")
    image.putpalette([0, 0, 0] * 3)
    image.save(tmp_path / "p.png")
    assert np.array_equal(read_indices(tmp_path / "p.png", (2, 3)), INDICES)


def test_grey_and_one_bit(tmp_path):
    Image.fromarray(INDICES * 100).save(tmp_path / "l.png")
    assert np.array_equal(read_indices(tmp_path / "l.png", (2, 3)), INDICES * 100)
    Image.fromarray(INDICES != 0).save(tmp_path / "1.png")
    assert np.array_equal(read_indices(tmp_path / "1.png", (2, 3)), INDICES != 0)


def test_what_is_no_annotation_is_named(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(DataError, match="no such file"):
        picture_size(path)
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"x\.png: the picture cannot be read"):
        picture_size(path)
    Image.fromarray(INDICES).save(path)
    with pytest.raises(DataError, match="the annotation is 2x3, the video 3x2"):
        read_indices(path, (3, 2))
    whole = path.read_bytes()
    path.write_bytes(whole[:45])
    with pytest.raises(DataError, match=r"x\.png: the picture cannot be read"):
        read_indices(path, (2, 3))
