"""The files of a written world, rule by rule."""

from __future__ import annotations

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from veason.datasets.revos import ReVOS


def expressions(world, split=None):
    metas = world.metas[split] if split else world.videos
    return [(video, e) for video, entry in metas.items() for e in entry["expressions"].values()]


def test_keys_have_slashes_a_leading_dash_and_an_underscore(world):
    keys = set(world.videos)
    assert "UVO/all/-syn_000" in keys
    assert any(key.startswith("LV-VIS/train/0") for key in keys)
    assert any(key.startswith("MOSE/") and len(key) == 13 for key in keys)
    assert len(keys) == 12
    assert len(world.metas["train"]) == 9
    assert len(world.metas["valid"]) == 3
    assert sorted(entry["vid_id"] for entry in world.videos.values()) == list(range(12))


def test_frame_names_are_five_digits_sorted_and_strided_in_one_video(world):
    strides = set()
    for video, entry in world.videos.items():
        names = entry["frames"]
        assert names == sorted(names)
        assert all(len(name) == 5 and name.isdecimal() for name in names)
        on_disk = sorted(path.name for path in (world.root / "JPEGImages" / video).iterdir())
        assert on_disk == [f"{name}.jpg" for name in names]
        strides |= set(np.diff([int(name) for name in names]).tolist())
    assert strides == {1, 5}


def test_pictures_have_the_stated_size_and_sizes_vary(world):
    for video, entry in world.videos.items():
        for name in entry["frames"]:
            with Image.open(world.root / "JPEGImages" / video / f"{name}.jpg") as picture:
                assert (picture.height, picture.width, picture.mode) == (entry["height"], entry["width"], "RGB")
    assert len({(entry["height"], entry["width"]) for entry in world.videos.values()}) >= 4


def test_training_videos_are_long_and_one_valid_video_is_a_single_frame(world):
    assert min(len(entry["frames"]) for entry in world.metas["train"].values()) >= 4
    assert [len(entry["frames"]) for entry in world.metas["valid"].values()].count(1) == 1


def test_expression_records_have_exactly_the_fields_of_revos(world):
    for entry in world.videos.values():
        assert list(entry) == ["expressions", "vid_id", "height", "width", "frames"]
        assert list(entry["expressions"]) == [str(n) for n in range(len(entry["expressions"]))]
        for record in entry["expressions"].values():
            assert list(record) == ["exp", "obj_id", "anno_id", "type_id"]
            assert len(record["obj_id"]) == len(record["anno_id"])
            assert (record["type_id"] == 2) == (record["anno_id"] == [])
            assert record["type_id"] != 1 or record["exp"].endswith("?")
            assert record["type_id"] != 0 or not record["exp"].endswith("?")
    assert max(len(entry["expressions"]) for entry in world.metas["train"].values()) >= 11
    assert max(len(entry["expressions"]) for entry in world.metas["valid"].values()) >= 11


def test_every_video_has_a_target_and_every_split_every_type(world):
    for entry in world.videos.values():
        texts = [record["exp"] for record in entry["expressions"].values()]
        assert len(set(texts)) == len(texts)
        assert any(record["anno_id"] for record in entry["expressions"].values())
        assert {0, 1} <= {record["type_id"] for record in entry["expressions"].values()}
    for split in ("train", "valid"):
        assert {e["type_id"] for _, e in expressions(world, split)} == {0, 1, 2}
        assert {1, 2} <= {len(e["anno_id"]) for _, e in expressions(world, split)}


def test_annotation_ids_are_large_and_belong_to_one_video(world):
    owners = {(anno, video) for video, e in expressions(world) for anno in e["anno_id"]}
    assert len({anno for anno, _ in owners}) == len(owners)
    assert min(int(anno) for anno in world.mask_dict) >= 3_000_000
    assert {str(anno) for anno, _ in owners} <= set(world.mask_dict)


def test_masks_are_null_where_absent_and_otherwise_fit_the_video(world):
    nulls = 0
    for video, e in expressions(world):
        entry = world.videos[video]
        for anno in e["anno_id"]:
            rles = world.mask_dict[str(anno)]
            assert len(rles) == len(entry["frames"])
            nulls += rles.count(None)
            for rle in filter(None, rles):
                assert rle["size"] == [entry["height"], entry["width"]]
                assert isinstance(rle["counts"], str)
                assert coco.area(rle) > 0
    assert nulls > 0


def test_foreground_is_the_union_of_all_referred_annotations(world):
    assert set(world.foreground) == set(world.videos)
    for video, entry in world.videos.items():
        annos = {anno for e in entry["expressions"].values() for anno in e["anno_id"]}
        union = np.any([world.masks(anno) for anno in annos], axis=0)
        stored = world.foreground[video]
        assert list(stored) == ["masks_rle", "foreground_ratio"]
        assert np.array_equal(np.stack([coco.decode(rle) for rle in stored["masks_rle"]]), union)
        assert stored["foreground_ratio"] == [mask.sum() / (entry["height"] * entry["width"]) for mask in union]


def test_special_masks_are_all_there(world):
    late, border, full, double, bare = 0, 0, 0, 0, 0
    for video, e in expressions(world):
        if not e["anno_id"]:
            continue
        count = np.sum([world.masks(anno).astype(int) for anno in e["anno_id"]], axis=0)  # as the ReVOS scorer adds
        union = count > 0
        late += not union[0].any() and union[-1].any()
        edges = np.concatenate([union[:, 0], union[:, -1], union[:, :, 0], union[:, :, -1]], axis=1)
        border += bool(edges.any())
        full += bool(union.all(axis=(1, 2)).any())
        double += count.max() >= 2
        bare += 0.0 in world.foreground[video]["foreground_ratio"]
    assert min(late, border, full, double, bare) > 0


def test_every_target_is_visible_at_its_box_centre_where_it_is_largest(world):
    for _, e in expressions(world):
        for anno in e["anno_id"]:
            masks = world.masks(anno)
            mask = masks[masks.sum(axis=(1, 2)).argmax()]
            y, x = np.nonzero(mask)
            assert mask[(y.min() + y.max()) // 2, (x.min() + x.max()) // 2]


def test_the_reader_of_revos_takes_both_splits(world):
    for split in ("train", "valid"):
        dataset = ReVOS(world.root, split=split)
        assert len(dataset) == len(expressions(world, split))
        for sample in dataset:
            assert len(dataset.object_rles(sample)) == len(sample.anno_ids)
            assert sample.frame_path(len(sample) - 1).is_file()
            assert len(dataset.foreground(sample.video)) == len(sample)
