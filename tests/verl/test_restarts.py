"""Restarts of a run: their conditions, checkpoints and error messages, with a trainer that fails on demand."""

from __future__ import annotations

import json

import pytest

from verl.config import Config, ConfigError
from verl.ray import NoRoom, WorkerLost
from verl.trainer import main as command
from verl.trainer import ray_trainer


def lose(when):
    return WorkerLost(1, when, "the node died")


@pytest.fixture
def config(tmp_path):
    config = Config()
    config.trainer.save_checkpoint_path = str(tmp_path)
    return config


def save(root, step):
    folder = root / f"step_{step:06d}"
    folder.mkdir(parents=True)
    (folder / "complete.json").write_text(json.dumps({"progress": {"step": step}}))
    return folder


@pytest.fixture
def attempts(monkeypatch):
    """Give it what each attempt does; it gives back what each was asked: (where to resume, apart)."""

    def order(*deeds):
        asked = []

        class Trainer:
            def __init__(self, config, *, apart):
                asked.append((config.trainer.resume, apart))
                self.deed = deeds[len(asked) - 1]
                if self.deed.get("start"):
                    raise self.deed["start"]

            def fit(self):
                self.deed.get("save", lambda: None)()
                if self.deed.get("fit"):
                    raise self.deed["fit"]

            def close(self):
                pass

        monkeypatch.setattr(ray_trainer, "RayTrainer", Trainer)
        return asked

    return order


def test_a_rank_lost_while_the_run_starts_is_a_restart_too(config, attempts):
    asked = attempts({"start": lose("its start")}, {"start": lose("Worker()")}, {})
    command.run(config)
    assert asked == [("auto", True), ("auto", False), ("auto", False)]


def test_too_many_losses_end_the_run(config, attempts):
    config.trainer.max_restarts = 1
    attempts({"fit": lose("generate")}, {"fit": lose("update")})
    with pytest.raises(WorkerLost, match="in update"):
        command.run(config)


def test_a_run_from_another_checkpoint_goes_on_from_its_own_once_it_has_one(config, attempts, tmp_path):
    elsewhere = str(save(tmp_path / "other", 50))
    config.trainer.resume = elsewhere
    asked = attempts(
        {"fit": lose("generate")}, {"save": lambda: save(tmp_path, 60), "fit": lose("generate")}, {}
    )  # fmt: skip
    command.run(config)
    assert [resume for resume, _ in asked] == [elsewhere, elsewhere, "auto"]


def test_no_room_after_a_loss_names_the_loss(config, attempts):
    attempts({"fit": lose("update")}, {"start": NoRoom("no room for 2 rank(s)")})
    with pytest.raises(NoRoom, match=r"no room for 2 rank\(s\)\nIt was needed because rank 1 was lost in update"):
        command.run(config)
    attempts({"start": NoRoom("no room for 2 node(s)")})
    with pytest.raises(NoRoom, match=r"node\(s\)$"):
        command.run(config)


def test_checkpoints_of_another_history_are_not_mixed_in(config, attempts, tmp_path):
    first, second = save(tmp_path, 10), save(tmp_path, 20)
    asked = attempts({})
    for resume in ("never", str(first), str(save(tmp_path / "other", 5))):
        config.trainer.resume = resume
        with pytest.raises(ConfigError, match="holds step_000020, which is not a checkpoint of this run"):
            command.run(config)
    config.trainer.resume = str(second)
    command.run(config)
    assert asked == [(str(second), True)]
