"""The ReVOS reader: what it gives, and the error for everything that can be wrong with a root."""

import json
import pickle

import pytest

from veason import masks
from veason.datasets import open_dataset
from veason.errors import DataError

VIDEO = "UVO/-a_b"


def test_samples_in_the_order_of_the_file(hand_made):
    dataset = open_dataset("revos", hand_made.write(), split="valid")
    assert [sample.key for sample in dataset] == [f"{VIDEO}/{i}" for i in "012"]
    sample = dataset[1]
    assert (sample.expression, sample.type_id, sample.size, len(sample)) == ("what is there?", 1, (48, 64), 4)
    assert (sample.obj_ids, sample.anno_ids) == ((0, 1), (9000000001, 9000000002))
    assert sample.frame_path(1) == hand_made.path / "JPEGImages" / VIDEO / "00005.jpg"


def test_ground_truth_by_object(hand_made):
    dataset = open_dataset("revos", hand_made.write(), split="valid")
    square, dot = dataset.object_rles(dataset[1])
    assert [masks.area(rle) for rle in square] == [100, 100, 100, 100]
    assert [masks.area(rle) for rle in dot] == [0, 36, 36, 36]
    assert masks.box(square[2]) == (20.0, 20.0, 29.0, 29.0)
    assert dataset.object_rles(dataset[2]) == ()


def test_foreground_from_the_masks_or_the_stored_file(hand_made):
    root = hand_made.write()
    dataset = open_dataset("revos", root, split="valid")
    assert [masks.area(rle) for rle in dataset.foreground(VIDEO)] == [100, 136, 136, 136]
    stored = {VIDEO: {"masks_rle": [hand_made.mask_dict["9000000001"][0]] * 4, "foreground_ratio": [0.1] * 4}}
    (root / "mask_dict_foreground.json").write_text(json.dumps(stored))
    dataset = open_dataset("revos", root, split="valid")
    assert [masks.area(rle) for rle in dataset.foreground(VIDEO)] == [100] * 4


def test_a_data_set_travels_to_a_worker(hand_made):
    dataset = pickle.loads(pickle.dumps(open_dataset("revos", hand_made.write(), split="valid")))
    assert len(dataset.object_rles(dataset[0])) == 1


def test_another_image_root_and_expression_file(hand_made, tmp_path):
    root = hand_made.write()
    chosen = tmp_path / "chosen.json"
    chosen.write_text((root / "meta_expressions_valid_.json").read_text())
    dataset = open_dataset("revos", root, split="valid", image_root=tmp_path / "frames", meta=chosen)
    assert dataset[0].frame_dir == tmp_path / "frames" / VIDEO
    assert dataset.files["meta"] == chosen


def broken(hand_made, change) -> str:
    """The error message of a root after `change`."""
    change(hand_made)
    with pytest.raises(DataError) as error:
        read_everything(hand_made.write())
    return str(error.value)


def read_everything(root):
    dataset = open_dataset("revos", root, split="valid")
    return [dataset.object_rles(sample) for sample in dataset]


def video(root):
    return root.meta["videos"][VIDEO]


@pytest.mark.parametrize("name", ["../evil", "a/../../b", "/etc", "a//b", "a\\b", "a/./b", "", "C:x", "a\nb"])
def test_a_video_name_cannot_leave_the_root(hand_made, name):
    message = broken(hand_made, lambda root: root.meta["videos"].update({name: video(root)}))
    assert "meta_expressions_valid_.json" in message
    assert "leave its folder" in message or "non-empty name" in message


@pytest.mark.parametrize("name", ["../0", "a/b", "..", ""])
def test_frame_names_and_expression_ids_are_plain(hand_made, name):
    message = broken(hand_made, lambda root: video(root)["expressions"].update({name: video(root)["expressions"]["0"]}))
    assert "expression id" in message
    hand_made.meta["videos"][VIDEO]["expressions"].pop(name)
    assert "frame 3" in broken(hand_made, lambda root: video(root).update(frames=["0", "1", "2", name]))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda r: r.mask_dict["9000000001"].pop(),
            ["mask_dict.json", "annotation 9000000001", "3 masks for 4 frames"],
        ),
        (
            lambda r: r.mask_dict["9000000002"].__setitem__(1, {**r.mask_dict["9000000002"][1], "size": [64, 48]}),
            ["annotation 9000000002", "frame 1", "[64, 48]", "[48, 64]"],
        ),
        (lambda r: r.mask_dict.pop("9000000002"), ["annotation 9000000002", f"{VIDEO}/1", "is missing"]),
        (
            lambda r: r.mask_dict["9000000001"].__setitem__(0, 3),
            ["annotation 9000000001", "frame 0", "expected an RLE"],
        ),
        (lambda r: r.meta.update(videos={}), ["the data set is empty"]),
        (lambda r: r.meta.pop("videos"), ["videos: expected an object"]),
        (lambda r: video(r).update(frames=["1", "0", "2", "3"]), ["not sorted", "'1', '0'"]),
        (lambda r: video(r).update(frames=[]), ["non-empty list"]),
        (lambda r: video(r).update(height=0), ["height and width"]),
        (lambda r: video(r).update(width="64"), ["height and width"]),
        (lambda r: video(r)["expressions"]["0"].update(type_id=3), ["expression '0'", "type_id"]),
        (lambda r: video(r)["expressions"]["0"].update(exp=" "), ["expression '0'", "non-empty text"]),
        (lambda r: video(r)["expressions"]["1"].update(anno_id=[1]), ["expression '1'", "2 obj_id but 1 anno_id"]),
        (lambda r: video(r)["expressions"]["1"].update(anno_id=[[1], 2]), ["anno_id must be a list of ids"]),
    ],
)
def test_a_broken_root_is_named(hand_made, change, parts):
    message = broken(hand_made, change)
    for part in parts:
        assert part in message


def test_a_duplicate_expression_id_is_named(hand_made):
    path = hand_made.write() / "meta_expressions_valid_.json"
    path.write_text(path.read_text().replace('"1": {"exp"', '"0": {"exp"'))
    with pytest.raises(DataError, match=rf"video '{VIDEO}': expressions: the key '0' appears twice"):
        open_dataset("revos", hand_made.path, split="valid")


def test_files_that_are_not_there_or_no_json(hand_made, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_dataset("revos", tmp_path / "nowhere", split="valid")
    root = hand_made.write()
    with pytest.raises(DataError, match=r"meta_expressions_train_\.json: no such file"):
        open_dataset("revos", root, split="train")
    (root / "meta_expressions_train_.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"nested too deeply|not valid JSON"):
        open_dataset("revos", root, split="train")
    (root / "mask_dict.json").unlink()
    dataset = open_dataset("revos", root, split="valid")
    with pytest.raises(DataError, match=r"mask_dict\.json: no such file"):
        dataset.object_rles(dataset[0])
    with pytest.raises(DataError, match="unknown data set 'revis'"):
        open_dataset("revis", root, split="valid")
