"""Checkpoints: saved on two ranks and read on one or two, complete or not there."""

from __future__ import annotations

import errno
import resource

import actor_cases as cases
import pytest
import torch

from verl.workers import checkpoint


def save_and_go_on(rank, folder):
    """Update, save, update; then load the checkpoint into a new actor and do the second update again; then fail to
    save, for rank 1 has no room."""
    policy, root = folder / "policy", folder / "run"
    rows = cases.six_rollouts(policy)
    mine = rows.select(range(4) if rank == 0 else range(4, 6))
    actor = cases.open_actor(policy, total_steps=10)
    actor.update(mine)
    torch.manual_seed(rank)
    checkpoint.save(checkpoint.step_folder(root, 1), actor, {"step": 1, "seen": ["a", 2]})
    found = {"next": going_on(actor, mine)}
    resumed = cases.open_actor(policy, total_steps=10)
    found["progress"] = checkpoint.load(checkpoint.latest(root), resumed)
    found["resumed"] = going_on(resumed, mine)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        checkpoint.save(checkpoint.step_folder(root, 2), actor, {"step": 2})
    except checkpoint.CheckpointError as error:
        found["failure"] = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    checkpoint.save(checkpoint.step_folder(folder / "lora", 3), cases.open_actor(policy, rank=4), {"step": 3})
    return found


def going_on(actor, rows):
    return {"drawn": torch.rand(3), "stats": actor.update(rows), "weights": cases.weights(actor)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    cases.write_policy(folder / "policy")
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    return cases.on_two_ranks(save_and_go_on, folder)


@pytest.fixture(scope="module")
def alone(folder, ranks):
    """The folder, within a group of one."""
    with cases.group(folder):
        yield folder


def test_resumed_on_two_ranks_is_the_same_to_the_bit(ranks):
    for rank in ranks:
        went_on, resumed = rank["next"], rank["resumed"]
        assert rank["progress"] == {"step": 1, "seen": ["a", 2]}
        assert resumed["stats"] == went_on["stats"]
        assert cases.largest_gap(resumed["weights"], went_on["weights"]) == 0
        assert torch.equal(resumed["drawn"], went_on["drawn"])
    assert not torch.equal(ranks[0]["next"]["drawn"], ranks[1]["next"]["drawn"])


def test_saved_on_two_ranks_resumed_on_one(ranks, alone):
    actor = cases.open_actor(alone / "policy", total_steps=10)
    progress = checkpoint.load(alone / "run" / "step_000001", actor)
    assert progress["step"] == 1
    assert actor.scheduler.last_epoch == 1
    stats = actor.update(cases.six_rollouts(alone / "policy"))
    assert stats == pytest.approx(ranks[0]["next"]["stats"], rel=1e-5, abs=1e-5)
    assert cases.largest_gap(cases.weights(actor), ranks[0]["next"]["weights"]) < 1e-5


def test_a_full_disk_leaves_the_last_one(ranks, folder):
    for rank in ranks:
        assert "step_000002 could not be written (rank 1: " in rank["failure"]
        assert rank["failure"].endswith(f"the last complete one is {folder / 'run' / 'step_000001'}")
    assert checkpoint.latest(folder / "run") == folder / "run" / "step_000001"
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["step_000001"]


def test_a_disk_that_fills_at_the_end(alone, monkeypatch, tmp_path):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_finish", no_room)
    actor = cases.open_actor(alone / "policy")
    with pytest.raises(checkpoint.CheckpointError, match=r"No space left on device; .* free there\); there is none"):
        checkpoint.save(tmp_path / "step_000001", actor, {})
    assert list(tmp_path.iterdir()) == []


def test_only_the_adapter_is_stored(ranks, alone):
    weights = checkpoint.read_weights(alone / "lora" / "step_000003")
    actor = cases.open_actor(alone / "policy", rank=4)
    assert weights.keys() == actor.trained.keys()
    assert all("lora_" in name for name in weights)
    before = actor.logprobs(rows := cases.six_rollouts(alone / "policy"))
    for parameter in actor.trained.values():
        parameter.detach().to_local().zero_()
    checkpoint.load(alone / "lora" / "step_000003", actor)
    assert torch.equal(actor.logprobs(rows), before)
    assert not actor.optimizer.state  # saved before its first step


def test_another_kind_of_training_is_refused(ranks, alone):
    with pytest.raises(ValueError, match="LoRA and freezing must be as they were"):
        checkpoint.load(alone / "lora" / "step_000003", cases.open_actor(alone / "policy"))


def test_saving_a_step_again_replaces_it(alone, tmp_path):
    actor = cases.open_actor(alone / "policy", rank=4)
    for number in (1, 2):
        checkpoint.save(tmp_path / "step_000005", actor, {"number": number})
    assert checkpoint.read(tmp_path / "step_000005")["progress"] == {"number": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["step_000005"]


@pytest.fixture
def five(tmp_path):
    """Folders of five finished steps, and of one that was being written when the run was killed."""
    for step in (2, 4, 6, 8, 10):
        folder = checkpoint.step_folder(tmp_path, step)
        folder.mkdir()
        (folder / checkpoint.COMPLETE).write_text("{}")
    cut_off = tmp_path / "step_000012.partial"
    cut_off.mkdir()
    (cut_off / checkpoint.COMPLETE).write_text("{}")
    (tmp_path / "step_000014").mkdir()
    return tmp_path


def test_only_complete_folders_count(five, tmp_path):
    assert checkpoint.latest(five) == five / "step_000010"
    assert checkpoint.latest(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match=r"no complete\.json"):
        checkpoint.read(five / "step_000014")


def test_the_last_and_the_best_are_kept(five):
    checkpoint.prune(five, keep_last=2, keep=[five / "step_000004"])
    assert [path.name for path in checkpoint.complete(five)] == ["step_000004", "step_000008", "step_000010"]
