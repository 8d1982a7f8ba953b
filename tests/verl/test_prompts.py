"""The prompts of a run before it starts: too long, too few, drawn for validation, the same ones after a resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_training import settings

from demo.policy import write_tiny_policy
from verl import config as configuration
from verl.config import ConfigError
from verl.engines.inputs import process, prompt_lengths
from verl.engines.pretrained import load_processor
from verl.protocol import Outline, Reward, Rollout
from verl.ray import placement
from verl.trainer.main import main
from verl.trainer.metrics import readable
from verl.trainer.prompts import choose, open_prompts
from verl.workers import checkpoint


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    write_tiny_policy(folder, seed=0)
    return folder


@pytest.fixture
def config(policy, tmp_path):
    """Makes the configuration of a run on films."""

    def made(*more: str):
        return configuration.load([*settings(policy, tmp_path), "data.name=toy_sentences:open_films", *more])

    return made


def outlines(*rows: str) -> list[Outline]:
    """Makes outlines from ``group kind`` rows."""
    return [Outline(str(i), *row.split(), [], ()) for i, row in enumerate(rows)]


class TestChoice:
    def test_every_video_before_a_second_expression_of_one(self):
        rows = outlines(*(f"{video} x" for video in "aaaaaaaabbbc"))
        groups = [rows[i].group for i in choose(rows, 3, seed=1)]
        assert sorted(groups) == ["a", "b", "c"]
        assert sorted(rows[i].group for i in choose(rows, 5, seed=1)) == ["a", "a", "b", "b", "c"]
        assert sorted(rows[i].group for i in choose(rows, 8, seed=1)) == [*"aaaa", *"bbb", "c"]
        assert choose(rows, 99, seed=1) == list(range(12))

    def test_kinds_are_as_many_as_they_can_be(self):
        """Two videos have one kind each; the others give what is rarer."""
        rows = outlines("a ref", "a ref", "b ref", "c ref", "c why", "d ref", "d why", "e ref", "e why")
        kinds = [rows[i].kind for i in choose(rows, 5, seed=3)]
        assert kinds.count("why") == 3

    def test_the_seed_decides_and_nothing_else(self):
        rows = outlines(*(f"{video} x" for video in range(40)))
        drawn = {seed: choose(rows, 8, seed=seed) for seed in range(4)}
        assert choose(rows, 8, seed=2) == drawn[2] == sorted(drawn[2])
        assert len({tuple(one) for one in drawn.values()}) == 4
        assert drawn[0] != list(range(8))

    def test_a_video_with_many_expressions_is_no_likelier(self):
        rows = outlines(*["long x"] * 97, "a x", "b x", "c x")
        alone = [rows[choose(rows, 1, seed=seed)[0]].group for seed in range(60)]
        assert alone.count("long") < 30


class TestLength:
    def test_it_is_known_without_pictures(self, policy, config):
        processor = load_processor(policy)
        films = open_prompts(config("data.train_files=4/50")).train.dataset
        told = [films.outline(i) for i in range(len(films))]
        known = prompt_lengths([(one.messages, one.image_sizes) for one in told], processor)
        assert known == [len(process(films.get(i, epoch=0), processor, max_length=999)) for i in range(len(films))]
        assert known[0] > known[1] + 40

    def test_what_may_be_too_long_is_left_out_and_counted(self, config, tmp_path):
        chosen = open_prompts(config("data.train_files=4/50", "data.max_prompt_length=40"))
        assert len(chosen.train) == 11
        assert [chosen.train.get(i, epoch=0).target for i in range(11)] == list(range(1, 12))
        assert chosen.metrics() == {"data/overlong": 1.0}
        assert chosen.notes[0] == "every film is short"
        assert "1 of 12 training prompts may be longer than data.max_prompt_length=40" in chosen.notes[1]
        assert "(the longest, 0/0: " in chosen.notes[1]
        chosen.record(tmp_path)
        assert json.loads((tmp_path / "data.json").read_text())["train"] == {"prompts": 11, "overlong": 1}

    def test_or_the_run_does_not_start(self, config):
        refused = config("data.train_files=4/50", "data.max_prompt_length=40", "data.filter_overlong_prompts=false")
        with pytest.raises(ConfigError, match=r"1 of 12 training prompts .*data\.filter_overlong_prompts=true"):
            open_prompts(refused)

    def test_all_too_long_is_one_line_before_ray(self, policy, tmp_path):
        """The command of cases/overlong_prompt, on a task of the tests."""
        line = [sys.executable, "-m", "verl.trainer.main", *settings(policy, tmp_path / "run")]
        more = ["data.name=toy_sentences:open_films", "data.train_files=4", "data.max_prompt_length=5"]
        env = {**environment(), "RAY_ADDRESS": "nowhere:1"}
        done = subprocess.run([*line, *more], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "error: 12 of 12 training prompts" in done.stderr
        assert "so none is left: show fewer or smaller images" in done.stderr
        assert not (tmp_path / "run" / "config.yaml").exists()

    def test_a_task_that_cannot_tell_beforehand_is_told_in_one_line_later(self, policy, config):
        prompt = open_prompts(config("data.train_files=4")).train.get(0, epoch=0)
        with pytest.raises(ConfigError, match=r"0/0: the prompt has \d+ tokens, data\.max_prompt_length is 5"):
            process(prompt, load_processor(policy), max_length=5)

    def test_validation_prompts_are_checked_too(self, config):
        chosen = open_prompts(config("data.train_files=4", "data.val_files=2/50", "data.max_prompt_length=40",
                                     "trainer.val_freq=1"))  # fmt: skip
        assert (len(chosen.train), len(chosen.held_out)) == (12, 5)
        assert chosen.overlong == {"train": 0, "val": 1}


class TestValidation:
    def test_its_keys_are_kept_and_the_same_after_a_resume(self, config, tmp_path, monkeypatch):
        validating = config("data.train_files=4", "data.val_limit=4", "trainer.val_freq=1")
        chosen = open_prompts(validating)
        chosen.record(tmp_path)
        keys = (tmp_path / "val_keys.txt").read_text().split()
        assert sorted(key[0] for key in keys) == ["0", "1", "2", "3"]
        assert keys == [chosen.held_out.get(i, epoch=0).uid for i in range(4)]
        monkeypatch.setattr(checkpoint, "latest", lambda folder: tmp_path / "step_000001")
        assert open_prompts(validating).held_out.keys == keys
        for other in ("data.seed=7", "data.val_limit=5"):
            with pytest.raises(ConfigError, match=r"val_keys\.txt: .*these 4 samples.*accept_changes"):
                open_prompts(config("data.train_files=4", "data.val_limit=4", "trainer.val_freq=1", other))
        accepted = config("data.train_files=4", "data.val_limit=5", "trainer.val_freq=1",
                          "trainer.accept_changes=[data.val_limit]")  # fmt: skip
        changed = open_prompts(accepted)
        assert "do not compare with those before" in changed.notes[-1]
        assert changed.validation_hash() != chosen.validation_hash() == open_prompts(validating).validation_hash()
        changed.record(tmp_path)
        assert (tmp_path / "val_keys.before.txt").read_text().split() == keys
        assert (tmp_path / "val_keys.txt").read_text().split() == changed.held_out.keys

    def test_without_validation_nothing_is_chosen(self, config, tmp_path):
        chosen = open_prompts(config("data.train_files=4"))
        chosen.record(tmp_path)
        assert chosen.held_out is None
        assert chosen.validation_hash() is None
        assert not (tmp_path / "val_keys.txt").exists()

    def test_a_task_without_outlines_is_drawn_by_seed(self, policy, tmp_path):
        arguments = [*settings(policy, tmp_path), "trainer.val_freq=1", "data.val_limit=4"]
        drawn = [open_prompts(configuration.load([*arguments, f"data.seed={s}"])).held_out.numbers for s in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert len(set(drawn[0])) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("data.name=toy_sentences:open_film", r"data\.name=toy_sentences:open_film: .*did you mean open_films\?"),
        ("data.train_files=many", r"data\.train_files=many: expected the number of films"),
        ("data.train_files=1", r"data\.rollout_batch_size=4: there are only 3 prompts"),
        ("worker.reward.compute_score=toy_sentences:Fuzzy", r"worker\.reward\.compute_score=.*did you mean Fussy\?"),
        ("worker.reward.compute_score=toy_sentences:Fussy", r"worker\.reward\.options\.longest is not set"),
    ],
)
def test_what_stops_a_run_before_ray(policy, tmp_path, monkeypatch, wrong, message):
    monkeypatch.setattr(placement, "connect", lambda **_: pytest.fail("Ray was started"))
    films = ["data.name=toy_sentences:open_films", "data.train_files=4"]
    with pytest.raises(ConfigError, match=message) as caught:
        main([*settings(policy, tmp_path), *films, wrong])
    assert "\n" not in str(caught.value)


def test_a_rollout_says_what_was_asked():
    text = readable(Rollout("a", 0, "hi", 10, 2, True), Reward(0.25, {"format": 0.25}), note="asked: where\ntruth: 2")
    assert text == "== a #0: 0.250 (format 0.250); no problem; 2 tokens\nasked: where\ntruth: 2\nhi\n"
    hostile = readable(Rollout("a", 0, "猫\x1b[2J\ud800", 10, 2, True), Reward(0.25, {}))
    assert hostile.splitlines()[1] == "猫\\x1b[2J\\ud800"


def environment() -> dict[str, str]:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
