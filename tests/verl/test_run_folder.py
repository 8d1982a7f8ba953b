"""A run's folder: one run at a time, what it may go on from and with which configuration, and what is kept of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from grpo_reward.options import DataOptions, RewardOptions
from verl import config as configuration
from verl.config import Config, ConfigError, WorkerConfig, flatten
from verl.trainer import run_folder
from verl.trainer.run_folder import (
    MAY_CHANGE,
    Best,
    Past,
    best_so_far,
    check_config,
    check_inputs,
    find_inputs,
    find_past,
    keep_config,
)
from verl.workers import checkpoint


def of_the_task():
    """The defaults of a run on the project's own task: with the keys that its plug-ins bring."""
    return Config(data=DataOptions(), worker=WorkerConfig(reward=RewardOptions()))


@pytest.fixture
def config(tmp_path):
    config = of_the_task()
    config.trainer.save_checkpoint_path = str(tmp_path / "run")
    return config


def save(root, step, **progress):
    folder = root / f"step_{step:06d}"
    folder.mkdir(parents=True)
    facts = {"progress": {"step": step, **progress}, "schedule": {}, "model": {}, "ranks": 1}
    (folder / "complete.json").write_text(json.dumps(facts))
    return folder


def past_of(folder, config, inputs=None):
    """The checkpoint that a run of this configuration leaves."""
    saved = save(folder, 1, best=None, best_step=None, **run_folder.progress(config, inputs or {}, None))
    return run_folder.read_past(config, saved)


class TestLock:
    def test_a_second_run_is_refused_until_the_first_is_over(self, tmp_path):
        with run_folder.locked(tmp_path):
            with pytest.raises(ConfigError, match="another run is writing here"), run_folder.locked(tmp_path):
                pass
            code = "import sys, pathlib, verl.trainer.run_folder as r; r.locked(pathlib.Path(sys.argv[1])).__enter__()"
            done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
            assert "another run is writing here" in done.stderr
        with run_folder.locked(tmp_path):
            pass

    def test_where_there_are_no_locks_it_is_said_how_to_go_on(self, tmp_path, monkeypatch):
        def unsupported(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(run_folder.fcntl, "flock", unsupported)
        with pytest.raises(ConfigError, match=r"no locks.*VEASON_NO_LOCKS=1"), run_folder.locked(tmp_path):
            pass
        monkeypatch.setenv("VEASON_NO_LOCKS", "1")
        with run_folder.locked(tmp_path):
            pass

    @pytest.mark.parametrize("path", ["/proc/run", "file/run"])
    def test_a_folder_that_cannot_be_made_is_one_line(self, tmp_path, path):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"save_checkpoint_path=.*; give a folder to write to$"):
            run_folder.locked(tmp_path / path).__enter__()


