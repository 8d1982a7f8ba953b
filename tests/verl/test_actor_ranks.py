"""Two ranks, or one: the same losses, gradients and weights."""

from __future__ import annotations

import actor_cases as cases
import pytest
import torch

from verl.protocol import Batch

KINDS = {
    "full": {},
    "by tokens": {"max_tokens_per_micro_batch": 60},
    "checkpointed": {"checkpointing": True, "frozen": True, "loss_agg_mode": "seq-mean-token-mean"},
    "lora": {"rank": 4, "checkpointing": True},
    "tied": {"tied": True},
    "shared prompts": {"micro_batch_size_per_device_for_update": 6, "micro_batch_size_per_device_for_experience": 6},
}


def open_kind(folder, kind):
    fields = dict(KINDS[kind])
    return cases.open_actor(folder / ("tied" if fields.pop("tied", False) else "policy"), **fields)


def two_updates(actor, batch):
    return [actor.update(batch) for _ in range(2)]


def both(rank, folder):
    """Four rows on rank 0, two without images on rank 1; then none on rank 1; then a NaN on rank 1."""
    policy = folder / "policy"
    rows = cases.six_rollouts(policy)
    mine = rows.select(range(4) if rank == 0 else range(4, 6))
    found = {}
    for kind in KINDS:
        actor = open_kind(folder, kind)
        scores = actor.logprobs(mine)
        found[kind] = {"scores": scores, "stats": two_updates(actor, mine), "weights": cases.weights(actor)}
    actor = cases.open_actor(policy)
    few = rows.select(range(4)) if rank == 0 else Batch()
    shape = actor.logprobs(few).shape
    found["idle"] = {"shape": shape, "stats": two_updates(actor, few), "weights": cases.weights(actor)}
    found["poisoned"] = poisoned(actor, mine, rank)
    return found


def poisoned(actor, mine, rank):
    """An update with a NaN advantage on rank 1: weights and moments before and after."""

    def moments():
        states = [actor.optimizer.state[parameter] for parameter in actor.trained.values()]
        return [value.clone() if value.dim() == 0 else value.to_local().clone() for s in states for value in s.values()]

    bad = mine.with_tensors(advantages=mine["advantages"] * float("nan")) if rank == 1 else mine
    before = cases.weights(actor), moments(), actor.scheduler.last_epoch
    stats = actor.update(bad)
    after = cases.weights(actor), moments(), actor.scheduler.last_epoch
    return {
        "stats": stats,
        "weights": cases.largest_gap(before[0], after[0]),
        "moments": all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True)),
        "schedule": before[2] == after[2],
        "next": actor.update(mine)["skipped"],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    cases.write_policy(folder / "policy")
    cases.write_policy(folder / "tied", tied=True)
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    return cases.on_two_ranks(both, folder)


@pytest.fixture(scope="module")
def alone(folder, ranks):
    """The folder, within a group of one."""
    with cases.group(folder):
        yield folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_are_one(ranks, alone, kind):
    rows = cases.six_rollouts(alone / "policy")
    actor = open_kind(alone, kind)
    scores = torch.cat([rank[kind]["scores"] for rank in ranks])
    torch.testing.assert_close(actor.logprobs(rows), scores, atol=1e-5, rtol=0)
    for number, stats in enumerate(two_updates(actor, rows)):
        for rank in ranks:
            assert rank[kind]["stats"][number] == pytest.approx(stats, rel=1e-5, abs=1e-5)
    for rank in ranks:
        assert cases.largest_gap(rank[kind]["weights"], cases.weights(actor)) < 1e-5


def test_a_rank_without_rows_keeps_in_step(ranks, alone):
    rows = cases.six_rollouts(alone / "policy").select(range(4))
    actor = cases.open_actor(alone / "policy")
    stats = two_updates(actor, rows)
    for rank in ranks:
        assert rank["idle"]["stats"][1] == pytest.approx(stats[1], rel=1e-5, abs=1e-5)
        assert cases.largest_gap(rank["idle"]["weights"], cases.weights(actor)) < 1e-5
    assert [tuple(rank["idle"]["shape"]) for rank in ranks] == [(4, 7), (0, 0)]


def test_a_nan_on_one_rank_skips_the_step_on_both(ranks):
    for rank in ranks:
        found = rank["poisoned"]
        assert found["stats"]["skipped"] == 1
        assert (found["weights"], found["moments"], found["schedule"]) == (0, True, True)
        assert found["next"] == 0
