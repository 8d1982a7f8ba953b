"""ViCaS: a version for every split, frames that count and frames that do not, and hostile files."""

import copy
import json
import os
import pickle
import shutil

import index_roots as roots
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veason import masks
from veason.datasets import open_dataset, vicas
from veason.errors import DataError


@pytest.fixture
def root(tmp_path):
    return roots.write_vicas(tmp_path / "vicas")


def open_test(root):
    return open_dataset("vicas", root, split="v1.0/test")


def test_a_sample_for_each_referral_videos_by_id(root):
    dataset = pickle.loads(pickle.dumps(open_test(root)))
    assert [sample.key for sample in dataset] == ["000003/0", "000003/1", "000012/0", "000012/1"]
    sample = dataset[1]
    assert (sample.expression, sample.size, sample.obj_ids) == ("both", (20, 20), (7, 9))
    assert sample.frames == ("00000", "00001", "00002", "00003")
    assert sample.frame_path(3).is_file()


def test_people_annotated_few_frames_and_sam2_the_others(root):
    dataset = open_test(root)
    first, second = dataset.object_rles(dataset[1])
    assert [masks.area(rle) for rle in first] == [25, 25, 25, 0]
    assert [masks.area(rle) for rle in second] == [25, 0, 0, 25]
    assert dataset.gt_frames(dataset[1]) == (0, 2)
    assert [masks.area(rle) for rle in dataset.foreground("000012")] == [50, 25, 25, 25]


@pytest.mark.parametrize("split", [None, "", "test", "v1.0", "v1.0/valid", "1.0/test", "v1.0/test/", "../v1.0/test"])
def test_a_split_without_version_is_refused(root, split):
    with pytest.raises(DataError, match=r"names no version: .*v0\.1/PART or v1\.0/PART"):
        open_dataset("vicas", root, split=split)


def test_another_version_is_another_folder(root):
    with pytest.raises(DataError, match=r"splits/v0\.1/test\.json: no such file"):
        open_dataset("vicas", root, split="v0.1/test")


def test_without_pictures_the_annotated_frames_are_the_video(root):
    shutil.rmtree(root / "video_frames")
    dataset = open_test(root)
    assert dataset[0].frames == ("00000", "00001", "00002", "00003")
    assert dataset.gt_frames(dataset[0]) == (0, 2)


def test_frames_without_annotation_belong_to_the_video(root):
    for number in (3, 12):
        folder = root / f"video_frames/{number:06d}"
        shutil.copy(folder / "00003.jpg", folder / "00004.jpg")
        (folder / "notes.txt").write_text("no frame")
    dataset = open_test(root)
    assert len(dataset[0]) == 5
    assert dataset.object_rles(dataset[0])[0][4] is None
    assert dataset.gt_frames(dataset[0]) == (0, 2)


def test_frames_are_in_the_order_of_their_numbers(root):
    """Five digits end at 99999; as text 100000 would come before it."""
    names = {f"{t:05d}.jpg": name for t, name in enumerate(("99998.jpg", "99999.jpg", "100000.jpg", "100001.jpg"))}
    for number in (3, 12):
        annotation = roots.vicas_annotation(number)
        for entry in annotation["segmentations"]:
            entry["filename"] = names[entry["filename"]]
        roots.write_json(root / f"annotations/v1.0/{number:06d}.json", annotation)
        for old, new in names.items():
            (root / f"video_frames/{number:06d}" / old).rename(root / f"video_frames/{number:06d}" / new)
    for _ in range(2):
        dataset = open_test(root)
        assert dataset[0].frames == ("99998", "99999", "100000", "100001")
        assert dataset.gt_frames(dataset[0]) == (0, 2)
        shutil.rmtree(root / "video_frames", ignore_errors=True)


