"""The vLLM engine on two ranks: two models beside each other, and one model over both."""

from __future__ import annotations

import pytest
import torch
from actor_cases import on_two_ranks, open_actor, write_policy
from engine_cases import engine_of, some_prompts, words

from verl.engines.base import Sampling
from verl.workers.worker import logprob_gap

SAMPLING = Sampling(10, temperature=0.9)


@pytest.fixture
def folder(tmp_path):
    """The folder in which the ranks meet, with their policy."""
    write_policy(tmp_path / "policy")
    return tmp_path


def agree(rank, folder, *, size):
    """Sync, draw for this rank's prompts, which are three on rank 0 and none or one on rank 1, and step, twice."""
    from test_vllm_engine import shake

    policy = folder / "policy"
    actor = open_actor(policy, rank=4)
    engine = engine_of(policy, tensor_parallel_size=size)
    found = {"gaps": [], "stale": [], "words": []}
    for step, mine in enumerate([[3, 0], [3, 1]]):
        engine.sync_weights(actor.weights())
        found["stale"].append(engine.stale_weights())
        prompts = some_prompts(policy, 4)[3 * rank : 3 * rank + mine[rank]]
        replies = engine.generate(prompts, n=2, sampling=SAMPLING, seeds=[10 * step + i for i in range(len(prompts))])
        replies.lists["inputs"] = [prompt for prompt in prompts for _ in range(2)]
        replies = replies.with_tensors(old_logprobs=actor.logprobs(replies))
        found["gaps"].append(logprob_gap(replies)["max"])
        found["words"].append(words(replies))
        shake(actor)
    return found


def side_by_side(rank, folder):
    return agree(rank, folder, size=1)


def over_both(rank, folder):
    return agree(rank, folder, size=2)


def stale_over_both(rank, folder):
    """One rank's shard of one tensor is old: all ranks of a matrix that is cut by columns see it, as their sum is."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder / "policy", dtype=torch.float32)
    names = [
        "model.language_model.layers.1.self_attn.k_proj.weight",
        "model.language_model.layers.0.mlp.down_proj.weight",
    ]
    engine = engine_of(folder / "policy", tensor_parallel_size=2)
    load, old = engine._model.load_weights, model.state_dict()

    def load_old(stream):
        return load((name, old[name] if rank == 1 and name in names else tensor) for name, tensor in stream)

    engine._model.load_weights = load_old
    engine.sync_weights((name, tensor + 0.01) for name, tensor in old.items())
    return engine.stale_weights()


@pytest.mark.parametrize("scenario", [side_by_side, over_both])
def test_engine_and_actor_agree_after_every_sync(scenario, folder):
    first, second = on_two_ranks(scenario, folder, timeout_s=1200)
    assert first["stale"] == second["stale"] == [{}, {}]
    assert max(first["gaps"] + second["gaps"]) < 1e-4
    assert [len(replies) for replies in first["words"]] == [6, 6]
    assert [len(replies) for replies in second["words"]] == [0, 2]
    assert first["words"][0] != first["words"][1]


def test_a_stale_shard_is_named(folder):
    first, second = on_two_ranks(stale_over_both, folder, timeout_s=1200)
    assert first.keys() == {"model.language_model.layers.0.mlp.down_proj.weight"}
    assert second.keys() == {*first, "model.language_model.layers.1.self_attn.k_proj.weight"}
