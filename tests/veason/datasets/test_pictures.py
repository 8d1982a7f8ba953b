"""Sizes from headers, and annotation PNGs by index whatever their colours."""

import os

import cv2
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


def test_sixteen_bits_of_indices_and_interlacing_are_read(tmp_path):
    Image.fromarray(INDICES.astype(np.uint16)).save(tmp_path / "deep.png")
    assert np.array_equal(read_indices(tmp_path / "deep.png", (2, 3)), INDICES)
    Image.fromarray(INDICES.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: .* 16 bits with the value 600"):
        read_indices(tmp_path / "deep.png", (2, 3))


@pytest.mark.parametrize("behind", [b"\0", b"<html>", bytes(5000)])
def test_bytes_behind_the_end_are_no_fault(tmp_path, behind):
    Image.fromarray(INDICES).save(tmp_path / "l.png")
    with open(tmp_path / "l.png", "ab") as file:
        file.write(behind)
    assert np.array_equal(read_indices(tmp_path / "l.png", (2, 3)), INDICES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\xff\xd8\xff\xe0" + bytes(60), "not a PNG file"),
    ],
)
def test_other_files_in_the_place_of_an_annotation_are_named(tmp_path, content, words):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.png: .*{words}"):
        read_indices(tmp_path / "x.png", (2, 3))


@pytest.mark.parametrize("read", [picture_size, lambda path: read_indices(path, (2, 3))], ids=["size", "indices"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png: no regular file"):
        read(tmp_path / "x.png")


def test_colour_is_an_error_and_for_scoring_a_warning(tmp_path, caplog):
    colour = np.stack([INDICES * 100, INDICES, INDICES * 7], axis=-1)
    Image.fromarray(colour).save(tmp_path / "a.png")
    Image.fromarray(colour).save(tmp_path / "b.png")
    expected = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_GRAYSCALE)
    with pytest.raises(DataError, match=r"a\.png: a RGB picture; .* found the grey levels 0, 31, 62"):
        read_indices(tmp_path / "a.png", (2, 3))
    for name in ("a.png", "b.png"):
        assert np.array_equal(read_indices(tmp_path / name, (2, 3), scoring=True), expected)
    (record,) = caplog.records  # once a folder
    assert record.levelname == "WARNING"
    assert "a.png: a RGB picture" in record.getMessage()
    with pytest.raises(DataError, match="the annotation is 2x3, the video 3x2"):
        read_indices(tmp_path / "a.png", (3, 2), scoring=True)