class TestFindPast:
    def test_auto_takes_the_last_and_never_takes_none(self, config, tmp_path):
        assert find_past(config) is None
        save(tmp_path / "run", 1)
        last = save(tmp_path / "run", 2)
        assert find_past(config) == last
        config.trainer.resume = "never"
        with pytest.raises(ConfigError, match="holds step_000002, which is not a checkpoint of this run"):
            find_past(config)

    def test_a_run_that_begins_at_a_checkpoint_can_be_requeued(self, config, tmp_path):
        start = save(tmp_path / "other", 5)
        config.trainer.resume = str(start)
        assert find_past(config) == start
        first = run_folder.read_past(config, start)
        assert not first.own
        own = save(tmp_path / "run", 6, **run_folder.progress(config, {}, first))
        assert find_past(config) == own  # the same command again
        again = run_folder.read_past(config, own)
        assert again.own
        later = save(tmp_path / "run", 7, **run_folder.progress(config, {}, again))
        (start / "complete.json").unlink()  # gone by now, and not needed
        assert find_past(config) == later
        config.trainer.resume = "auto"
        assert run_folder.progress(config, {}, run_folder.read_past(config, later))["from"] == str(start)

    def test_a_run_that_goes_back_to_one_of_its_own_checkpoints_can_be_requeued(self, config, tmp_path):
        start = save(tmp_path / "run", 5)
        after = save(tmp_path / "run", 6)
        config.trainer.resume = str(start)
        with pytest.raises(ConfigError, match="holds step_000006"):
            find_past(config)
        after.rename(tmp_path / "moved")
        assert find_past(config) == start
        progress = run_folder.progress(config, {}, run_folder.read_past(config, start))
        assert save(tmp_path / "run", 6, **progress) == find_past(config)

    @pytest.mark.parametrize("name", ["step_000001_2", "step_000001_old", "step_000001.old", "step_final"])
    def test_a_copy_under_another_name_is_none_of_the_runs_checkpoints(self, config, tmp_path, name):
        first, last = (save(tmp_path / "run", step) for step in (1, 2))
        shutil.copytree(first, tmp_path / "run" / name)  # step_000001_2 was taken for step 12
        assert checkpoint.complete(tmp_path / "run") == [first, last]
        assert find_past(config) == last
        checkpoint.prune(tmp_path / "run", keep_last=1)
        assert (tmp_path / "run" / name / "complete.json").exists()

    @pytest.mark.parametrize("text", ["", "null", "{}", '{"progress": []}', '{"progress": {}}', "[" * 100_000, "\x00"])
    def test_a_marker_that_holds_something_else_is_one_line(self, config, tmp_path, text):
        folder = save(tmp_path / "run", 1)
        (folder / "complete.json").write_text(text)
        with pytest.raises(ConfigError, match=r"complete\.json.* (cannot be read|is not as it was).* move .* away"):
            run_folder.read_past(config, find_past(config))

    def test_what_is_no_checkpoint_is_refused(self, config, tmp_path):
        config.trainer.resume = str(tmp_path / "gone")
        with pytest.raises(ConfigError, match=r"no complete checkpoint .* give auto, never or"):
            find_past(config)
        save(tmp_path / "other", 5)
        config.trainer.resume = str(tmp_path / "other")
        with pytest.raises(ConfigError, match=r"no complete checkpoint .* its last one is .*step_000005"):
            find_past(config)


OTHER = {str: "other", int: 7, float: 0.123, bool: None, list: ["x"], dict: {"x": 1.0}, type(None): 3}


def changed(config, key):
    """The same configuration with another value of one key."""
    value = configuration.get(config, key)
    other = not value if isinstance(value, bool) else OTHER[list if isinstance(value, tuple) else type(value)]
    section, _, name = key.rpartition(".")
    copy = configuration.defaults(config)
    setattr(configuration.get(copy, section), name, other)
    return copy


class TestChanges:
    @pytest.mark.parametrize("key", flatten(of_the_task()))
    def test_every_key_may_change_or_is_refused_by_name(self, tmp_path, key):
        """And what may not change may be accepted by name."""
        before = of_the_task()
        past = past_of(tmp_path, before)
        assert check_config(before, past) == []
        after = changed(before, key)
        if key in MAY_CHANGE:
            assert [line.split()[0] for line in check_config(after, past)] == [key]
            return
        with pytest.raises(ConfigError, match=rf"with other settings: {key} was .* is .*accept_changes=\[{key}\]"):
            check_config(after, past)
        after.trainer.accept_changes = [key]
        assert [line.split()[0] for line in check_config(after, past)] == [key, "trainer.accept_changes"]

    def test_the_keys_that_may_change_exist(self):
        assert flatten(Config()).keys() >= MAY_CHANGE

    def test_all_differences_are_told_at_once(self, tmp_path, config):
        past = past_of(tmp_path, config)
        config.data.seed, config.worker.rollout.n = 1, 4
        with pytest.raises(ConfigError, match=r"data\.seed was 42, is 1; worker\.rollout\.n was 8, is 4\. Restore"):
            check_config(config, past)

    def test_a_key_that_is_newer_than_the_checkpoint_had_its_default(self, tmp_path, config):
        past = past_of(tmp_path, config)
        del past.progress["config"]["data.seed"]
        assert check_config(config, past) == []
        config.data.seed = 1
        with pytest.raises(ConfigError, match="seed was 42"):
            check_config(config, past)

    def test_a_checkpoint_that_says_nothing_is_taken_as_it_is_and_that_is_told(self, config, tmp_path):
        (line,) = check_config(config, Past(tmp_path, True, {"step": 1}))
        assert "does not say what it was trained with" in line


class Task:
    def __init__(self, **prints):
        self.fingerprint = lambda: prints


