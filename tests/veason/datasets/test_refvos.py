"""Ref-YouTube-VOS and Ref-DAVIS17: what is whose, ground truth by object number, broken files."""

import json
import pickle

import index_roots as roots
import numpy as np
import pytest
import small_roots as small
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from veason import masks
from veason.datasets import open_dataset
from veason.datasets.refvos import _object_number
from veason.errors import DataError


@pytest.fixture
def youtube(tmp_path):
    return roots.write_refytvos(tmp_path / "youtube")


@pytest.fixture
def davis(tmp_path):
    return roots.write_refdavis(tmp_path / "davis")


def areas(track):
    return [masks.area(rle) for rle in track]


# Ref-YouTube-VOS


def test_training_targets_are_numbers_in_the_annotation_never_colours(youtube):
    dataset = pickle.loads(pickle.dumps(open_dataset("refytvos", youtube, split="train")))
    first, second = dataset
    assert (first.key, first.expression, first.size, first.obj_ids) == ("t1/0", "a square", (20, 20), (1,))
    assert first.frame_path(1) == youtube / "train/JPEGImages/t1/00005.jpg"
    assert [areas(track) for track in dataset.object_rles(first)] == [[25, 0]]
    assert dataset.object_rles(first)[0][1] is None
    assert masks.decode(dataset.object_rles(second)[0][0], first.size).tolist() == small.OTHER.tolist()
    assert areas(dataset.foreground("t1")) == [50, 25]
    assert dataset.gt_frames(first) == (0, 1)


def test_valid_is_what_the_file_holds_beyond_test(youtube):
    dataset = open_dataset("refytvos", youtube)
    assert [sample.key for sample in dataset] == ["v1/0", "v1/1"]
    assert dataset.left_out == {"v2"}
    assert set(dataset.files) == {"meta", "test"}


def test_without_the_file_of_test_there_is_no_valid_unless_the_expressions_are_named(youtube):
    test = youtube / "meta_expressions/test/meta_expressions.json"
    test.unlink()
    with pytest.raises(DataError, match=r"test.meta_expressions\.json: no such file; valid is what .* holds beyond it"):
        open_dataset("refytvos", youtube)
    meta = youtube / "meta_expressions/valid/meta_expressions.json"
    dataset = open_dataset("refytvos", youtube, meta=meta)
    assert [sample.video for sample in dataset] == ["v1", "v1", "v2", "v2"]  # as named, nothing is taken out


def test_a_test_file_of_another_release_is_named(youtube):
    roots.write_expressions(youtube, "test", {"v3": {"expressions": {}, "frames": ["00000"]}})
    with pytest.raises(DataError, match=r"test.meta_expressions\.json: the video 'v3' is not in .*valid"):
        open_dataset("refytvos", youtube)


def test_the_servers_ground_truth_is_no_empty_target(youtube):
    dataset = open_dataset("refytvos", youtube)
    for ask in (lambda: dataset.object_rles(dataset[0]), lambda: dataset.foreground("v1")):
        with pytest.raises(DataError, match=r"v1/0 has no obj_id: .*server.*eval\.submit"):
            ask()


# Ref-DAVIS17


def test_expressions_go_round_the_annotators(davis):
    dataset = open_dataset("refdavis", davis)
    assert [sample.exp_id for sample in dataset] == [*map(str, range(8)), *map(str, range(4))]
    assert [dataset.annotator(sample) for sample in dataset][:8] == [0, 1, 2, 3] * 2
    assert [sample.obj_ids[0] for sample in dataset] == [1] * 4 + [2] * 4 + [1] * 4


def test_objects_are_those_of_the_first_frame_and_void_is_none(tmp_path):
    layers = {"v": [{1: small.SQUARE, 255: small.OTHER}, {3: small.OTHER}, {2: small.SQUARE}]}
    dataset = open_dataset("refdavis", roots.write_refdavis(tmp_path / "d", layers))
    assert [areas(track) for track in dataset.objects(dataset[0])] == [[25, 0, 0]]  # 2 and 3 come later
    assert areas(dataset.void(dataset[0])) == [25, 0, 0]
    nothing = open_dataset("refdavis", roots.write_refdavis(tmp_path / "e"))
    roots.write_index(tmp_path / "e/valid/Annotations/w/00000.png", {255: small.SQUARE})
    with pytest.raises(DataError, match=r"w.00000\.png: no object"):
        nothing.objects(nothing[8])


def test_scoring_needs_no_pictures(davis):
    for path in davis.rglob("*.jpg"):
        path.unlink()
    assert open_dataset("refdavis", davis)[0].size == (20, 20)
    for path in davis.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"00000\.jpg: no such file"):
        open_dataset("refdavis", davis)


# files that are not what they claim


def edit(root, change, split="valid"):
    path = root / "meta_expressions" / split / "meta_expressions.json"
    content = json.loads(path.read_text())
    change(content["videos"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda v: v.update({"../w": v["w"]}), ["'../w'", "leave its folder"]),
        (lambda v: v.update({"a/w": v["w"]}), ["'a/w'", "leave its folder"]),
        (lambda v: v["w"].update(frames=["00001", "00000"]), ["'w'", "not sorted"]),
        (lambda v: v["w"]["expressions"].update({"a": v["w"]["expressions"]["0"]}), ["'a'", "4 * object + annotator"]),
        (lambda v: v["w"]["expressions"]["0"].update(obj_id=1), ["expression '0'", "number as text", "'1'"]),
        (lambda v: v["w"]["expressions"]["0"].update(obj_id="0"), ["expression '0'", "from 1 to 254"]),
        (lambda v: v["w"]["expressions"]["0"].update(obj_id="255"), ["expression '0'", "from 1 to 254"]),
        (lambda v: v["w"]["expressions"]["0"].update(obj_id="9" * 5000), ["expression '0'", "number as text"]),
        (lambda v: v["w"]["expressions"]["0"].pop("obj_id"), ["expression '0'", "found 'None'"]),
        (lambda v: v["w"]["expressions"]["0"].update(exp=None), ["expression '0'", "non-empty text"]),
        (lambda v: v.clear(), ["the data set is empty"]),
    ],
)
def test_a_broken_entry_is_named(davis, change, parts):
    edit(davis, change)
    with pytest.raises(DataError) as error:
        open_dataset("refdavis", davis)
    assert "meta_expressions.json" in str(error.value)
    for part in parts:
        assert part in str(error.value)


VALUES = st.recursive(st.none() | st.text() | st.integers() | st.floats(), st.lists)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_an_object_number_is_a_number_or_an_error(value):
    try:
        number = _object_number({"obj_id": value}, "here")
    except DataError as error:
        message = str(error)
    else:
        assert str(number) == value.lstrip("0")
        assert 0 < number < 255
        return
    assert message.startswith("here: obj_id ")


@pytest.mark.parametrize("kind", ["missing", "cut", "colour", "size"])
def test_a_broken_annotation_is_named(davis, kind):
    path = davis / "valid/Annotations/v/00001.png"
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif kind == "colour":
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(path)
    else:
        roots.write_index(path, {1: np.ones((20, 21), bool)}, size=(20, 21))
    dataset = open_dataset("refdavis", davis)
    with pytest.raises(DataError, match=r"Annotations/v/00001\.png: "):
        dataset.object_rles(dataset[0])
    assert dataset.object_rles(dataset[8])  # the other video


def test_no_such_folder(tmp_path):
    for name in ("refytvos", "refdavis"):
        with pytest.raises(DataError, match=r"nowhere: no such folder; --data-root is the folder that holds meta"):
            open_dataset(name, tmp_path / "nowhere")
