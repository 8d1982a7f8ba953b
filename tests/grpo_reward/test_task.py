"""The ReVOS task on the synthetic world: which prompts there are, which frames they show, what is read for them."""

import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from demo import twins
from grpo_reward import task
from grpo_reward.options import DataOptions
from veason import boxes as geometry
from veason import frames, ground_truth, masks
from veason.datasets import open_dataset
from veason.errors import DataError
from verl.config import ConfigError, load
from verl.trainer.prompts import Schedule, batches, choose


@pytest.fixture(scope="module")
def config(world):
    return DataOptions(train_files=str(world), keyframe_resize=112, reference_image_resize=112)


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
    [native] = geometry.rescale([ground_truth.boxes(tracks, target.frame_ids[0])[0]], sample.size, (112, 112))
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
        areas = ground_truth.areas(training.dataset.object_rles(sample), len(sample))
        shown = training.get(index, epoch=0).target.frame_ids
        assert {shown} <= {frames.train_grid(len(sample), 6, keyframe=k) for k in np.argsort(areas)[-5:]} | {
            frames.train_grid(len(sample), 6, keyframe=k) for k in range(len(sample)) if areas[k] >= sorted(areas)[-5]
        }


def test_validation_shows_evenly_spaced_frames(config):
    validation = task.build(config, split="val")
    prompt = validation.get(0, epoch=0)
    sample = validation.dataset[validation._numbers[0]]
    assert validation.dataset.split == "valid"
    assert prompt.target.frame_ids == frames.linspace(len(sample), 8)  # as inference, not the 6 of training
    fewer = task.build(replace(config, val_frames=3), split="val")
    assert fewer.get(0, epoch=0).target.frame_ids == frames.linspace(len(sample), 3)
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
    config = DataOptions(train_files=str(root), train_split="valid", allow_scored_split=True)
    config = replace(config, keyframe_resize=56, reference_image_resize=56)
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


@pytest.fixture(scope="module")
def forms(world, tmp_path_factory):
    """The world in the form of every benchmark, by name."""
    out = tmp_path_factory.mktemp("forms")
    return {"revos": world} | {name: twins.build_twin(name, world, out / name) for name in twins.WRITERS}


@pytest.fixture(scope="module")
def mixed(config, forms):
    """Training on everything that has a training split, and validation on two."""
    named = f"revos={forms['revos']}+mevis={forms['mevis']}+refytvos={forms['refytvos']}"
    return replace(
        config,
        train_files=f"{named}+vicas={forms['vicas']}:v1.0/train",
        val_files=f"revos={forms['revos']}, refdavis={forms['refdavis']}",
    )


def test_a_mix_of_benchmarks(mixed, forms, training):
    mix = task.build(mixed, split="train")
    splits = {"revos": "train", "mevis": "train", "refytvos": "train", "vicas": "v1.0/train"}
    sizes = [len(open_dataset(name, forms[name], split=split)) for name, split in splits.items()]
    assert len(mix) == len(training) + sum(sizes[1:])  # of ReVOS the expressions with a target, of the others all
    order = [mix.dataset[number].dataset for number in mix._numbers]
    starts = [order.index(name) for name in splits]
    assert starts == sorted(starts)
    prompts = {name: mix.get(start, epoch=0) for name, start in zip(splits, starts, strict=True)}
    assert [prompt.uid.partition("/")[0] for prompt in prompts.values()] == list(splits)
    assert all(sum(prompt.target.areas) > 0 for prompt in prompts.values())
    plain = training.get(0, epoch=0)
    assert prompts["revos"].uid == f"revos/{plain.uid}"
    assert prompts["revos"].target == plain.target  # the first of the mix: the same number, hence the same clip
    uids = [task.unique_key(mix.dataset, mix.dataset[number]) for number in mix._numbers]
    assert len(set(uids)) == len(uids)


def test_validation_on_a_mix_takes_the_splits_that_are_scored_offline(mixed):
    validation = task.build(mixed, split="val")
    assert validation.dataset.split == "revos valid + refdavis valid"
    last = validation.get(len(validation) - 1, epoch=0)
    assert last.uid.startswith("refdavis/")
    assert last.target.frame_ids == frames.linspace(len(validation.dataset[validation._numbers[-1]]), 8)


