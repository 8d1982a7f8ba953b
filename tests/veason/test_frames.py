"""Frame sampling by hand; decoding errors name the file."""

import itertools
import os
from pathlib import Path
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


# one picture: whatever it is, it is decoded rightly or refused in a line


@pytest.mark.parametrize("mode", ["CMYK", "LA", "1", "P", "transparent P", "RGBA", "L"])
def test_modes_of_pictures_that_have_a_white(tmp_path, mode):
    """White left, black right."""
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, :4] = 255
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    transparent = {"transparency": 0} if mode == "transparent P" else {}
    Image.fromarray(picture).convert(mode.split()[-1]).save(path, **transparent)
    assert np.abs(frames.load(path).astype(int) - picture).max() <= 8


@pytest.mark.parametrize(("dtype", "name"), [(np.uint16, "16-bit"), (np.int32, "32-bit"), (np.float32, "floating")])
def test_grey_without_a_white_is_refused(tmp_path, dtype, name):
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((8, 8), 5000, dtype)).save(path)
    with pytest.raises(DataError, match=rf"a\.tif: a {name}.*nothing says which value is white"):
        frames.load(path)


def test_an_animation_is_no_frame(tmp_path):
    path = tmp_path / "a.png"
    first, *others = (Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 100, 200))
    first.save(path, save_all=True, append_images=others)
    with pytest.raises(DataError, match=r"a\.png: an animation of 3 pictures"):
        frames.load(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_size_is_checked_before_anything_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("1", (12000, 12000)).save(path)  # 18 kB that become 432 MB
    Image.new("1", (1200, 1200)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"bomb\.png: claims 12000x12000 pixels"):
        frames.load(path)
    with pytest.raises(DataError, match=r"large\.png: the picture is \(1200, 1200\), the video is \(12, 12\)"):
        frames.load(tmp_path / "large.png", expect=(12, 12))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_damaged_picture_is_a_frame_or_a_line(tmp_path, suffix):
    """Bytes changed here and there, mostly in the header."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path, rng = tmp_path / f"a{suffix}", Random(0)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)).save(path, exif=exif)
    data = path.read_bytes()
    ended = set()
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 2, 8))):
            damaged[rng.randrange(rng.choice((60, 200, len(data))))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            ended.add(frames.load(path, upright=True).dtype)
        except DataError as error:
            ended.add((str(error).startswith(f"{path}: "), str(error).count(path.name)))
    assert ended == {np.dtype(np.uint8), (True, 1)}


def test_a_frame_that_was_never_fetched_says_what_it_is(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    with pytest.raises(
        DataError, match=r"a\.jpg: the picture cannot be decoded: it is a Git LFS pointer.*git lfs pull"
    ):
        frames.load(path)


def test_a_pipe_is_no_frame(tmp_path):
    os.mkfifo(tmp_path / "00000.jpg")
    for read in (lambda: frames.load(tmp_path / "00000.jpg"), lambda: frames.FolderFrames(tmp_path)):
        with pytest.raises(DataError, match=r"00000\.jpg: no regular file"):
            read()


# folders of pictures


def folder(path, names, size=(6, 8)):
    """Pictures whose shade tells their place in `names`."""
    path.mkdir(exist_ok=True)
    for place, name in enumerate(names):
        Image.new("RGB", size[::-1], (place, place, place)).save(path / name)
    return path


def order(path, **options):
    found = frames.FolderFrames(path, **options)
    return [(name, int(frame[0, 0, 0])) for name, frame in zip(found.names, found, strict=True)]


@pytest.mark.parametrize(
    "names",
    [
        [f"{t}.png" for t in range(12)],
        [f"{t:05d}.png" for t in range(12)],
        [f"img{t}.png" for t in range(8, 12)],
        [f"shot 2 frame {t}.png" for t in (1, 9, 10)] + [f"shot 10 frame {t}.png" for t in (1, 2)],
        ["0.04.png", "0.08.png", "0.12.png", "1.00.png"],
        ["-1.png", "05.png"],  # as text has it
    ],
)
def test_frames_are_in_the_order_of_their_numbers(tmp_path, names):
    assert order(folder(tmp_path / "f", names)) == [(name[:-4], place) for place, name in enumerate(names)]


@given(st.sets(st.text("ab-_. ", max_size=3), min_size=1, max_size=3), st.sets(st.integers(0, 999), max_size=9))
def test_padded_names_keep_the_order_of_text(prefixes, numbers):
    names = sorted(f"x{prefix}{number:03d}.jpg" for prefix in prefixes for number in numbers)
    paths = [Path(name) for name in Random(0).sample(names, len(names))]
    assert [path.name for path in frames.in_number_order(paths, Path())] == sorted(names, key=lambda n: n[:-4])


def test_an_order_that_is_not_certain_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"order of 1\.10\.png and 1\.9\.png is not certain|order of 1\.9\.png and"):
        frames.FolderFrames(folder(tmp_path / "f", ["1.9.png", "1.10.png"]))


def test_stride_and_limit_count_in_that_order(tmp_path):
    path = folder(tmp_path / "f", [f"{t}.png" for t in range(12)])
    assert order(path, stride=5, limit=2) == [("0", 0), ("5", 5)]


def test_suffixes_in_either_case_are_one_kind_and_hidden_files_none(tmp_path):
    path = folder(tmp_path / "f", ["0.PNG", "1.png"])
    (path / "._0.png").write_bytes(b"AppleDouble")
    (path / "notes.txt").write_text("x")
    assert order(path) == [("0", 0), ("1", 1)]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["0.png", "1.jpg", "2.JPG"], r"1 \.png and 2 \.jpg pictures"),
        (["0.png", "0.PNG"], r"have one name"),
        (["0.bmp"], r"expected pictures \(\.jpg, \.jpeg, \.png\), found \.bmp"),
        ([], r"expected pictures \(\.jpg, \.jpeg, \.png\), found nothing"),
    ],
)
def test_what_is_no_video_of_pictures_says_what_was_found(tmp_path, names, words):
    with pytest.raises(DataError, match=words):
        frames.FolderFrames(folder(tmp_path / "f", names))


def test_frames_of_two_sizes_are_named_before_the_run(tmp_path):
    path = folder(tmp_path / "f", ["0.png"])
    Image.new("RGB", (9, 9)).save(path / "1.png")
    with pytest.raises(DataError, match=r"1\.png: the picture is \(9, 9\), 0\.png is \(6, 8\)"):
        frames.FolderFrames(path)


@pytest.mark.parametrize(("orientation", "size"), [(1, (6, 8)), (3, (6, 8)), (6, (8, 6)), (8, (8, 6))])
def test_a_folder_is_upright_and_a_data_set_as_stored(tmp_path, orientation, size):
    """A white corner at the top left of what is stored; 3: half a turn, 6: a quarter clockwise, 8: anticlockwise."""
    picture = np.zeros((6, 8, 3), np.uint8)
    picture[:2, :2] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "f" / "0.png"
    path.parent.mkdir()
    Image.fromarray(picture).save(path, exif=exif)
    turned = frames.FolderFrames(path.parent)
    assert turned.size == turned[0].shape[:2] == size
    corner = {1: (0, 0), 3: (-1, -1), 6: (0, -1), 8: (-1, 0)}[orientation]
    assert turned[0][corner].tolist() == [255, 255, 255]
    assert np.array_equal(frames.load(path, expect=(6, 8)), picture)


def test_16_bit_grey_is_scaled_by_one_rule_for_the_clip(tmp_path):
    """Least value of both frames 1000, greatest 1510: two steps a shade."""
    for t, values in enumerate(([[1000, 1020]], [[1100, 1510]])):
        Image.fromarray(np.array(values, np.uint16)).save(tmp_path / f"{t}.png")
    clip = frames.FolderFrames(tmp_path)
    assert [frame[0, :, 0].tolist() for frame in clip] == [[0, 10], [50, 255]]
    assert clip[0].dtype == np.uint8
    Image.fromarray(np.zeros((1, 2), np.uint8)).save(tmp_path / "2.png")
    with pytest.raises(DataError, match=r"2\.png: L pixels, 0\.png has I;16: 16-bit and 8-bit"):
        frames.FolderFrames(tmp_path)
    (tmp_path / "2.png").unlink()
    for t in range(2):
        Image.fromarray(np.full((1, 2), 7, np.uint16)).save(tmp_path / f"{t}.png")
    assert not frames.FolderFrames(tmp_path)[1].any()  # one value alone is black
