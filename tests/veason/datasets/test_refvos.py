"""Ref-YouTube-VOS and Ref-DAVIS17: what is whose, ground truth by object number, broken files."""

import json
import pickle
import shutil

import index_roots as roots
import numpy as np
import pytest
import small_roots as small
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from veason import masks
from veason.datasets import open_dataset
from veason.datasets.refvos import object_number
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


def test_ground_truth_that_is_not_there_is_no_empty_target(youtube):
    dataset = open_dataset("refytvos", youtube)
    for ask in (lambda: dataset.object_rles(dataset[0]), lambda: dataset.foreground("v1")):
        with pytest.raises(
            DataError, match=r"v1/0 has no obj_id and .*valid.Annotations is not there.*server.*eval\.submit"
        ):
            ask()


# the ground truth of valid, published in March 2026


def asked(**more):
    return {"expressions": {"0": {"exp": "a", **more}, "1": {"exp": "b", **more}}, "frames": ["00000", "00005"]}


def test_published_truth_as_numbers_of_objects(youtube):
    """v1 has object 1 in both frames and 2 in the second; v2 is test's."""
    roots.write_expressions(youtube, "valid", {"v1": asked(obj_id="1"), "v2": asked(obj_id="1")})
    roots.write_index(youtube / "valid/Annotations/v1/00000.png", {1: small.SQUARE})
    roots.write_index(youtube / "valid/Annotations/v1/00005.png", {1: small.SQUARE, 2: small.OTHER})
    dataset = open_dataset("refytvos", youtube, split="valid", scoring=True)
    assert [sample.key for sample in dataset] == ["v1/0", "v1/1"]
    assert [areas(track) for track in dataset.object_rles(dataset[0])] == [[25, 25]]
    assert dataset.warnings == []


def test_published_truth_as_a_folder_for_each_expression(youtube):
    """Neither the file of test nor obj_id is needed: the expressions beside the masks are those of the 202 videos."""
    (youtube / "meta_expressions/valid/meta_expressions.json").unlink()
    (youtube / "valid/meta_expressions_challenge.json").write_text(json.dumps({"videos": {"v1": asked(obj_id="1")}}))
    for exp_id, truth in (("0", [small.SQUARE, small.NOTHING]), ("1", [small.OTHER, small.EVERYTHING])):
        small.write_masks(youtube / "valid/Annotations/v1" / exp_id, ["00000", "00005"], truth)
    dataset = pickle.loads(pickle.dumps(open_dataset("refytvos", youtube)))
    assert [dataset.object_rles(sample)[0][0] for sample in dataset] == [
        masks.encode(small.SQUARE),
        masks.encode(small.OTHER),
    ]
    assert [areas(dataset.object_rles(sample)[0]) for sample in dataset] == [[25, 0], [25, 400]]
    assert areas(dataset.foreground("v1")) == [50, 400]
    (youtube / "valid/Annotations/v1/0/00005.png").unlink()
    with pytest.raises(DataError, match=r"v1/0/00005\.png: no such file"):
        dataset.object_rles(dataset[0])
    lenient = open_dataset("refytvos", youtube, scoring=True)
    assert areas(lenient.object_rles(lenient[0])[0]) == [25, 0]
    assert [line.rpartition("v1/0: ")[2] for line in lenient.warnings] == [
        "frames without a PNG; the target counts as absent there"
    ]


def test_half_of_the_published_truth_names_what_is_missing(youtube):
    roots.write_index(youtube / "valid/Annotations/v1/00000.png", {1: small.SQUARE})
    dataset = open_dataset("refytvos", youtube)
    with pytest.raises(DataError, match=r"no ground truth of valid: v1/0 has no obj_id\. That of valid was published"):
        dataset.object_rles(dataset[0])


# which videos are scored: a list of names, other releases


@pytest.mark.parametrize("place", ["", "meta_expressions", "meta_expressions/valid"])
def test_a_list_of_names_stands_for_the_file_of_test(youtube, place):
    (youtube / "meta_expressions/test/meta_expressions.json").unlink()
    (youtube / place / "ryv_val.txt").write_text("v1\n\n")
    dataset = open_dataset("refytvos", youtube)
    assert [sample.key for sample in dataset] == ["v1/0", "v1/1"]
    assert dataset.left_out == {"v2"}
    assert set(dataset.files) == {"meta", "names"}


def test_a_list_of_names_can_be_named(youtube, tmp_path):
    (youtube / "meta_expressions/test/meta_expressions.json").unlink()
    (tmp_path / "mine.txt").write_text("v2\n")
    dataset = open_dataset("refytvos", youtube, meta=tmp_path / "mine.txt")
    assert [sample.key for sample in dataset] == ["v2/0", "v2/1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v1\nv9\n", r"ryv_val\.txt: the video 'v9' is not in .*valid"),
        ("v1\nv2\n", r"ryv_val\.txt: the video 'v2' is in .*test.*keep one"),
        ("../v1\n", r"ryv_val\.txt:1: the name '\.\./v1' would leave"),
        ("version https://git-lfs.github.com/spec/v1\n", r"ryv_val\.txt: not a list of names but a Git LFS pointer"),
    ],
)
def test_a_list_that_fits_no_release_is_named(youtube, text, words):
    (youtube / "ryv_val.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        open_dataset("refytvos", youtube)


def test_the_release_of_2020_is_named(youtube):
    first = {"objects": {"1": {"category": "dog", "expressions": ["a dog"], "frames": ["00000"]}}}
    roots.write_expressions(youtube, "train", {"t1": first})
    with pytest.raises(DataError, match=r"video 't1': .*the first release, of 2020.*fetch the expressions of 2021"):
        open_dataset("refytvos", youtube, split="train")


def test_expressions_alone_can_be_counted_and_nothing_else(youtube):
    shutil.rmtree(youtube / "valid")
    dataset = pickle.loads(pickle.dumps(open_dataset("refytvos", youtube)))
    assert [sample.key for sample in dataset] == ["v1/0", "v1/1"]
    with pytest.raises(
        DataError, match=r"valid/JPEGImages/v1: no such folder, and nothing else tells the video's size"
    ):
        dataset[0].size  # noqa: B018 - it raises


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


@given(VALUES)
def test_an_object_number_is_a_number_or_an_error(value):
    try:
        number = object_number({"obj_id": value}, "here")
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
