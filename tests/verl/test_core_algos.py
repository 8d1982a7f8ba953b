"""Numbers worked by hand, properties, gradients, and TRL's own methods on the same tensors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import trl_peer
from verl import core_algos
from verl.config import Config, ConfigError, check
from verl.core_algos import (
    aggregate,
    denominator,
    entropy_from_logits,
    gather_logprobs,
    group_advantages,
    groups_with_spread,
    kl_penalty,
    policy_loss,
)


def close(found, wanted, tolerance=1e-6):
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=found.dtype), atol=tolerance, rtol=tolerance)


class TestAdvantages:
    # Group 7 holds 1, 2, 3 (mean 2, deviation 1); group 4 holds 0, 1 (mean 0.5, deviation sqrt(0.5)); interleaved.
    rewards = torch.tensor([1.0, 0.0, 2.0, 1.0, 3.0])
    groups = torch.tensor([7, 4, 7, 4, 7])

    def test_grpo_by_hand(self):
        half = 0.5 / (math.sqrt(0.5) + 1e-6)
        one = 1 / (1 + 1e-6)
        close(group_advantages(self.rewards, self.groups, estimator="grpo"), [-one, -half, 0, half, one])

    def test_dr_grpo_by_hand(self):
        close(group_advantages(self.rewards, self.groups, estimator="dr_grpo"), [-1, -0.5, 0, 0.5, 1])

    def test_rloo_by_hand(self):
        # 1 - (2 + 3) / 2 = -1.5;  0 - 1 = -1
        close(group_advantages(self.rewards, self.groups, estimator="rloo"), [-1.5, -1, 0, 1, 1.5])

    def test_reinforce_pp_by_hand(self):
        # mean 7/5, squared gaps 0.16 + 1.96 + 0.36 + 0.16 + 2.56 = 5.2, deviation sqrt(5.2 / 4)
        deviation = math.sqrt(1.3) + 1e-6
        wanted = [gap / deviation for gap in (-0.4, -1.4, 0.6, -0.4, 1.6)]
        close(group_advantages(self.rewards, self.groups, estimator="reinforce_pp"), wanted)

    @pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo"])
    def test_alone_in_the_group_gets_nothing(self, estimator):
        rewards, groups = torch.tensor([5.0, 1.0, 3.0]), torch.tensor([0, 1, 1])
        advantages = group_advantages(rewards, groups, estimator=estimator)
        assert advantages[0] == 0
        assert advantages[1] < 0 < advantages[2]

    @pytest.mark.parametrize("estimator", core_algos.ESTIMATORS)
    @given(reward=st.floats(-10, 10, width=32), size=st.integers(1, 9))
    def test_equal_rewards_give_exact_zeros(self, estimator, reward, size):
        advantages = group_advantages(torch.full((size,), reward), torch.zeros(size), estimator=estimator)
        assert torch.equal(advantages, torch.zeros(size))

    @pytest.mark.parametrize("estimator", core_algos.ESTIMATORS)
    @given(data=st.data())
    def test_order_of_rows_does_not_matter(self, estimator, data):
        size = data.draw(st.integers(1, 12))
        rewards = torch.tensor(data.draw(st.lists(st.floats(0, 4, width=32), min_size=size, max_size=size)))
        groups = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
        order = torch.tensor(data.draw(st.permutations(range(size))))
        straight = group_advantages(rewards, groups, estimator=estimator)
        close(group_advantages(rewards[order], groups[order], estimator=estimator), straight[order], 1e-5)

    def test_unknown_estimator_is_named(self):
        with pytest.raises(ValueError, match=r"'gae'.*known are grpo"):
            group_advantages(self.rewards, self.groups, estimator="gae")

    def test_spread(self):
        rewards, groups = torch.tensor([1.0, 2.0, 1.0, 2.0, 5.0]), torch.tensor([0, 1, 0, 3, 3])
        assert groups_with_spread(rewards, groups).tolist() == [False, False, False, True, True]


class TestPolicyLoss:
    @staticmethod
    def loss(ratios, advantages, kind="ppo_clip", mask=None):
        ratios = torch.tensor(ratios, dtype=torch.float64)
        mask = torch.ones_like(ratios) if mask is None else torch.tensor(mask)
        old = torch.full_like(ratios, -2.0)
        return policy_loss(
            ratios.log() - 2, old, torch.tensor(advantages), mask, kind=kind, clip_low=0.2, clip_high=0.3
        )

    def test_clip_by_hand(self):
        loss, clipped = self.loss([[1.0, 1.2, 1.5, 0.5], [1.0, 1.2, 1.5, 0.5]], [2.0, -2.0])
        # For A > 0 the upper bound 1.3 counts, for A < 0 the lower bound 0.8.
        close(loss, [[-2, -2.4, -2.6, -1.0], [2, 2.4, 3.0, 1.6]])
        assert clipped.tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]

    def test_gspo_by_hand(self):
        # Row 1: geometric mean of 2 and 0.5 is 1. Row 2: sqrt(1.44 * 1.96) = 1.68, clipped to 1.3; third token masked.
        loss, clipped = self.loss([[2.0, 0.5, 9.0], [1.44, 1.96, 9.0]], [1.0, 1.0], "gspo", mask=[[1, 1, 0], [1, 1, 0]])
        close(loss, [[-1, -1, 0], [-1.3, -1.3, 0]])
        assert clipped.tolist() == [[0, 0, 0], [1, 1, 0]]

    @pytest.mark.parametrize("kind", core_algos.POLICY_LOSSES)
    def test_on_policy_gradient_is_minus_the_advantage(self, kind):
        logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.1, 0.0]], requires_grad=True)
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        loss, clipped = policy_loss(
            logprobs, logprobs.detach(), torch.tensor([2.0, -3.0]), mask, kind=kind, clip_low=0.2, clip_high=0.2
        )
        loss.sum().backward()
        close(logprobs.grad, [[-2, -2, -2], [3, 3, 0]])
        assert clipped.sum() == 0

    @pytest.mark.parametrize("mode", core_algos.AGGREGATIONS)
    def test_gspo_gradient_is_that_of_its_token_form(self, mode):
        torch.manual_seed(0)
        old = -torch.rand(3, 4)
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
        advantages = torch.tensor([1.0, -1.0, 0.5])
        plain = (old + 0.1 * torch.randn(3, 4)).requires_grad_()
        loss, _ = policy_loss(plain, old, advantages, mask, kind="gspo", clip_low=5.0, clip_high=5.0)
        aggregate(loss, mask, mode=mode).backward()
        token = plain.detach().clone().requires_grad_()
        sequence = ((token.detach() - old) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        weight = sequence.exp() * (token - token.detach()).exp()
        aggregate(-weight * advantages.unsqueeze(1), mask, mode=mode).backward()
        close(plain.grad, token.grad)

    @pytest.mark.parametrize("kind", core_algos.POLICY_LOSSES)
    def test_padding_may_hold_anything(self, kind):
        logprobs = torch.tensor([[-1.0, math.nan]], requires_grad=True)
        old, mask = torch.tensor([[-1.0, math.inf]]), torch.tensor([[1, 0]])
        loss, _ = policy_loss(logprobs, old, torch.tensor([1.0]), mask, kind=kind, clip_low=0.2, clip_high=0.2)
        loss.sum().backward()
        close(loss, [[-1, 0]])
        close(logprobs.grad, [[-1, 0]])

    @pytest.mark.parametrize("kind", core_algos.POLICY_LOSSES)
    @pytest.mark.parametrize("gap", [-1e4, 1e4])
    @pytest.mark.parametrize("advantage", [-1.0, 1.0])
    def test_any_ratio_is_finite(self, kind, gap, advantage):
        logprobs = torch.tensor([[gap]], requires_grad=True)
        mask = torch.ones(1, 1)
        loss, _ = policy_loss(
            logprobs, torch.zeros(1, 1), torch.tensor([advantage]), mask, kind=kind, clip_low=0.2, clip_high=0.2
        )
        loss.sum().backward()
        assert loss.isfinite().all()
        assert logprobs.grad.isfinite().all()


class TestKL:
    def test_by_hand(self):
        logprobs, ref = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -1.0]])  # d = -1, 1
        close(kl_penalty(logprobs, ref, kind="low_var_kl"), [[math.exp(-1), math.e - 2]])
        close(kl_penalty(logprobs, ref, kind="kl"), [[1, -1]])
        close(kl_penalty(logprobs, ref, kind="mse"), [[0.5, 0.5]])

    @pytest.mark.parametrize("kind", core_algos.KL_KINDS)
    @pytest.mark.parametrize("gap", [-1e4, -100.0, -20.0, 0.0, 9.9, 10.1, 20.0, 100.0, 1e4])
    def test_any_gap_gives_finite_value_and_gradient(self, kind, gap):
        logprobs = torch.zeros(1, 1, requires_grad=True)
        penalty = kl_penalty(logprobs, torch.tensor([[gap]]), kind=kind)
        penalty.sum().backward()
        assert penalty.isfinite().all()
        assert logprobs.grad.isfinite().all()

    @pytest.mark.parametrize("kind", ["low_var_kl", "mse"])
    @pytest.mark.parametrize("gap", [-1e4, -3.0, 3.0, 1e4])
    def test_descent_leads_back_to_the_reference(self, kind, gap):
        logprobs = torch.zeros(1, 1, requires_grad=True)
        kl_penalty(logprobs, torch.tensor([[gap]]), kind=kind).sum().backward()
        assert -logprobs.grad.sign().item() == math.copysign(1, gap)

    @given(gap=st.floats(-9, 9))
    def test_low_var_kl_is_its_formula_within_reach(self, gap):
        found = kl_penalty(torch.zeros(1, 1), torch.full((1, 1), gap), kind="low_var_kl").item()
        gap = torch.tensor(gap).item()
        assert found == pytest.approx(math.exp(gap) - gap - 1, rel=1e-4, abs=1e-6)
        assert found >= 0

    def test_far_tangent_by_hand(self):
        # e^10 (1 + (12 - 10)) - 12 - 1
        found = kl_penalty(torch.zeros(1, 1), torch.full((1, 1), 12.0), kind="low_var_kl")
        close(found, [[3 * math.exp(10) - 13]])

    def test_mean_over_the_policy_is_the_kl_divergence(self):
        logits, ref_logits = torch.randn(2, 50, generator=torch.manual_seed(1)).double()
        logprobs, ref = logits.log_softmax(0), ref_logits.log_softmax(0)
        wanted = (logprobs.exp() * (logprobs - ref)).sum()
        for kind in ("low_var_kl", "kl"):
            found = (logprobs.exp() * kl_penalty(logprobs[None], ref[None], kind=kind)[0]).sum()
            assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


class TestAggregation:
    values = torch.tensor([[1.0, 2.0, 6.0], [4.0, math.nan, math.inf], [5.0, 5.0, 5.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])

    @pytest.mark.parametrize(
        ("mode", "numerator", "count"),
        [("token-mean", 13, 4), ("seq-mean-token-mean", 3 + 4, 2), ("seq-mean-token-sum", 9 + 4, 2)],
    )
    def test_by_hand(self, mode, numerator, count):
        assert aggregate(self.values, self.mask, mode=mode) == numerator
        assert denominator(self.mask, mode=mode) == count

    @pytest.mark.parametrize("mode", core_algos.AGGREGATIONS)
    @given(data=st.data())
    def test_any_cut_into_micro_batches_gives_the_same_loss(self, mode, data):
        torch.manual_seed(data.draw(st.integers(0, 99)))
        rows = data.draw(st.integers(1, 8))
        values, mask = torch.randn(rows, 5), (torch.rand(rows, 5) < 0.6).long()
        sizes, left = [], rows
        while left:
            sizes.append(data.draw(st.integers(1, left)))
            left -= sizes[-1]
        pieces = list(zip(values.split(sizes), mask.split(sizes), strict=True))
        close(sum(aggregate(v, m, mode=mode) for v, m in pieces), aggregate(values, mask, mode=mode), 1e-5)
        assert sum(denominator(m, mode=mode) for _, m in pieces) == denominator(mask, mode=mode)

    @pytest.mark.parametrize("function", [denominator, lambda mask, mode: aggregate(mask, mask, mode=mode)])
    def test_unknown_mode_is_named(self, function):
        with pytest.raises(ValueError, match=r"'mean'.*token-mean"):
            function(self.mask, mode="mean")


class TestFromLogits:
    @pytest.mark.parametrize("chunk", [1 << 25, 20])  # 20: two rows of ten at a time
    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_equals_the_full_log_softmax(self, chunk, temperature, monkeypatch):
        monkeypatch.setattr(core_algos, "CHUNK_ELEMENTS", chunk)
        torch.manual_seed(0)
        logits = (5 * torch.randn(3, 5, 10)).requires_grad_()
        tokens = torch.randint(10, (3, 5))
        full = (logits / temperature).log_softmax(-1)
        wanted = full.gather(-1, tokens[..., None])[..., 0], -(full.exp() * full).sum(-1)
        found = (
            gather_logprobs(logits, tokens, temperature=temperature),
            entropy_from_logits(logits, temperature=temperature),
        )
        for mine, theirs in zip(found, wanted, strict=True):
            close(mine, theirs.detach(), 1e-5)
            (gradient,) = torch.autograd.grad(mine.square().sum(), logits, retain_graph=True)
            (reference,) = torch.autograd.grad(theirs.square().sum(), logits, retain_graph=True)
            close(gradient, reference, 1e-4)

    def test_two_equal_tokens_by_hand(self):
        logits = torch.tensor([[[0.0, 0.0, -torch.inf]]], requires_grad=True)
        close(gather_logprobs(logits, torch.tensor([[1]])), [[math.log(0.5)]])
        entropy = entropy_from_logits(logits)
        close(entropy, [[math.log(2)]])
        entropy.sum().backward()
        assert logits.grad.isfinite().all()

    def test_huge_logits_stay_finite(self):
        logits = torch.tensor([[[1e4, -1e4, 0.0]]])
        close(gather_logprobs(logits, torch.tensor([[0]])), [[0.0]])
        close(entropy_from_logits(logits), [[0.0]])

    def test_bfloat16_is_worked_in_float32(self):
        logits = torch.randn(2, 3, 7).bfloat16()
        found = gather_logprobs(logits, torch.zeros(2, 3, dtype=torch.long))
        assert found.dtype == torch.float32
        close(found, logits.float().log_softmax(-1)[..., 0])


class TestGradients:
    """Against finite differences; float32 inside, so with wide steps."""

    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    start = torch.tensor([[-1.0, -0.4, -2.0], [-0.9, -0.3, -1.5]], dtype=torch.float64)
    old = torch.tensor([[-1.1, -0.35, -2.0], [-0.95, -0.2, -1.4]])

    def check(self, function):
        leaf = self.start.clone().requires_grad_()
        assert torch.autograd.gradcheck(function, leaf, eps=1e-2, atol=1e-3, rtol=1e-2)

    @pytest.mark.parametrize("kind", core_algos.POLICY_LOSSES)
    def test_policy_loss(self, kind):
        advantages = torch.tensor([1.0, -2.0])
        self.check(
            lambda x: policy_loss(x, self.old, advantages, self.mask, kind=kind, clip_low=0.5, clip_high=0.5)[
                0
            ].double()
        )

    @pytest.mark.parametrize("kind", core_algos.KL_KINDS)
    def test_kl(self, kind):
        self.check(lambda x: kl_penalty(x, self.old, kind=kind).double())

    @pytest.mark.parametrize("mode", core_algos.AGGREGATIONS)
    def test_aggregate(self, mode):
        self.check(lambda x: aggregate(x.square(), self.mask, mode=mode).double())


class FirstIsGathered:
    """Stands for the accelerator of a single process."""

    @staticmethod
    def gather(tensor):
        return tensor.reshape(-1)


@pytest.fixture(scope="module")
def trainer():
    pytest.importorskip("trl")
    return trl_peer.grpo_trainer()


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(3)
    mask = (torch.arange(7) < torch.tensor([7, 3, 5, 1])[:, None]).long()
    old = -3 * torch.rand(4, 7)
    return {
        "old": old,
        "ref": old + 0.5 * torch.randn(4, 7),
        "now": old + 0.3 * torch.randn(4, 7),
        "advantages": torch.tensor([1.2, -0.4, 0.3, -1.1]),
        "mask": mask,
    }


class TestAgainstTRL:
    """The methods of TRL's GRPOTrainer, run on a stand-in that holds just what they read."""

    @staticmethod
    def trl_loss(trainer, tensors, now, level, loss_type):
        from collections import defaultdict
        from types import SimpleNamespace

        stand_in = SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *_, **__: (now, torch.zeros_like(now)),
            top_entropy_quantile=1.0,
            beta=0.04,
            importance_sampling_level=level,
            epsilon_low=0.2,
            epsilon_high=0.25,
            args=SimpleNamespace(delta=None),
            use_vllm=False,
            loss_type=loss_type,
            current_gradient_accumulation_steps=1,
            max_completion_length=7,
            model=SimpleNamespace(training=True),
            accelerator=SimpleNamespace(gather=FirstIsGathered.gather, num_processes=1),
            _metrics=defaultdict(lambda: defaultdict(list)),
        )
        inputs = {
            "prompt_ids": torch.zeros(4, 1),
            "prompt_mask": torch.ones(4, 1),
            "completion_ids": torch.zeros(4, 7),
            "completion_mask": tensors["mask"],
            "old_per_token_logps": tensors["old"],
            "ref_per_token_logps": tensors["ref"],
            "advantages": tensors["advantages"],
            "num_items_in_batch": tensors["mask"].sum(),
        }
        loss = trainer._compute_loss(stand_in, None, inputs)
        return loss, {name: values[0] for name, values in stand_in._metrics["train"].items()}

    @pytest.mark.parametrize(("kind", "level"), [("ppo_clip", "token"), ("gspo", "sequence")])
    @pytest.mark.parametrize(
        ("mode", "loss_type", "scale"),
        [("seq-mean-token-mean", "grpo", 1), ("token-mean", "dapo", 1), ("seq-mean-token-sum", "dr_grpo", 7)],
    )
    def test_loss_gradient_kl_and_clip_share(self, trainer, tensors, kind, level, mode, loss_type, scale):
        theirs = tensors["now"].clone().requires_grad_()
        their_loss, logged = self.trl_loss(trainer, tensors, theirs, level, loss_type)
        (their_loss * scale).backward()  # their dr_grpo divides by the longest length as well

        mine, mask = tensors["now"].clone().requires_grad_(), tensors["mask"]
        loss, clipped = policy_loss(
            mine, tensors["old"], tensors["advantages"], mask, kind=kind, clip_low=0.2, clip_high=0.25
        )
        kl = kl_penalty(mine, tensors["ref"], kind="low_var_kl")
        total = aggregate(loss + 0.04 * kl, mask, mode=mode) / denominator(mask, mode=mode)
        total.backward()
        close(total.detach(), their_loss.detach() * scale)
        close(mine.grad, theirs.grad)
        tokens = denominator(mask, mode="token-mean")
        assert (aggregate(kl, mask, mode="token-mean") / tokens).item() == pytest.approx(logged["kl"], rel=1e-5)
        if kind == "ppo_clip":  # of a sequence ratio TRL logs the share of sequences
            share = (aggregate(clipped, mask, mode="token-mean") / tokens).item()
            assert share == pytest.approx(logged["clip_ratio/region_mean"], rel=1e-5)
            assert share > 0

    def test_advantages(self, trainer):
        """Their formula for groups of equal size, read in `_generate_and_score_completions`; their epsilon is 1e-4."""
        rewards = torch.rand(24, generator=torch.manual_seed(5)) * 4
        by_group = rewards.view(3, 8)
        theirs = ((by_group - by_group.mean(1, keepdim=True)) / (by_group.std(1, keepdim=True) + 1e-4)).flatten()
        mine = group_advantages(rewards, torch.arange(24) // 8, estimator="grpo")
        close(mine, theirs, 5e-4)

    def test_logprobs_and_entropy(self, trainer):
        from trl.trainer.utils import entropy_from_logits as their_entropy
        from trl.trainer.utils import selective_log_softmax

        logits, tokens = 4 * torch.randn(3, 6, 50, generator=torch.manual_seed(6)), torch.randint(50, (3, 6))
        close(gather_logprobs(logits, tokens), selective_log_softmax(logits, tokens), 1e-5)
        close(entropy_from_logits(logits), their_entropy(logits), 1e-5)


@pytest.mark.parametrize("estimator", core_algos.ESTIMATORS)
def test_dropping_leaves_out_what_the_estimator_learns_nothing_from(estimator):
    """Rows of equal groups have no advantage, and the others the one they have alone; reinforce_pp is another matter,
    since it compares with the whole batch, and the configuration refuses the two together."""
    rewards, groups = torch.tensor([1.0, 1.0, 0.0, 2.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1, 2, 2])
    kept = core_algos.groups_with_spread(rewards, groups)
    assert kept.tolist() == [False, False, True, True, False, False]
    advantages = core_algos.group_advantages(rewards, groups, estimator=estimator)
    alone = core_algos.group_advantages(rewards[kept], groups[kept], estimator=estimator)
    config = Config()
    config.algorithm.adv_estimator, config.algorithm.drop_equal_groups = estimator, True
    with pytest.raises(ConfigError) as refused:
        check(config)  # as it lacks paths; what matters is whether it says this, too
    if estimator == "reinforce_pp":
        assert (advantages[~kept] != 0).all()
        assert "reinforce_pp compares a reply with the whole batch" in str(refused.value)
    else:
        assert (advantages[~kept] == 0).all()
        assert torch.equal(advantages[kept], alone)
        assert "drop_equal_groups" not in str(refused.value)


def test_a_group_with_a_nan_is_not_dropped_in_silence():
    rewards = torch.tensor([math.nan, math.nan, 1.0, 1.0])
    kept = core_algos.groups_with_spread(rewards, torch.tensor([0, 0, 1, 1]))
    assert kept.tolist() == [True, True, False, False]
