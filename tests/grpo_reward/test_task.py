"""The ReVOS task on the synthetic world: which prompts there are, which frames they show, what is read for them."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from grpo_reward import task
from veason import boxes as geometry
from veason import frames, masks, targets
from veason.datasets import open_dataset
from veason.errors import DataError
from verl.config import DataConfig


@pytest.fixture(scope="module")
def config(world):
    return DataConfig(train_files=str(world), keyframe_resize=112, reference_image_resize=112)


@pytest.fixture(scope="module")
def training(config):
    return task.build(config, split="train")


def test_expressions_without_a_target_are_left_out(config, training):
    raw = open_dataset("revos", config.train_files, split="train")
    assert 0 < len(training) == sum(sample.type_id != 2 for sample in raw) < len(raw)


def test_a_prompt(config, training):
    prompt = training.get(3, epoch=0)
    sample = training.dataset[training._numbers[3]]
    target = prompt.target
    assert prompt.uid == sample.key
    user = prompt.messages[1]["content"]
    assert [part for part in user if part["type"] == "image"] == [{"type": "image"}] * len(target.frame_ids)
    assert f"({target.frame_ids[0]}s)" in user[0]["text"]
    assert [image.shape for image in prompt.images] == [(112, 112, 3)] * len(target.frame_ids)
    frame = frames.load(sample.frame_path(target.frame_ids[1]))
    assert np.array_equal(prompt.images[1], frames.resize(frame, (112, 112)))
    tracks = training.dataset.object_rles(sample)
    [native] = geometry.rescale([targets.boxes(tracks, target.frame_ids[0])[0]], sample.size, (112, 112))
    assert target.boxes[0][0] == tuple(value + 0.5 for value in native)
    assert sum(target.areas) == sum(masks.area(rle) for rle in target.masks) > 0
    assert pickle.loads(pickle.dumps(prompt)).target == target


def test_the_clip_depends_on_seed_epoch_and_index_alone(config, training):
    first = [training.get(i, epoch=0).target for i in range(6)]
    again = task.build(config, split="train")
    assert [again.get(i, epoch=0).target for i in reversed(range(6))] == first[::-1]  # in any order, anew
    assert [training.get(i, epoch=1).target for i in range(6)] != first
    other = task.build(replace(config, seed=1), split="train")
    assert [other.get(i, epoch=0).target for i in range(6)] != first


def test_training_shows_a_grid_around_one_of_the_largest_frames(training):
    for index in range(10):
        sample = training.dataset[training._numbers[index]]
        areas = targets.areas(training.dataset.object_rles(sample), len(sample))
        shown = training.get(index, epoch=0).target.frame_ids
        assert {shown} <= {frames.train_grid(len(sample), 6, keyframe=k) for k in np.argsort(areas)[-5:]} | {
            frames.train_grid(len(sample), 6, keyframe=k) for k in range(len(sample)) if areas[k] >= sorted(areas)[-5]
        }


def test_validation_shows_evenly_spaced_frames(config):
    validation = task.build(config, split="val")
    prompt = validation.get(0, epoch=0)
    sample = validation.dataset[validation._numbers[0]]
    assert validation.dataset.split == "valid"
    assert prompt.target.frame_ids == frames.linspace(len(sample), 6)
    assert validation.get(0, epoch=5).target == prompt.target


def test_only_the_shown_frames_of_the_asked_sample_are_decoded(config, monkeypatch):
    opened = []
    load = frames.load
    monkeypatch.setattr(frames, "load", lambda path, **options: opened.append(path) or load(path, **options))
    fresh = task.build(config, split="train")
    assert opened == []
    prompt = fresh.get(len(fresh) - 1, epoch=0)
    sample = fresh.dataset[fresh._numbers[-1]]
    assert opened == [sample.frame_path(t) for t in prompt.target.frame_ids]


def test_excluded_samples_and_another_expression_file(config, training, world, tmp_path):
    gone = [training.get(i, epoch=0).uid for i in (0, 4)]
    (tmp_path / "gone.txt").write_text(f"# seen in the test set\n{gone[0]}\n\n{gone[1]}\n")
    fewer = task.build(replace(config, exclude=str(tmp_path / "gone.txt")), split="train")
    assert len(fewer) == len(training) - 2
    assert not {fewer.get(i, epoch=0).uid for i in range(5)} & set(gone)
    (tmp_path / "typo.txt").write_text("UVO\n")
    with pytest.raises(DataError, match="'UVO' is no video/exp_id"):
        task.build(replace(config, exclude=str(tmp_path / "typo.txt")), split="train")

    meta = json.loads((world / "meta_expressions_train_.json").read_text())
    video, entry = next(iter(meta["videos"].items()))
    (tmp_path / "subset.json").write_text(json.dumps({"videos": {video: entry}}))
    subset = task.build(replace(config, train_meta=str(tmp_path / "subset.json")), split="train")
    assert {key.rpartition("/")[0] for key in (subset.get(i, epoch=0).uid for i in range(len(subset)))} == {video}


def test_a_target_that_is_in_no_frame_is_named(hand_made, capsys):
    hand_made.mask_dict["9000000001"] = [None] * 4
    hand_made.mask_dict["9000000002"] = [None] * 4
    root = hand_made.write()
    config = DataConfig(train_files=str(root), train_split="valid", keyframe_resize=56, reference_image_resize=56)
    with pytest.raises(DataError, match=r"UVO/-a_b/0: the target is in no frame.*data\.exclude"):
        task.build(config, split="train").get(0, epoch=0)
    task.main([str(root), "--split", "valid"])
    assert capsys.readouterr().out.split() == ["UVO/-a_b/0", "UVO/-a_b/1"]


def test_what_cannot_be_opened(config):
    for wrong, message in (
        ({"keyframe_resize": 100, "reference_image_resize": 100}, "not a multiple of 28"),
        ({"reference_image_resize": 56}, "boxes and frames need the same size"),
        ({"train_files": ""}, "data.train_files is empty"),
        ({"exclude": "nowhere.txt"}, "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            task.build(replace(config, **wrong), split="train")