class TestInputs:
    def test_other_contents_under_the_same_name_are_refused(self, config, tmp_path):
        model, listed = tmp_path / "model", tmp_path / "exclude.txt"
        model.mkdir()
        (model / "model.safetensors").write_bytes(b"a" * 3_000_000)
        listed.write_text("a\n")
        config.worker.actor.model.model_path, config.data.exclude = str(model), str(listed)
        tasks = {"data.train_files": Task(masks="1"), "data.val_files": None}
        inputs = find_inputs(config, tasks)
        assert set(inputs) == {"worker.actor.model.model_path", "data.exclude", "data.train_files"}
        past = past_of(tmp_path / "run", config, inputs)
        (model / "notes").write_text("no file of a policy")
        assert check_inputs(config, past, find_inputs(config, tasks)) == []

        with open(model / "model.safetensors", "r+b") as file:
            file.seek(-1, 2)
            file.write(b"b")
        with pytest.raises(ConfigError, match=r"model_path names other contents: model\.safetensors\..*accept_changes"):
            check_inputs(config, past, find_inputs(config, tasks))
        config.trainer.accept_changes = ["worker.actor.model.model_path"]
        assert len(check_inputs(config, past, find_inputs(config, tasks))) == 1
        listed.write_text("b\n")
        with pytest.raises(ConfigError, match=r"data\.exclude names other contents: exclude\.txt"):
            check_inputs(config, past, find_inputs(config, tasks))
        tasks["data.train_files"] = Task(masks="2", meta="1")
        config.trainer.accept_changes = ["worker.actor.model.model_path", "data.exclude"]
        with pytest.raises(ConfigError, match=r"data\.train_files names other contents: masks, meta"):
            check_inputs(config, past, find_inputs(config, tasks))

    def test_a_copy_of_the_same_weights_is_the_same(self, config, tmp_path):
        prints = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.safetensors").write_bytes(bytes(range(256)) * 9000)
            config.worker.actor.model.model_path = str(tmp_path / name)
            prints.append(find_inputs(config, {}))
        assert prints[0] == prints[1]

    def test_a_task_without_prints_and_a_model_of_a_hub_are_not_compared(self, config):
        config.worker.actor.model.model_path = "someone/a-model"
        assert find_inputs(config, {"data.train_files": object()}) == {}


class TestBest:
    @pytest.fixture
    def past(self, config, tmp_path):
        record = run_folder.progress(config, {}, None, **Best("keys of before", score=3.5, step=4).record())
        return run_folder.read_past(config, save(tmp_path / "run", 6, **record))

    def test_it_goes_on_with_the_run(self, past, caplog):
        caplog.set_level("INFO")
        assert best_so_far(past, "keys of before") == Best("keys of before", 3.5, 4)
        assert best_so_far(None, "keys") == Best("keys")
        assert caplog.messages == []

    def test_a_score_of_other_prompts_is_forgotten_in_one_line(self, past, caplog):
        caplog.set_level("INFO")
        assert best_so_far(past, "other keys") == Best("other keys", None, None)
        assert caplog.messages == [
            "the best step so far (4, validation reward 3.5000) is discarded: it was measured on other prompts"
        ]

    def test_a_run_that_does_not_validate_keeps_it_for_a_later_one(self, past):
        assert best_so_far(past, None) == Best("keys of before", 3.5, 4)

    def test_a_checkpoint_without_a_hash_is_taken_as_it_is(self, config, tmp_path):
        folder = save(tmp_path / "run", 2, best=1.0, best_step=2)
        assert best_so_far(run_folder.read_past(config, folder), "keys") == Best("keys", 1.0, 2)


class TestConfigurationKept:
    def test_the_one_in_force_and_each_before_it(self, tmp_path):
        first, second = Config(), Config()
        second.data.seed = 1
        for config in (first, first, second, first):
            keep_config(config, tmp_path)
        names = ("config_000.yaml", "config_001.yaml", "config.yaml")
        assert [configuration.load([f"config={tmp_path / name}"]) for name in names] == [first, second, first]
        assert len(list(tmp_path.iterdir())) == 3

    def test_a_restart_that_only_resumes_leaves_no_copy(self, tmp_path):
        config = Config()
        keep_config(config, tmp_path)
        keep_config(replace(config, trainer=replace(config.trainer, resume="never")), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
        assert configuration.load([f"config={tmp_path / 'config.yaml'}"]).trainer.resume == "never"