def test_an_annotation_that_was_never_fetched_says_what_it_is(root):
    (root / "annotations/v1.0/000003.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(DataError, match=r"000003\.json: not JSON but a Git LFS pointer"):
        open_test(root)
    (root / "annotations/v1.0/000003.json").unlink()
    os.mkfifo(root / "annotations/v1.0/000003.json")
    with pytest.raises(DataError, match=r"000003\.json: no regular file"):
        open_test(root)


def test_a_chosen_list_of_videos(root, tmp_path):
    roots.write_json(tmp_path / "few.json", [12])
    dataset = open_dataset("vicas", root, split="v1.0/test", meta=tmp_path / "few.json")
    assert {sample.video for sample in dataset} == {"000012"}


def read_everything(root):
    dataset = open_test(root)
    return [dataset.object_rles(sample) for sample in dataset]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda a: a.update(video_id=4), ["video_id is 4, the name says 3"]),
        (lambda a: a.update(image_size=[20]), ["image_size must be [height, width]"]),
        (lambda a: a.update(image_size=[20, -1]), ["image_size", "positive"]),
        (lambda a: a.update(image_size=[20, 21]), ["[20, 20]", "[20, 21]"]),
        (lambda a: a.update(object_referrals={}), ["object_referrals must be a list"]),
        (lambda a: a["object_referrals"][1].update(prompt=" "), ["object_referrals[1]", "prompt"]),
        (lambda a: a["object_referrals"][1].update(track_ids=[7, 7]), ["object_referrals[1]", "different whole"]),
        (lambda a: a["object_referrals"][1].update(track_ids=["7"]), ["object_referrals[1]", "different whole"]),
        (lambda a: a["segmentations"][0].update(filename="../0.jpg"), ["segmentations[0]", "number and .jpg"]),
        (lambda a: a["segmentations"][0].update(filename="00009.jpg"), ["00009.jpg is not in", "fetch the frames"]),
        (lambda a: a["segmentations"][1].update(filename="00000.jpg"), ["segmentations[1]", "annotated twice"]),
        (lambda a: a["segmentations"][0].update(mask_rles=[]), ["00000.jpg", "parallel lists"]),
        (lambda a: a["segmentations"][0]["mask_rles"].__setitem__(0, {"size": [20, 20]}), ["track 7", "an RLE"]),
        (lambda a: [s.update(is_gt=False) for s in a["segmentations"]], ["is_gt", "nothing can be scored"]),
        (lambda a: [s.update(is_gt="true") for s in a["segmentations"]], ["is_gt", "nothing can be scored"]),
    ],
)
def test_a_broken_annotation_is_named(root, change, parts):
    annotation = roots.vicas_annotation(3)
    change(annotation)
    roots.write_json(root / "annotations/v1.0/000003.json", annotation)
    with pytest.raises(DataError) as error:
        read_everything(root)
    assert "annotations/v1.0/000003.json" in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"video_id": NaN}', '{"video_id": ' + "9" * 5000 + "}", "", "[]"])
def test_what_is_no_annotation_is_named(root, text):
    (root / "annotations/v1.0/000003.json").write_text(text)
    with pytest.raises(DataError, match=r"000003\.json: "):
        open_test(root)


@pytest.mark.parametrize("ids", [{}, ["3"], [3, 3], [-1], [10**6], [True], [3.0]])
def test_a_split_file_is_a_list_of_different_ids(root, ids):
    roots.write_json(root / "splits/v1.0/test.json", ids)
    with pytest.raises(DataError, match=r"splits/v1\.0/test\.json: "):
        open_test(root)


@given(
    place=st.sampled_from(["image_size", "object_referrals", "segmentations", "video_id"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["filename", "is_gt", "track_ids", "mask_rles", "prompt", "size"]), inner)
        ),
        max_leaves=8,
    ),
)
def test_any_value_is_read_or_refused(root, place, value):
    annotation = copy.deepcopy(roots.vicas_annotation(3)) | {place: value}
    (root / "annotations/v1.0/000003.json").write_text(json.dumps(annotation))
    message = "000003"
    try:
        read_everything(root)
    except DataError as error:
        message = str(error)
    assert "000003" in message


def test_scoring_parses_each_annotation_file_once_in_one_process_and_anew_in_another(root, monkeypatch):
    """Human annotations are cached up to a limit; a copy for another process starts with an empty cache."""
    parsed, real = [], vicas._load
    monkeypatch.setattr(vicas, "_load", lambda path, number: parsed.append(number) or real(path, number))
    dataset = open_dataset("vicas", root, split="v1.0/test", scoring=True)
    expected = [dataset.object_rles(sample) for sample in dataset]
    assert parsed == [3, 12]
    copied = pickle.loads(pickle.dumps(dataset))
    assert [copied.object_rles(sample) for sample in copied] == expected
    assert parsed == [3, 12] * 2
    monkeypatch.setattr(vicas, "_KEPT", len(dataset._people["000003"]))
    full = open_dataset("vicas", root, split="v1.0/test", scoring=True)
    assert [full.object_rles(sample) for sample in full] == expected
    assert parsed == [3, 12] * 3 + [12]
    assert [masks.area(rle) for rle in expected[1][0]] == [25, 0, 25, 0]  # of people alone


def test_an_entry_nested_too_deeply_to_keep_is_no_mask(root):
    path = root / "annotations/v1.0/000003.json"
    path.write_text(path.read_text().replace('"mask_rles": [{', '"x": ' + "[" * 300 + "]" * 300 + ', "mask_rles": [{'))
    dataset = open_dataset("vicas", root, split="v1.0/test", scoring=True)
    assert [masks.area(rle) for rle in dataset.object_rles(dataset[0])[0]] == [25, 0, 25, 0]
