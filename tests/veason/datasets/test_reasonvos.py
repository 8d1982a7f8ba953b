"""The ReasonVOS reader: positions as ids, verbatim object ids, masks from PNGs that not every frame needs."""

import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
import small_roots as small
from hypothesis import given
from hypothesis import strategies as st

from veason import masks
from veason.datasets import open_dataset
from veason.errors import DataError


@pytest.fixture
def root(tmp_path):
    return small.write_reasonvos(tmp_path / "reasonvos")


def change(root, edit):
    path = root / "meta_expressions.json"
    content = json.loads(path.read_text())
    edit(content["videos"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["meta_expressions.json", "meta_expressions_.json"])
def test_samples_under_either_file_name(tmp_path, name):
    dataset = open_dataset("reasonvos", small.write_reasonvos(tmp_path / "r", name))
    assert dataset.files == {"meta": tmp_path / "r" / name}
    assert (dataset.name, dataset.split) == ("reasonvos", "test")
    assert [sample.key for sample in dataset] == ["v1/0", "v1/1", "v1/2", "v2/0"]
    assert [dataset.object_folder(sample) for sample in dataset] == list(small.OBJECT_FOLDERS.values())
    sample = dataset[1]
    assert (sample.expression, sample.type_id, sample.size, len(sample)) == ("thing 0", None, (20, 20), 3)
    assert (sample.obj_ids, sample.anno_ids) == (("12",), ("mose_v1_12",))  # "12" is one object
    assert sample.frame_path(1) == tmp_path / "r/JPEGImages/v1/00003.jpg"
    assert sample.frame_path(1).is_file()
    assert [dataset.origin(s).sentence for s in dataset] == [False, True, True, False]


def test_ground_truth_is_where_an_annotation_is(root):
    dataset = pickle.loads(pickle.dumps(open_dataset("reasonvos", root)))
    ((first, between, last),) = dataset.object_rles(dataset[1])  # stored as 0 and 1
    assert (masks.area(first), between, last) == (25, None, None)
    assert dataset.gt_frames(dataset[1]) == (0, 2)
    assert dataset.gt_frames(dataset[0]) == (0, 1, 2)
    assert [masks.area(rle) for rle in dataset.foreground("v1")] == [50, 25, 25]


def test_hidden_files_are_no_masks(root):
    (root / "Annotations/mose_v1_1/._00000.png").write_bytes(b"AppleDouble")
    dataset = open_dataset("reasonvos", root)
    assert dataset.gt_frames(dataset[0]) == (0, 1, 2)


def test_the_two_file_names_must_agree(root):
    shutil.copy(root / "meta_expressions.json", root / "meta_expressions_.json")
    assert len(open_dataset("reasonvos", root)) == 4
    change(root, lambda videos: videos.pop("v2"))
    with pytest.raises(DataError, match="differ; choose one with --meta"):
        open_dataset("reasonvos", root)
    assert len(open_dataset("reasonvos", root, meta=root / "meta_expressions.json")) == 3


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (lambda v: v["v1"].update(expressions={}), ["'v1'", "must be a list, found dict"]),
        (lambda v: v["v1"].update(source="davis"), ["source must be one of vipseg, burst, mose, mevis", "davis"]),
        (lambda v: v["v1"]["expressions"][1].update(obj_id=["1"]), ["expression 1 of the list: obj_id", "name"]),
        (lambda v: v["v1"]["expressions"][1].update(obj_id="../1"), ["obj_id", "leave its folder"]),
        (lambda v: v["v1"]["expressions"][1].update(exp_id=".."), ["exp_id", "leave its folder"]),
        (lambda v: v["v1"]["expressions"][1].update(exp_id="1"), ["expressions 1 and 2", "'1' of mose_v1_12"]),
        (lambda v: v["v1"]["expressions"][0].update(exp_text=None), ["expression 0", "exp_text"]),
        (lambda v: v["v1"]["expressions"][0].update(is_sent="maybe"), ["is_sent", "maybe"]),
        (lambda v: v["v1"]["expressions"].insert(0, 3), ["expression 0", "expected an object"]),
        (lambda v: v.update({"a/b": v["v1"]}), ["a/b", "leave its folder"]),
        (lambda v: v.clear(), ["the data set is empty"]),
    ],
)
def test_a_broken_file_is_named(root, edit, parts):
    change(root, edit)
    with pytest.raises(DataError) as error:
        open_dataset("reasonvos", root)
    assert str(root / "meta_expressions.json") in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_numbers_as_ids_and_no_word_on_the_length(root):
    def edit(videos):
        videos["v2"]["expressions"] = [{"exp_id": 7, "obj_id": 1, "exp_text": "x"}]

    change(root, edit)
    dataset = open_dataset("reasonvos", root)
    assert dataset.object_folder(dataset[3]) == "burst_v2_1/7"
    assert dataset.origin(dataset[3]).sentence is None


def break_away(folder):
    shutil.rmtree(folder)


def break_empty(folder):
    for path in folder.iterdir():
        path.unlink()


def break_stray(folder):
    shutil.copy(folder / "00000.png", folder / "00001.png")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_away, "no such folder of masks"),
        (break_empty, "no mask in it"),
        (break_stray, "00001.png is of no frame"),
    ],
)
def test_annotations_that_disagree_are_named(root, damage, words):
    damage(root / "Annotations/mose_v1_12")
    dataset = open_dataset("reasonvos", root)
    assert dataset.gt_frames(dataset[0]) == (0, 1, 2)
    for ask in (dataset.gt_frames, dataset.object_rles):
        with pytest.raises(DataError, match=f"mose_v1_12: {words}"):
            ask(dataset[1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((10, 20), np.uint8), "the annotation is 10x20, the video 20x20"),
        (np.zeros((20, 20, 3), np.uint8), "a RGB picture"),
    ],
)
def test_a_mask_of_the_wrong_kind_is_named(root, content, words):
    cv2.imwrite(str(root / "Annotations/mose_v1_1/00003.png"), content)
    dataset = open_dataset("reasonvos", root)
    with pytest.raises(DataError, match=rf"mose_v1_1.00003\.png: {words}"):
        dataset.object_rles(dataset[0])


def test_the_size_is_the_annotations(root):
    small.picture(root / "JPEGImages/v2/00000.jpg", size=(30, 40))
    assert open_dataset("reasonvos", root)[3].size == (20, 20)
    shutil.rmtree(root / "Annotations/burst_v2_1")
    assert open_dataset("reasonvos", root)[3].size == (30, 40)


def test_one_split_only(root):
    with pytest.raises(DataError, match="no split 'valid'"):
        open_dataset("reasonvos", root, split="valid")


JUNK = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(junk=JUNK, where=st.sampled_from(["source", "frames", "expressions", "obj_id", "exp_id", "exp_text", "is_sent"]))
def test_whatever_stands_in_a_field_it_is_read_or_named(tmp_path_factory, junk, where):
    root = tmp_path_factory.mktemp("junk")
    meta = small.reason_meta()
    entry = meta["videos"]["v2"]
    (entry if where in entry else entry["expressions"][0])[where] = junk
    del meta["videos"]["v1"]
    small.picture(root / "JPEGImages/v2/00000.jpg")
    (root / "meta_expressions.json").write_text(json.dumps(meta))
    try:
        found = [sample.video for sample in open_dataset("reasonvos", root)]
    except DataError as error:
        found = [name for name in ("meta_expressions.json", "JPEGImages") if name in str(error)]
    assert found
