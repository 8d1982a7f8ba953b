"""The actor on one rank: what it scores, what it learns, what it hands to an engine."""

from __future__ import annotations

import math

import actor_cases as cases
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from verl.config import LoraConfig, ModelConfig, OptimConfig
from verl.engines import pretrained
from verl.engines.inputs import collate
from verl.models import loading
from verl.protocol import Batch
from verl.utils import fsdp
from verl.workers.actor import LearningRate, lr_factor, updates_per_step


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("actor")
    with cases.group(folder):
        yield cases.write_policy(folder / "policy")


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return cases.write_policy(tmp_path_factory.mktemp("tied") / "policy", tied=True)


def plain_logprobs(model, batch, *, temperature):
    """Row by row, without padding, from all logits: (B, R)."""
    found = torch.zeros(batch["responses"].shape)
    for row, prompt in enumerate(batch["inputs"]):
        length = int(batch["response_mask"][row].sum())
        reply = batch["responses"][row : row + 1, :length]
        with torch.no_grad():
            logits = model(**collate([prompt], reply, torch.ones_like(reply), pad_id=0)).logits
        table = (logits[0, -length - 1 : -1] / temperature).log_softmax(-1)
        found[row, :length] = table.gather(1, reply[0, :, None])[:, 0]
    return found


@pytest.mark.parametrize("fields", [{}, {"micro_batch_size_per_device_for_experience": 4}, {"rank": 4}])
def test_logprobs_are_those_of_the_plain_model(policy, fields):
    batch = cases.six_rollouts(policy)
    actor = cases.open_actor(policy, **fields)
    wanted = plain_logprobs(pretrained.load_base(policy), batch, temperature=0.9)
    torch.testing.assert_close(actor.reference_logprobs(batch), wanted, atol=1e-5, rtol=0)
    if "rank" not in fields:
        torch.testing.assert_close(actor.logprobs(batch), wanted, atol=1e-5, rtol=0)


def test_the_adapter_counts_and_the_reference_does_without_it(policy):
    batch = cases.six_rollouts(policy)
    actor = cases.open_actor(policy, rank=4)
    before = actor.reference_logprobs(batch)
    assert (actor.logprobs(batch) - before).abs().max() > 1e-2
    actor.update(batch)
    assert torch.equal(actor.reference_logprobs(batch), before)


def test_full_training_leaves_the_reference_where_it_was(policy):
    batch = cases.six_rollouts(policy)
    actor = cases.open_actor(policy)
    before = actor.reference_logprobs(batch)
    actor.update(batch)
    assert torch.equal(actor.reference_logprobs(batch), before)
    assert (actor.logprobs(batch) - before).abs().max() > 1e-3


def test_without_kl_loss_there_is_no_reference(policy):
    actor = cases.open_actor(policy, use_kl_loss=False)
    with pytest.raises(ValueError, match="use_kl_loss is false"):
        actor.reference_logprobs(cases.six_rollouts(policy))


CUTS = {
    "all rows at once": {"micro_batch_size_per_device_for_update": 6},
    "four rows at a time": {"micro_batch_size_per_device_for_update": 4},
    "by tokens": {"max_tokens_per_micro_batch": 60},
    "all rows at once, prompts apart": {"micro_batch_size_per_device_for_update": 6, "share_prompts": False},
    "checkpointed": {"checkpointing": True},
}


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("cut", CUTS)
def test_updates_do_not_depend_on_the_cut(policy, mode, cut):
    batch = cases.six_rollouts(policy)
    one, other = (cases.open_actor(policy, loss_agg_mode=mode, **fields) for fields in ({}, CUTS[cut]))
    for _ in range(2):
        ours, theirs = one.update(batch), other.update(batch)
        assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-5)
    assert cases.largest_gap(cases.weights(one), cases.weights(other)) < 1e-5


