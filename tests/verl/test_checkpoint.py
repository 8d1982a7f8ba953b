"""Checkpoints: saved on two ranks and read on one or two, complete or not there."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil

import actor_cases as cases
import pytest
import torch
import torch.distributed.checkpoint as dcp

from verl import export
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
    harmed = checkpoint.step_folder(folder / "harmed", 1)
    if rank == 0:
        shutil.copytree(checkpoint.step_folder(root, 1), harmed)
        flip(harmed / "__1_0.distcp", 1000, 3)
    torch.distributed.barrier()
    try:
        checkpoint.load(harmed, resumed)
    except checkpoint.Damaged as error:
        found["damage"] = str(error)
    return found


def flip(path, place, bit):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


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


def test_damage_stops_all_ranks_and_not_only_the_one_that_read_it(ranks, folder):
    told = (
        f"{folder / 'harmed' / 'step_000001'}: __1_0.distcp is not as it was written (its checksum differs); no other"
    )
    assert [rank["damage"].startswith(told) for rank in ranks] == [True, True]


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


# ---------------------------------------------------------------------------------------------------- damage


@pytest.fixture
def two(ranks, folder, tmp_path):
    """A run's folder with two whole checkpoints, the second of them to be harmed."""
    for step in (1, 2):
        shutil.copytree(folder / "run" / "step_000001", checkpoint.step_folder(tmp_path, step))
    return tmp_path


FILES = ("complete.json", ".metadata", "__0_0.distcp", "__1_0.distcp", "rng_0.pt", "rng_1.pt")


