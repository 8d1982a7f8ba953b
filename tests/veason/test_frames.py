"""Frame sampling by hand; decoding errors name the file."""

import itertools
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from veason import frames
from veason.errors import DataError


def test_linspace_truncates():
    # 0, 5.57, 11.14, 16.71, 22.29, 27.86, 33.43, 39
    assert frames.linspace(40, 8) == (0, 5, 11, 16, 22, 27, 33, 39)
    assert frames.linspace(8, 8) == tuple(range(8))
    assert frames.linspace(3, 8) == (0, 1, 2)
    assert frames.linspace(9, 1) == (0,)


def test_train_grid_gives_five_frames_for_most_lengths_and_four_for_some():
    assert frames.train_grid(40, 6, keyframe=11) == (3, 11, 19, 27, 35)  # step ceil(40/5) = 8
    assert frames.train_grid(6, 6, keyframe=5) == (1, 3, 5)  # step 2: n is nominal
    assert frames.train_grid(11, 6, keyframe=2) == (2, 5, 8)  # step 3
    assert frames.train_grid(1, 6, keyframe=0) == (0,)
    assert {len(frames.train_grid(37, 6, keyframe=k)) for k in range(37)} == {4, 5}


@given(st.integers(1, 500), st.integers(2, 20), st.data())
def test_train_grid_holds_its_keyframe(length, n, data):
    keyframe = data.draw(st.integers(0, length - 1))
    grid = frames.train_grid(length, n, keyframe=keyframe)
    assert keyframe in grid
    assert set(grid) <= set(range(length))
    assert len({b - a for a, b in itertools.pairwise(grid)}) <= 1


@given(st.integers(1, 500), st.integers(2, 20))
def test_linspace_spans_the_video(length, n):
    ids = frames.linspace(length, n)
    assert len(ids) == min(n, length) == len(set(ids))
    assert (ids[0], ids[-1]) == (0, length - 1)


def test_the_keyframe_is_one_of_the_five_largest():
    areas = [0, 9, 1, 8, 2, 7, 3, 6, 0]
    drawn = {frames.draw_keyframe(areas, Random(seed)) for seed in range(200)}
    assert drawn == {1, 3, 5, 7, 6}


def test_frames_without_the_target_are_never_drawn():
    assert {frames.draw_keyframe([0, 3, 0], Random(seed)) for seed in range(20)} == {1}
    with pytest.raises(ValueError, match="in no frame"):
        frames.draw_keyframe([0, 0], Random(0))


def test_sample_clip_by_name():
    assert frames.sample_clip(40, policy="linspace", n=2, size=(56, 84)).frame_ids == (0, 39)
    clip = frames.sample_clip(
        40, policy="train_grid", n=6, size=(56, 84), areas=[0] * 11 + [5] + [0] * 28, rng=Random(0)
    )
    assert clip.frame_ids == (3, 11, 19, 27, 35)
    assert (clip.position(11), clip.position(12)) == (1, None)
    with pytest.raises(DataError, match="unknown frame sampling 'random'"):
        frames.sample_clip(40, policy="random", n=2, size=(56, 84))


def test_broken_pictures_name_the_file(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(whole)
    assert frames.load(whole, expect=(40, 60)).shape == (40, 60, 3)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:900])
    with pytest.raises(DataError, match=r"cut\.jpg: the picture cannot be decoded"):
        frames.load(cut)
    with pytest.raises(DataError, match=r"none\.jpg: the frame is missing"):
        frames.load(tmp_path / "none.jpg")
    with pytest.raises(DataError, match=r"the picture is \(40, 60\), the video is \(60, 40\)"):
        frames.load(whole, expect=(60, 40))


def test_resize_takes_height_and_width():
    assert frames.resize(np.zeros((40, 60, 3), np.uint8), (28, 56)).shape == (28, 56, 3)
