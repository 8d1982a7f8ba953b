"""Tracks from annotation PNGs: object numbers are read from palette and grey files, grey levels are refused."""

import index_roots as roots
import numpy as np
import pytest
import small_roots as small
from PIL import Image

from veason import masks
from veason.datasets import open_dataset
from veason.datasets.index_masks import VOID
from veason.errors import DataError

LAYERS = {1: small.SQUARE, 2: small.OTHER}


@pytest.fixture
def root(tmp_path):
    return roots.write_refdavis(tmp_path / "davis", {"v": [LAYERS, LAYERS]})


def write_grey(root, numbers, frames=("00000", "00001")):
    """Replace annotations by grey PNGs: each object by the value that `numbers` gives it."""
    picture = np.zeros(small.SIZE, np.uint8)
    for number, mask in LAYERS.items():
        picture[mask] = numbers[number]
    for frame in frames:
        Image.fromarray(picture).save(root / f"valid/Annotations/v/{frame}.png")


def track(root, number):
    dataset = open_dataset("refdavis", root)
    sample = next(sample for sample in dataset if sample.anno_ids == (number,))
    return [masks.decode(rle, small.SIZE) for rle in dataset.object_rles(sample)[0]]


@pytest.mark.parametrize("number", [1, 2])
def test_palette_and_grey_files_of_numbers_give_the_same_tracks(root, number):
    by_palette = track(root, number)
    write_grey(root, {1: 1, 2: 2})
    for one, other in zip(by_palette, track(root, number), strict=True):
        assert np.array_equal(one, LAYERS[number])
        assert np.array_equal(other, LAYERS[number])


def test_void_is_no_grey_level(root):
    write_grey(root, {1: 1, 2: VOID})
    dataset = open_dataset("refdavis", root)
    assert np.array_equal(masks.decode(dataset.void(dataset[0])[1], small.SIZE), small.OTHER)
    assert np.array_equal(track(root, 1)[0], small.SQUARE)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({1: 255, 2: 255}, r"valid/Annotations/v: no frame has the object 1 of v/0; .* the values 255 and 0"),
        (
            {1: 38, 2: 75},
            r"valid/Annotations/v/00000\.png: holds the values 75, which are grey levels",
        ),  # DAVIS' colours
        ({1: 2, 2: 38}, r"valid/Annotations/v: no frame has the object 1 of v/0; .* the values 2, 38 and 0"),
        ({1: 0, 2: 0}, r"no frame has the object 1 of v/0; the annotations are empty"),
    ],
)
def test_grey_levels_where_numbers_belong_are_an_error_that_names_them(root, numbers, words):
    write_grey(root, numbers)
    with pytest.raises(DataError, match=words):
        track(root, 1)


def test_one_picture_of_grey_levels_among_good_ones_is_named(root):
    write_grey(root, {1: 1, 2: 200}, frames=["00001"])
    with pytest.raises(DataError, match=r"v/00001\.png: holds the values 200, "):
        track(root, 1)


def test_an_object_that_comes_and_goes_is_there(root):
    roots.write_index(root / "valid/Annotations/v/00000.png", {1: small.SQUARE})
    assert [mask.any() for mask in track(root, 2)] == [False, True]