def test_loss_against_a_plain_backward_pass(policy):
    """Policy gradient alone, all ratios 1: the loss is - mean of advantages over tokens, its gradient by autograd."""
    batch = cases.six_rollouts(policy)
    del batch.tensors["old_logprobs"]
    actor = cases.open_actor(policy, use_kl_loss=False, entropy_coeff=0.0)
    stats = actor.update(batch)
    model = pretrained.load_base(policy)
    total = 0.0
    for row, prompt in enumerate(batch["inputs"]):
        reply = batch["responses"][row : row + 1, : cases.LENGTHS[row]]
        logits = model(**collate([prompt], reply, torch.ones_like(reply), pad_id=0)).logits
        table = (logits[0, -cases.LENGTHS[row] - 1 : -1] / 0.9).log_softmax(-1)
        total = total - batch["advantages"][row] * table.gather(1, reply[0, :, None]).sum() / sum(cases.LENGTHS)
    total.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    wanted = -sum(a * n for a, n in zip(batch["advantages"].tolist(), cases.LENGTHS, strict=True)) / 26
    assert stats["policy_loss"] == stats["loss"] == pytest.approx(wanted, abs=1e-6)
    assert stats["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert (stats["tokens"], stats["clip_fraction"], stats["kl"], stats["lr"]) == (26, 0, 0, 1e-3)


def test_no_rows_no_step(policy):
    actor = cases.open_actor(policy)
    before = cases.weights(actor)
    assert actor.logprobs(Batch()).shape == (0, 0)
    stats = actor.update(Batch())
    assert (stats["tokens"], stats["skipped"], stats["loss"]) == (0, 0, 0)
    assert cases.largest_gap(before, cases.weights(actor)) == 0


def test_a_frozen_vision_tower_stays(policy):
    actor = cases.open_actor(policy, frozen=True, checkpointing=True)
    before = cases.weights(actor)
    actor.update(cases.six_rollouts(policy))
    after = cases.weights(actor)
    changed = {name: not torch.equal(before[name], after[name]) for name in before}
    assert {name for name, is_changed in changed.items() if is_changed} == {n for n in before if ".visual." not in n}


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_weights_are_the_merged_model(policy, tied, kind):
    folder = policy if kind == "untied" else tied
    actor = cases.open_actor(folder, rank=4)
    base = pretrained.load_base(folder)
    merged = loading.add_lora(base, LoraConfig(rank=4))
    adapter = {name: p.full_tensor() for name, p in actor.trained.items()}
    merged.load_state_dict(adapter, strict=False)
    wanted = merged.merge_and_unload().state_dict()
    assert cases.largest_gap(cases.weights(actor), wanted) < 1e-5
    assert all("lora" in name and ".language_model." in name for name in adapter)
    assert torch.equal(wanted["lm_head.weight"], wanted["model.language_model.embed_tokens.weight"]) == (kind == "tied")


def test_tied_weights_train_as_one(tied):
    actor = cases.open_actor(tied)
    actor.update(cases.six_rollouts(tied))
    weights = cases.weights(actor)
    assert weights.keys() == pretrained.load_base(tied).state_dict().keys()
    assert torch.equal(weights["lm_head.weight"], weights["model.language_model.embed_tokens.weight"])
    assert not torch.equal(weights["lm_head.weight"], pretrained.load_base(tied).lm_head.weight)


def test_weights_after_scoring_are_the_trained_ones(policy):
    """A forward pass alone leaves the root gathered; what is streamed must still be the float32 shards."""
    actor = cases.open_actor(policy)
    before = cases.weights(actor)
    actor.logprobs(cases.six_rollouts(policy))
    assert cases.largest_gap(before, cases.weights(actor)) == 0
    wanted = pretrained.load_base(policy).state_dict()
    assert cases.largest_gap(before, wanted) == 0


@pytest.mark.parametrize("share", [True, False])
def test_images_are_looked_at_once_per_prompt(policy, share):
    """Six rows, three prompts, two of them with images: of 2 x 16 and of 1 x 36 patches."""
    actor = cases.open_actor(policy, micro_batch_size_per_device_for_update=6, share_prompts=share)
    patches = []
    hook = loading.vision_tower(actor.model).patch_embed.register_forward_hook(
        lambda module, args, output: patches.append(len(output))
    )
    actor.update(cases.six_rollouts(policy))
    hook.remove()
    assert patches == [2 * 16 + 36]


@pytest.mark.parametrize("rows", [1, 6])
def test_half_precision_passes_leave_full_precision_weights(policy, monkeypatch, rows):
    """As on a GPU: bfloat16 forward and backward, float32 parameters, gradients and stream."""
    shard = fsdp.shard
    monkeypatch.setattr(fsdp, "shard", lambda *a, **k: shard(*a, **{**k, "compute_dtype": torch.bfloat16}))
    batch = cases.six_rollouts(policy)
    sizes = {f"micro_batch_size_per_device_for_{use}": rows for use in ("update", "experience")}
    actor = cases.open_actor(policy, checkpointing=True, **sizes)
    gap = actor.logprobs(batch) - plain_logprobs(pretrained.load_base(policy), batch, temperature=0.9)
    assert 0 < gap.abs().max() < 0.1
    assert cases.largest_gap(cases.weights(actor), pretrained.load_base(policy).state_dict()) == 0
    stats = actor.update(batch)
    monkeypatch.undo()
    assert stats["grad_norm"] == pytest.approx(cases.open_actor(policy).update(batch)["grad_norm"], rel=0.05)
    assert {tensor.dtype for tensor in cases.weights(actor).values()} == {torch.float32}


def test_named_lora_targets():
    config = ModelConfig(lora=LoraConfig(rank=2, target_modules="q_proj, v_proj"))
    assert loading.peft_config(torch.nn.Module(), config.lora).target_modules == {"q_proj", "v_proj"}


def test_learning_rate_by_step():
    warm = lr_factor(OptimConfig(lr_warmup_steps_ratio=0.3), 10)
    assert [warm(step) for step in (0, 1, 2, 3, 9)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    cosine = lr_factor(OptimConfig(lr_scheduler="cosine"), 10)
    assert [cosine(step) for step in (0, 5, 10, 12)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    with pytest.raises(ValueError, match="number of steps"):
        lr_factor(OptimConfig(lr_scheduler="cosine"), 0)
    assert [cosine(step) for step in (2.5, 7.5)] == pytest.approx([0.853553, 0.146447], abs=1e-6)
    with pytest.raises(ValueError, match="'linear'"):
        lr_factor(OptimConfig(lr_scheduler="linear"), 10)


@pytest.mark.parametrize(("batch", "epochs"), [(16, 1), (4, 1), (4, 2)])
def test_the_schedule_has_the_length_of_the_run_whatever_the_mini_batches(policy, batch, epochs):
    """Eight RL steps of 16 prompts: the learning rate is that of 0, 1/4, 1/2 and 7/8 of the run, and 0 at its end."""
    config = cases.actor_config(policy, global_batch_size=batch, ppo_epochs=epochs)
    config.optim.lr_scheduler = "cosine"
    updates = updates_per_step(config, rollout_batch_size=16)
    assert updates == 16 // batch * epochs
    schedule = LearningRate(an_optimizer(), lr=2.0, factor=lr_factor(config.optim, 8 * updates))
    rates = []
    for _ in range(8 * updates):
        rates += schedule.get_last_lr()
        schedule.step()
    wanted = [1 + math.cos(math.pi * share) for share in (0, 1 / 4, 1 / 2, 7 / 8)]
    assert [rates[step * updates] for step in (0, 2, 4, 7)] == pytest.approx(wanted)
    assert schedule.get_last_lr() == [pytest.approx(0)]


def test_a_warm_up_lasts_its_share_of_the_run_in_mini_batches(policy):
    config = cases.actor_config(policy, global_batch_size=4)
    config.optim.lr_warmup_steps_ratio = 0.25
    updates = updates_per_step(config, rollout_batch_size=16)
    factor = lr_factor(config.optim, 8 * updates)
    assert [factor(update) < 1 for update in (0, 7, 8, 31)] == [True, True, False, False]  # 8 of 32 updates


def an_optimizer():
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])


def test_a_checkpoint_brings_back_the_place_in_the_schedule_and_not_its_learning_rate():
    before = LearningRate(an_optimizer(), lr=1.0, factor=lr_factor(OptimConfig(lr_scheduler="cosine"), 4))
    for _ in range(2):
        before.step()
    assert before.get_last_lr() == [pytest.approx(0.5)]
    after = LearningRate(an_optimizer(), lr=3.0, factor=lr_factor(OptimConfig(lr_scheduler="cosine"), 8))
    after.load_state_dict(before.state_dict())
    assert after.get_last_lr() == [pytest.approx(1.5 * (1 + math.cos(math.pi / 4)))]
    later = LambdaLR(an_optimizer(), lambda step: 1.0)  # what checkpoints of before hold
    later.step()
    after.load_state_dict(later.state_dict())
    assert after.last_epoch == 1


def test_the_learning_rate_told_is_the_one_the_update_was_made_with(policy):
    actor = cases.open_actor(policy, total_steps=2)
    actor.scheduler = LearningRate(actor.optimizer, lr=1e-3, factor=lr_factor(OptimConfig(lr_scheduler="cosine"), 2))
    rows = cases.six_rollouts(policy)
    assert [actor.update(rows)["lr"] for _ in range(2)] == pytest.approx([1e-3, 5e-4])


def test_an_update_with_nothing_to_learn_from_is_counted_and_passes_its_place_in_the_schedule(policy):
    actor = cases.open_actor(policy)
    before = actor.scheduler.last_epoch
    stats = [actor.update(rows) for rows in (Batch(), cases.six_rollouts(policy))]
    assert [each["empty"] for each in stats] == [1, 0]
    assert [each["skipped"] for each in stats] == [0, 0]
    assert actor.scheduler.last_epoch == before + 2
