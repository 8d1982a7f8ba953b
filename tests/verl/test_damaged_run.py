"""A damaged last checkpoint, or one that was being replaced when the run was killed, is reported before the start."""

from __future__ import annotations

import shutil

import actor_cases as cases
import pytest

from verl import config as configuration
from verl.trainer import main, run_folder
from verl.workers import checkpoint


def settings(folder):
    return [
        "data.name=toy_task:open_squares",
        "data.train_files=unused",
        "data.rollout_batch_size=4",
        f"worker.actor.model.model_path={folder / 'policy'}",
        "worker.actor.global_batch_size=4",
        "worker.reward.compute_score=toy_task:Letters",
        "trainer.n_gpus_per_node=1",
        "trainer.total_episodes=5",
        f"trainer.save_checkpoint_path={folder / 'run'}",
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("damaged")
    cases.write_policy(folder / "policy")
    config = configuration.load(settings(folder))
    with cases.group(folder):
        actor = cases.open_actor(folder / "policy")
        for step in (1, 2):
            where = {"step": step, "best": None, "best_step": None}
            progress = run_folder.progress(config, {}, None, **where)
            checkpoint.save(checkpoint.step_folder(folder / "run", step), actor, progress)
    return folder


@pytest.fixture
def folder(saved):
    """The same, given back as it was."""
    shutil.copytree(saved / "run", saved / "kept")
    yield saved
    shutil.rmtree(saved / "run")
    (saved / "kept").rename(saved / "run")


@pytest.fixture
def started(monkeypatch):
    """Records attempts to start Ray, which come after the last check."""
    reached = []

    def connect(**_):
        reached.append(True)
        raise InterruptedError

    monkeypatch.setattr("verl.ray.placement.connect", connect)
    return reached


@pytest.mark.parametrize("name", ["complete.json", ".metadata", "__0_0.distcp", "rng_0.pt"])
def test_going_on_names_the_damaged_file_and_the_last_whole_checkpoint(folder, started, name):
    path = folder / "run" / "step_000002" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(configuration.ConfigError, match=rf"{name} is not as it was written") as caught:
        main.main(settings(folder))
    assert f"the last whole checkpoint is {folder / 'run' / 'step_000001'}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not started
    shutil.move(folder / "run" / "step_000002", folder / "away")
    with pytest.raises(InterruptedError):  # as advised: it goes on from step 1
        main.main(settings(folder))
    assert started
    shutil.rmtree(folder / "away")


def test_whole_checkpoints_pass(folder, started):
    with pytest.raises(InterruptedError):
        main.main(settings(folder))


def test_a_replacement_that_was_cut_off_is_undone_first(folder, started):
    (folder / "run" / "step_000002").rename(folder / "run" / "step_000002.earlier")
    (folder / "run" / "step_000002.partial").mkdir()
    with pytest.raises(InterruptedError):
        main.main(settings(folder))
    assert sorted(path.name for path in (folder / "run").glob("step_*")) == ["step_000001", "step_000002"]
    assert run_folder.find_past(configuration.load(settings(folder))).name == "step_000002"