def test_every_file_has_a_checksum(two):
    facts = checkpoint.read(two / "step_000002")
    assert {*facts["files"], "complete.json"} == set(FILES) == {path.name for path in (two / "step_000002").iterdir()}
    checkpoint.verify(two / "step_000002")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_refused_with_the_file_and_the_last_whole_checkpoint(two, name):
    harmed = two / "step_000002"
    size = (harmed / name).stat().st_size
    whole = (harmed / name).read_bytes()
    for number in range(12):
        flip(harmed / name, number * (size - 1) // 11, number % 8)
        told = rf"step_000002: {name} is not as it was written.*; the last whole checkpoint is {two / 'step_000001'}; "
        with pytest.raises(checkpoint.Damaged, match=told):
            checkpoint.verify(harmed)
        (harmed / name).write_bytes(whole)
    checkpoint.verify(harmed)


def test_every_bit_of_the_marker_counts(two):
    marker = two / "step_000002" / "complete.json"
    whole = marker.read_bytes()
    for place in range(0, len(whole), 7):
        for bit in range(8):
            flip(marker, place, bit)
            with pytest.raises(checkpoint.Damaged, match=r"complete\.json is not as it was written"):
                checkpoint.read(two / "step_000002")
            marker.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_neither_loaded_nor_exported(two, alone, tmp_path, name, capsys):
    flip(two / "step_000002" / name, 100, 3)
    actor = cases.open_actor(alone / "policy", total_steps=10)
    before = cases.weights(actor)
    with pytest.raises(checkpoint.Damaged, match=name):
        checkpoint.load(two / "step_000002", actor)
    assert cases.largest_gap(cases.weights(actor), before) == 0
    assert not actor.optimizer.state
    assert export.main([str(two / "step_000002"), str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert name in told
    assert f"the last whole checkpoint is {two / 'step_000001'}" in told
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_was_just_verified_is_not_read_for_its_checksums_again(two, alone, monkeypatch):
    checkpoint.verify(two / "step_000002")
    monkeypatch.setattr(checkpoint, "_file_sum", lambda path: pytest.fail(f"{path} was read once more"))
    actor = cases.open_actor(alone / "policy", total_steps=10)
    assert checkpoint.load(two / "step_000002", actor, verified=True)["step"] == 1  # it is a copy


def test_a_missing_and_a_cut_file(two):
    (two / "step_000002" / "rng_1.pt").unlink()
    with pytest.raises(checkpoint.Damaged, match=r"rng_1\.pt is missing"):
        checkpoint.read(two / "step_000002")
    file = two / "step_000001" / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(checkpoint.Damaged, match=r"__0_0\.distcp has \d+ bytes, \d+ were written; no other checkpoint"):
        checkpoint.read(two / "step_000001")


def without_sums(folder):
    """The same checkpoint as it was written before there were checksums."""
    facts = json.loads((folder / "complete.json").read_text())
    (folder / "complete.json").write_text(json.dumps({name: facts[name] for name in checkpoint.WITHOUT_SUMS}))
    return folder


def test_an_old_checkpoint_is_read_and_it_is_said_that_damage_would_not_show(two, alone, caplog):
    old = without_sums(two / "step_000002")
    checkpoint.verify(old)
    assert f"{old} was written without checksums" in caplog.text
    assert checkpoint.load(old, cases.open_actor(alone / "policy", total_steps=10))["step"] == 1


class Payload:
    """Pickled, it runs code when it is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("how", ["alone", "within"])
def test_a_payload_in_the_metadata_does_not_run(two, alone, tmp_path, how):
    """In a checkpoint without checksums, or with ones that whoever wrote the payload made anew."""
    old, trace = without_sums(two / "step_000002"), tmp_path / "it_ran"
    payload = Payload(trace)
    if how == "within":
        metadata = dcp.FileSystemReader(old).read_metadata()
        metadata.planner_data = payload
        payload = metadata
    (old / ".metadata").write_bytes(pickle.dumps(payload))
    with pytest.raises(checkpoint.Damaged, match=r"it asks for posix\.mkdir, which is not admitted"):
        checkpoint.load(old, cases.open_actor(alone / "policy", total_steps=10))
    with pytest.raises(checkpoint.Damaged, match="not admitted"):
        checkpoint.read_weights(old)
    assert not trace.exists()


def test_metadata_that_has_bytes_unpickled_is_refused(two, tmp_path):
    """torch would read an entry that is no tensor with an unrestricted pickle."""
    old = without_sums(two / "step_000002")
    metadata = dcp.FileSystemReader(old).read_metadata()
    name = next(iter(metadata.state_dict_metadata))
    metadata.state_dict_metadata[name] = dcp.metadata.BytesStorageMetadata()
    (old / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(checkpoint.Damaged, match="names objects that are not tensors"):
        checkpoint.read_weights(old)


# ------------------------------------------------------------------------------------------ what was interrupted


def copied(two, name):
    shutil.copytree(two / "step_000001", two / name)
    return two / name


def test_what_an_interrupted_deletion_left_is_cleared_away(two):
    (copied(two, "step_000003") / "complete.json").unlink()
    copied(two, "step_000004.partial")
    copied(two, "step_000002.earlier")
    (copied(two, "step_000005") / "complete.json").unlink()
    (two / "step_000005" / "notes.txt").write_text("mine")
    (two / "step_by_step").mkdir()
    checkpoint.tidy(two)
    assert sorted(path.name for path in two.iterdir()) == ["step_000001", "step_000002", "step_000005", "step_by_step"]
    checkpoint.tidy(two / "nowhere")


def test_a_checkpoint_that_was_being_replaced_is_given_back_its_name(two):
    (two / "step_000002").rename(two / "step_000002.earlier")
    copied(two, "step_000002.partial")
    checkpoint.tidy(two)
    assert sorted(path.name for path in two.iterdir()) == ["step_000001", "step_000002"]
    checkpoint.verify(two / "step_000002")


def test_saving_clears_away_first(two, alone):
    (copied(two, "step_000003") / "complete.json").unlink()
    checkpoint.save(two / "step_000004", cases.open_actor(alone / "policy", rank=4), {})
    assert sorted(path.name for path in two.iterdir()) == ["step_000001", "step_000002", "step_000004"]


def test_how_the_policy_wants_to_be_asked_is_kept(alone, tmp_path):
    actor = cases.open_actor(alone / "policy", rank=4)
    checkpoint.save(tmp_path / "step_000001", actor, {}, asked={"frames": 4})
    assert checkpoint.read(tmp_path / "step_000001")["asked"] == {"frames": 4}