def test_one_benchmark_by_name_keeps_its_keys(config, forms, training):
    named = task.build(replace(config, train_files=f"revos={forms['revos']}"), split="train")
    assert [named.get(i, epoch=0).uid for i in range(3)] == [training.get(i, epoch=0).uid for i in range(3)]
    alone = task.build(replace(config, train_files=f"mevis={forms['mevis']}"), split="train")
    assert alone.get(0, epoch=0).uid == alone.dataset[0].key


def test_the_text_survives_yaml_and_the_command_line(tmp_path):
    text = "revos=/r, mevis=/m:train+vicas=/v:v1.0/train"
    (tmp_path / "run.yaml").write_text(f"data:\n  train_files: {text}\n")
    assert load([f"config={tmp_path}/run.yaml"]).data.train_files == text
    assert load([f"data.train_files={text}"]).data.train_files == text


def test_excluding_from_a_mix(mixed, config, forms, training, tmp_path):
    whole = task.build(mixed, split="train")
    gone = [whole.get(0, epoch=0).uid, whole.get(len(whole) - 1, epoch=0).uid]
    (tmp_path / "gone.txt").write_text("\n".join(gone))
    fewer = task.build(replace(mixed, exclude=str(tmp_path / "gone.txt")), split="train")
    assert len(fewer) == len(whole) - 2
    assert len(task.build(replace(config, exclude=str(tmp_path / "gone.txt")), split="train")) == len(training) - 1
    (tmp_path / "plain.txt").write_text(training.get(0, epoch=0).uid)
    with pytest.raises(DataError, match=r"names no data set; in a mixture each line must be NAME/video/exp_id"):
        task.build(replace(mixed, exclude=str(tmp_path / "plain.txt")), split="train")


def test_samples_without_a_target_are_listed_as_a_mix_wants_them(hand_made, forms, capsys):
    hand_made.mask_dict["9000000001"] = [None] * 4
    root = hand_made.write()
    assert task.main([f"revos={root}:valid+mevis={forms['mevis']}"]) == 0
    assert capsys.readouterr().out.split() == ["revos/UVO/-a_b/0"]
    assert task.main([f"mevis={forms['mevis']}:valid"]) == 2
    assert "MeViS valid has no masks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "split", "message"),
    [
        ({"train_files": "reasonvos={reasonvos}"}, "train", "ReasonVOS is one test set"),
        ({"train_files": "refdavis={refdavis}:valid"}, "train", "valid is scored by the benchmark"),
        ({"train_files": "revos={revos}", "train_split": "valid"}, "train", "data.train_split is 'valid', but"),
        ({"train_files": "mevis={mevis}", "val_files": ""}, "val", "data.val_files is empty"),
        ({"val_files": "mevis={mevis}:valid"}, "val", "MeViS valid has no masks"),
        (
            {"val_files": "refytvos={refytvos}+revos={revos}"},
            "val",
            "no ground truth of valid",
        ),
        ({"train_files": "vicas={vicas}"}, "train", "names no version"),
        ({"train_meta": "subset.json"}, "train", "another expression file needs a single data set"),
    ],
)
def test_what_a_mix_refuses_when_it_is_built(mixed, forms, wrong, split, message):
    """Before a model is loaded, that is, not in the middle of the first step."""
    with pytest.raises(DataError, match=message):
        task.build(replace(mixed, **{key: value.format(**forms) for key, value in wrong.items()}), split=split)


def test_threads_do_not_read_ground_truth_at_the_same_time(mixed):
    """The readers keep the last video's tracks, and the trainer asks from several threads."""
    mix = task.build(mixed, split="train")
    alone = [mix.get(index, epoch=0).target for index in range(len(mix))]
    read, occupied, met = mix.dataset.object_rles, threading.Lock(), []

    def watched(sample):
        first = occupied.acquire(blocking=False)
        met.append(not first)
        time.sleep(0.001)  # room for another thread to come in
        found = read(sample)
        if first:
            occupied.release()
        return found

    mix.dataset.object_rles = watched
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda index: mix.get(index, epoch=0).target, range(len(mix)))) == alone
    assert len(met) == len(mix)
    assert not any(met)


