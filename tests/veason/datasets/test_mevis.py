"""The MeViS reader: samples, sizes from where they can be had, and the splits that have no masks."""

import json
import pickle
import shutil

import pytest
import small_roots as small

from veason import masks
from veason.datasets import open_dataset
from veason.errors import DataError


@pytest.fixture
def root(tmp_path):
    return small.write_mevis(tmp_path / "mevis")


def change(root, edit, name="meta_expressions.json", split="valid_u"):
    path = root / split / name
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_samples_in_the_order_of_the_file(root):
    dataset = open_dataset("mevis", root)
    assert (dataset.name, dataset.split) == ("mevis", "valid_u")
    assert [sample.key for sample in dataset] == ["v1/0", "v1/1", "v1/2", "v2/0"]
    sample = dataset[1]
    assert (sample.expression, sample.type_id, sample.size, len(sample)) == ("thing 1", None, (20, 20), 2)
    assert (sample.obj_ids, sample.anno_ids) == ((0, 1), (11, 12))
    assert sample.frame_path(1) == root / "valid_u/JPEGImages/v1/00001.jpg"
    assert sample.frame_path(1).is_file()


def test_ground_truth_by_object_and_as_foreground(root):
    dataset = pickle.loads(pickle.dumps(open_dataset("mevis", root, split="valid_u")))
    square, other = dataset.object_rles(dataset[1])
    assert [masks.area(rle) for rle in square] == [25, 25]
    assert [masks.area(rle) for rle in other] == [0, 25]
    assert other[0] is None
    assert [masks.area(rle) for rle in dataset.foreground("v1")] == [25, 50]
    assert dataset.gt_frames(dataset[1]) == (0, 1)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_splits_of_the_server_have_expressions_and_no_masks(root, split):
    shutil.copytree(root / "valid_u", root / split)
    (root / split / "mask_dict.json").unlink()

    def without_ids(meta):
        for video in meta["videos"].values():
            video["expressions"] = {i: {"exp": e["exp"]} for i, e in video["expressions"].items()}

    change(root, without_ids, split=split)
    dataset = open_dataset("mevis", root, split=split)
    assert len(dataset) == 4
    assert dataset[0].size == (20, 20)
    for ask in (lambda: dataset.object_rles(dataset[0]), lambda: dataset.foreground("v1")):
        with pytest.raises(DataError, match=rf"MeViS {split} has no masks.*valid_u"):
            ask()


def test_short_videos_are_left_out_when_asked(root):
    assert [s.key for s in open_dataset("mevis", root, min_frames=2)] == ["v1/0", "v1/1", "v1/2"]
    with pytest.raises(DataError, match="no video of 3 frames or more"):
        open_dataset("mevis", root, min_frames=3)
    with pytest.raises(DataError, match="min_frames is 0"):
        open_dataset("mevis", root, min_frames=0)


def test_the_size_comes_from_the_file_the_picture_or_the_masks(root):
    shutil.rmtree(root / "valid_u/JPEGImages/v2")
    assert open_dataset("mevis", root)[3].size == (20, 20)  # from the mask
    small.picture(root / "valid_u/JPEGImages/v2/00000.jpg", size=(30, 40))
    assert open_dataset("mevis", root)[3].size == (30, 40)  # of the picture; the masks' is checked when they are read
    with pytest.raises(DataError, match=r"\[20, 20\].*\[30, 40\]"):
        open_dataset("mevis", root).object_rles(open_dataset("mevis", root)[3])
    change(root, lambda meta: meta["videos"]["v2"].update(height=50, width=60))
    assert open_dataset("mevis", root)[3].size == (50, 60)


def test_without_picture_and_mask_there_is_no_size(root):
    shutil.rmtree(root / "valid_u/JPEGImages")
    change(root, lambda tracks: tracks.update({"21": [None]}), "mask_dict.json")
    with pytest.raises(DataError, match=r"v2.00000\.jpg: no such file, and no mask tells"):
        open_dataset("mevis", root)


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (lambda m: m["videos"].update({"../v": m["videos"]["v1"]}), ["'../v'", "leave its folder"]),
        (lambda m: m["videos"]["v1"].update(frames=["1", "0"]), ["'v1'", "not sorted"]),
        (lambda m: m["videos"]["v1"].update(frames="00000"), ["'v1'", "non-empty list"]),
        (lambda m: m["videos"]["v1"].update(expressions=[]), ["expressions: expected an object"]),
        (lambda m: m["videos"]["v1"]["expressions"]["0"].update(exp=""), ["expression '0'", "non-empty text"]),
        (lambda m: m["videos"]["v1"]["expressions"]["0"].update(anno_id=[]), ["1 obj_id but 0 anno_id"]),
        (lambda m: m["videos"]["v1"].update(height=float("nan"), width=20), ["height and width", "nan"]),
        (lambda m: m["videos"]["v1"].update(height=10**400, width=20), ["height and width"]),
        (lambda m: m.update(videos={}), ["the data set is empty"]),
    ],
)
def test_a_broken_file_is_named(root, edit, parts):
    change(root, edit)
    with pytest.raises(DataError) as error:
        open_dataset("mevis", root)
    assert str(root / "valid_u/meta_expressions.json") in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_an_expression_without_a_target_has_no_objects_and_teaches_nothing(root):
    def without_target(meta):
        meta["videos"]["v1"]["expressions"]["0"].update(anno_id=[], obj_id=[])

    change(root, without_target)
    dataset = open_dataset("mevis", root)
    assert dataset[0].anno_ids == dataset.object_rles(dataset[0]) == ()
    assert len(dataset) == 4
    shutil.copytree(root / "valid_u", root / "train")
    with pytest.raises(
        DataError, match=r"train/meta_expressions\.json: .*'0': anno_id is empty: nothing can be learned"
    ):
        open_dataset("mevis", root, split="train")


def test_numbers_of_thousands_of_digits_and_deep_nesting(root):
    path = root / "valid_u/meta_expressions.json"
    for text in ('{"videos": ' + "9" * 5000 + "}", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(DataError, match=r"meta_expressions\.json: (not|nested)"):
            open_dataset("mevis", root)


def test_a_missing_annotation_and_folder_are_named(root, tmp_path):
    change(root, lambda tracks: tracks.pop("12"), "mask_dict.json")
    dataset = open_dataset("mevis", root)
    assert len(dataset.object_rles(dataset[0])) == 1
    with pytest.raises(DataError, match="annotation 12 of v1/1 is missing"):
        dataset.object_rles(dataset[1])
    with pytest.raises(DataError, match=r"train: no such folder; --data-root .*valid_u"):
        open_dataset("mevis", root, split="train")
    with pytest.raises(DataError, match="MeViS has no split 'valid_x'"):
        open_dataset("mevis", root, split="valid_x")
