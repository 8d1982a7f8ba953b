"""Training refuses data that a benchmark scores, whatever its name; a user who allows it is warned."""

import json
import shutil
from dataclasses import replace

import pytest

from demo import twins
from grpo_reward import task
from grpo_reward.options import DataOptions
from veason.datasets.scored import is_scored_name
from veason.errors import DataError
from verl.config import ConfigError


@pytest.fixture(scope="module")
def forms(world, tmp_path_factory):
    """The world in the form of every benchmark, by name."""
    out = tmp_path_factory.mktemp("forms")
    return {"revos": world} | {name: twins.build_twin(name, world, out / name) for name in twins.WRITERS}


def config(text, **more):
    return DataOptions(train_files=str(text), keyframe_resize=56, reference_image_resize=56, **more)


@pytest.mark.parametrize(
    ("train_files", "more", "message"),
    [
        ("{revos}", {"train_split": "valid"}, r"data\.train_split=valid"),
        ("revos={revos}:valid", {}, "valid is scored by the benchmark"),
        ("{revos}", {"train_meta": "{revos}/meta_expressions_valid_.json"}, r"data\.train_meta=.*by its name"),
        ("mevis={mevis}:valid_u", {}, "valid_u is scored by the benchmark"),
        ("mevis={mevis}", {"train_meta": "{mevis}/valid_u/meta_expressions.json"}, "by its name"),
        ("mevis={mevis}+revos={revos}:valid", {}, "valid is scored by the benchmark"),
        ("reasonvos={reasonvos}", {}, "ReasonVOS is one test set"),
        ("reasonvos={reasonvos}:test", {}, "ReasonVOS is one test set"),
        ("refytvos={refytvos}:valid", {}, "valid is scored by the benchmark"),
        ("refdavis={refdavis}:valid", {}, "valid is scored by the benchmark"),
        ("vicas={vicas}:v1.0/val", {}, "v1.0/val is scored by the benchmark"),
        ("vicas={vicas}:v1.0/test", {}, "v1.0/test is scored by the benchmark"),
        ("vicas={vicas}:v1.0/train", {"train_meta": "{vicas}/splits/v1.0/test.json"}, "by its name"),
    ],
)
def test_a_scored_split_by_its_name(forms, train_files, more, message):
    more = {key: value.format(**forms) for key, value in more.items()}
    with pytest.raises(ConfigError, match=rf"{message}.*data\.allow_scored_split=true") as caught:
        task.build(config(train_files.format(**forms), **more), split="train")
    assert isinstance(caught.value, DataError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "train_files", "meta"),
    [
        ("revos", "{root}", "meta_expressions_valid_.json"),
        ("revos", "revos={root}", "meta_expressions_valid_.json"),
        ("mevis", "mevis={root}", "valid_u/meta_expressions.json"),
        ("refytvos", "refytvos={root}", "meta_expressions/valid/meta_expressions.json"),
        ("refdavis", "refdavis={root}", "meta_expressions/valid/meta_expressions.json"),
        ("vicas", "vicas={root}:v1.0/train", "splits/v1.0/test.json"),
    ],
)
def test_a_scored_split_by_what_is_in_it(forms, tmp_path, name, train_files, meta):
    """The scored file under a name that says nothing; elsewhere, so that only its contents tell."""
    root = forms[name]
    shutil.copy(root / meta, tmp_path / "mine.json")
    given = config(train_files.format(root=root), train_meta=str(tmp_path / "mine.json"))
    with pytest.raises(ConfigError, match=r"mine\.json: \d+ of its \d+ videos .* those of .*scored by the benchmark"):
        task.build(given, split="train")


def test_one_scored_video_among_many_and_in_other_words(world, tmp_path):
    """A video of the scored split counts whatever is asked about it; the message says how many and which."""
    meta = json.loads((world / "meta_expressions_train_.json").read_text())
    scored = json.loads((world / "meta_expressions_valid_.json").read_text())["videos"]
    video, entry = next(iter(scored.items()))
    entry["expressions"] = {"0": {**entry["expressions"]["0"], "exp": "in other words"}}
    meta["videos"][video] = entry
    (tmp_path / "mine.json").write_text(json.dumps(meta))
    with pytest.raises(ConfigError, match=rf"1 of its \d+ videos \(the first: {video}\) are those of .*valid_\.json"):
        task.build(config(world, train_meta=str(tmp_path / "mine.json")), split="train")


def test_a_video_of_both_splits_counts_by_its_expressions(world, tmp_path):
    """If a root's training file contains a scored video itself, only the scored expressions are refused."""
    root = tmp_path / "root"
    shutil.copytree(world, root, ignore=shutil.ignore_patterns("tiny_policy"))
    path = root / "meta_expressions_train_.json"
    train, scored = (json.loads((root / f"meta_expressions_{s}_.json").read_text()) for s in ("train", "valid"))
    video, entry = next(iter(scored["videos"].items()))
    words = entry["expressions"]["0"]["exp"]
    for said, refused in ((f" {words.upper()}. ", True), ("in other words", False)):
        entry["expressions"] = {"0": {**entry["expressions"]["0"], "exp": said}}
        train["videos"][video] = entry
        path.write_text(json.dumps(train))
        if refused:
            with pytest.raises(ConfigError, match=r"train_\.json: 1 of its \d+ videos"):
                task.build(config(root), split="train")
        else:
            assert task.build(config(root), split="train").notes("nowhere") == []


def test_whoever_wants_to_is_told(world):
    given = config(world, train_split="valid", allow_scored_split=True)
    allowed = task.build(given, split="train")
    assert allowed.dataset.split == "valid"
    [note] = allowed.notes("nowhere")
    assert note.startswith("data.train_split=valid: it is scored by the benchmark")
    assert "data.allow_scored_split=true allows it" in note
    assert task.build(replace(given, train_split="train"), split="train").notes("nowhere") == []


def test_a_scored_file_that_was_not_fetched_is_no_obstacle(world, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(world, root, ignore=shutil.ignore_patterns("tiny_policy"))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (root / "meta_expressions_valid_.json").write_text(pointer)
    [note] = task.build(config(root), split="train").notes("nowhere")
    assert "meta_expressions_valid_.json" in note
    assert "a Git LFS pointer" in note
    assert note.endswith("whether it holds what is trained on was not looked at")


def test_validation_may_be_on_what_is_scored(world):
    assert task.build(config(world), split="val").dataset.split == "valid"


@pytest.mark.parametrize("name", ["valid", "val", "valid_u", "v1.0/test", "meta_expressions_valid_", "MEVIS-TEST"])
def test_names_of_scored_splits(name):
    assert is_scored_name(name)


@pytest.mark.parametrize(
    "name", ["train", "train_sub", "meta_expressions_train_select", "validated", "latest", "train_not_val"]
)
def test_other_names(name):
    assert not is_scored_name(name)