def test_the_trainer_goes_through_a_mix(mixed):
    mix = task.build(mixed, split="train")
    schedule = Schedule(len(mix), 8, seed=1)
    drawn = [prompt for step in batches(mix, schedule, range(schedule.steps_per_epoch)) for prompt in step]
    assert len({prompt.uid for prompt in drawn}) == len(drawn) == 8 * schedule.steps_per_epoch
    assert {prompt.uid.partition("/")[0] for prompt in drawn} == {"revos", "mevis", "refytvos", "vicas"}


class TestBeforeTheRun:
    """The checks that `verl` runs on a task before the run starts."""

    def test_an_outline_is_the_prompt_without_pixels(self, config):
        validation = task.build(config, split="val")
        for index in range(len(validation)):
            prompt, outline = validation.get(index, epoch=0), validation.outline(index)
            assert (outline.key, outline.messages) == (prompt.uid, prompt.messages)
            assert outline.image_sizes == tuple(image.shape[:2] for image in prompt.images)
        sample = validation.sample(0)
        assert (outline.group.partition("/")[0], validation.outline(0).group) == ("revos", f"revos/{sample.video}")
        assert {validation.outline(i).kind for i in range(len(validation))} == {"revos 0", "revos 1"}

    def test_an_outline_of_training_is_the_longest_that_may_come(self, training, monkeypatch):
        monkeypatch.setattr(frames, "load", lambda *_, **__: pytest.fail("a picture was decoded"))
        monkeypatch.setattr(training.dataset, "object_rles", lambda *_: pytest.fail("a mask was read"))
        for index in range(len(training)):
            length = len(training.sample(index))
            grids = [frames.train_grid(length, 6, keyframe=k) for k in range(length)]
            assert len(training.outline(index).image_sizes) == max(map(len, grids))
        assert task._longest_grid(11, 6) == (
            1,
            4,
            7,
            10,
        )  # step 3: of (0 3 6 9), (1 4 7 10), (2 5 8) the latest longest
        assert task._longest_grid(1, 6) == (0,)

    def test_validation_is_drawn_over_videos_and_types(self, config):
        """As many of each type as there are videos to validate on."""
        validation = task.build(config, split="val")
        told = [validation.outline(i) for i in range(len(validation))]
        videos = {one.group for one in told}
        for seed in range(3):
            drawn = [told[i] for i in choose(told, 2 * len(videos), seed=seed)]
            assert {one.group for one in drawn} == videos
            assert sorted(one.kind for one in drawn) == ["revos 0"] * len(videos) + ["revos 1"] * len(videos)

    def test_a_note_names_the_sentence_and_the_truth(self, training):
        prompt = training.get(3, epoch=0)
        asked, truth = prompt.note.splitlines()
        assert asked == f"asked: {training.sample(3).expression}"
        shown = truth.removeprefix("truth: ").split("; ")
        assert [int(one.partition(":")[0]) for one in shown] == list(prompt.target.frame_ids)
        best = int(np.argmax(prompt.target.areas))
        assert shown[best].startswith(f"{prompt.target.frame_ids[best]}: 1.00 [")

    def test_the_fingerprint_is_of_contents_and_words(self, hand_made, tmp_path):
        root = hand_made.write()
        given = DataOptions(train_files=str(root), train_split="valid", allow_scored_split=True, keyframe_resize=56)
        given = replace(given, reference_image_resize=56)

        def prints(**more):
            return task.build(replace(given, **more), split="train").fingerprint()

        first = prints()
        assert first == prints()
        assert {"meta", "masks", "exclude", "prompt template"} <= first.keys()
        (tmp_path / "none.txt").write_text("# nothing\n")
        assert prints(exclude=str(tmp_path / "none.txt")) == first
        (tmp_path / "one.txt").write_text("UVO/-a_b/1\n")
        assert differing(first, prints(exclude=str(tmp_path / "one.txt"))) == {"exclude"}
        (tmp_path / "words.txt").write_text("$frames Find $expression.")
        assert differing(first, prints(prompt_template=str(tmp_path / "words.txt"))) == {"prompt template"}
        hand_made.meta["videos"]["UVO/-a_b"]["expressions"]["0"]["exp"] = "the circle"
        hand_made.write()
        assert "meta" in differing(first, prints())

    def test_how_a_checkpoint_wants_to_be_asked(self, config, tmp_path):
        training = task.build(replace(config, val_frames=8), split="train")
        record = training.asked()
        assert record == {
            "frames": 8,
            "size": [112, 112],
            "family": "Qwen2.5-VL",
            "prompt_template": None,
            "max_new_tokens": 1024,
        }
        assert training.notes(str(tmp_path)) == []  # a checkpoint that does not say
        (tmp_path / "veason.json").write_text(json.dumps(record | {"frames": 6}))
        assert training.notes(str(tmp_path)) == []  # 6 frames in training
        [note] = task.build(config, split="val").notes(str(tmp_path))
        assert note == f"{tmp_path}/veason.json: frames is 8, the checkpoint was trained with 6"
        (tmp_path / "veason.json").write_text(json.dumps(record | {"frames": 6, "size": [84, 84]}))
        assert [note.partition(": ")[2] for note in training.notes(str(tmp_path))] == [
            "size is 112x112, the checkpoint was trained with 84x84"
        ]
        (tmp_path / "veason.json").write_text(json.dumps(record | {"family": "Qwen3-VL"}))
        with pytest.raises(ConfigError, match=r"its model family is Qwen3-VL, but the task's is Qwen2\.5-VL"):
            training.notes(str(tmp_path))

    def test_an_exclude_list_of_other_samples_is_noted(self, config, tmp_path):
        (tmp_path / "other.txt").write_text("no/such/0\nno/such/1\n")
        given = replace(config, exclude=str(tmp_path / "other.txt"))
        assert task.build(given, split="train").notes("x") == [
            f"data.exclude={tmp_path}/other.txt: none of its 2 lines is a sample to train on"
        ]
        assert task.build(given, split="val").notes("x") == []

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"sampled_frames": 1}, r"data\.sampled_frames is 1: training samples at least 2 frames of a video"),
            ({"keyframe_resize": 100, "reference_image_resize": 100}, "not a multiple of 28"),
            ({"exclude": "{folder}"}, "a folder, expected a file"),
            ({"exclude": "{folder}/pointer.txt"}, "a Git LFS pointer"),
            ({"exclude": "{folder}/binary.txt"}, "no text"),
            ({"prompt_template": "{folder}"}, "a folder, expected a file"),
            ({"prompt_template": "{folder}/nowhere.txt"}, "no such file"),
            ({"train_files": "{folder}"}, "meta_expressions_train_.json"),
            ({"train_meta": "{folder}/pointer.txt"}, "a Git LFS pointer"),
        ],
    )
    def test_what_is_told_in_one_line(self, config, tmp_path, wrong, message):
        (tmp_path / "pointer.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
        given = {key: str(v).format(folder=tmp_path) if isinstance(v, str) else v for key, v in wrong.items()}
        with pytest.raises(ConfigError, match=message) as caught:
            task.build(replace(config, **given), split="train")
        assert "\n" not in str(caught.value)

    def test_videos_without_pictures_are_counted(self, hand_made):
        root = hand_made.write()
        hand_made.frame("00000").unlink()
        given = DataOptions(train_files=str(root), train_split="valid", allow_scored_split=True, keyframe_resize=56)
        with pytest.raises(ConfigError, match=r"00000\.jpg: no such picture; 1 of 1 videos have none there"):
            task.build(replace(given, reference_image_resize=56), split="train")

    def test_a_frame_that_breaks_later_is_told_in_one_line_too(self, hand_made):
        root = hand_made.write()
        hand_made.frame("00010").write_bytes(b"no picture")
        given = DataOptions(train_files=str(root), train_split="valid", allow_scored_split=True, keyframe_resize=56)
        built = task.build(replace(given, reference_image_resize=56), split="train")
        with pytest.raises(ConfigError, match=r"00010\.jpg"):
            _ = [built.get(0, epoch=epoch) for epoch in range(20)]


def differing(a, b):
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
