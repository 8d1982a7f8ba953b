"""The mathematics of GRPO and its kin: tensors in, tensors out.

Axes: B rollouts, R response positions, V vocabulary. Groups are named by an integer per rollout; their sizes may differ
and their rows may stand anywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ESTIMATORS = ("grpo", "dr_grpo", "rloo", "reinforce_pp")
POLICY_LOSSES = ("ppo_clip", "gspo")
KL_KINDS = ("low_var_kl", "kl", "mse")
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")

STD_EPSILON = 1e-6
"""Added to the standard deviation of rewards, as released."""
LOG_RATIO_LIMIT = 20.0
"""|log ratio| beyond which a policy ratio stays constant: e^20 is far outside any clip range and far from overflow."""
K3_LINEAR_FROM = 10.0
"""ref - log gap beyond which `low_var_kl` goes on along its tangent instead of exponentially."""
CHUNK_ELEMENTS = 1 << 25
"""Logits turned to float32 at once (128 MiB)."""


# ---------------------------------------------------------------------------------------------------- advantages


def group_advantages(rewards_B: Tensor, groups_B: Tensor, *, estimator: str) -> Tensor:
    """Computes the advantage of each rollout over its baseline: (B,) float32.

    With m and s the mean and the standard deviation (divided by n - 1, as the released code) of the rollout's group:

    - ``grpo``: (r - m) / (s + 1e-6)                       DeepSeekMath, arXiv 2402.03300
    - ``dr_grpo``: r - m                                   Understanding R1-Zero-Like Training, arXiv 2503.20783
    - ``rloo``: r - mean of the group's other rewards      Back to Basics, arXiv 2402.14740
    - ``reinforce_pp``: (r - m) / (s + 1e-6), m and s of the whole batch; groups play no part. The form of
      REINFORCE++ (arXiv 2501.03262) without group baseline; its KL term is left to the loss, as for the others.

    A rollout alone in its group has nothing to be compared with and gets 0; so does every member of a group of equal
    rewards, exactly. The whole batch must be at hand, not one rank's share.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(_unknown("advantage estimator", estimator, ESTIMATORS))
    groups_B = torch.zeros_like(groups_B) if estimator == "reinforce_pp" else groups_B
    centred_B, size_B, std_B = _within_groups(rewards_B, groups_B)
    if estimator == "dr_grpo":
        advantages_B = centred_B
    elif estimator == "rloo":
        # r - (sum - r) / (n - 1) = (r - m) n / (n - 1)
        advantages_B = centred_B * size_B / (size_B - 1).clamp(min=1)
    else:
        advantages_B = centred_B / (std_B + STD_EPSILON)
    return advantages_B.float()


def groups_with_spread(rewards_B: Tensor, groups_B: Tensor) -> Tensor:
    """Marks the rollouts whose group has rewards that differ: (B,) bool. With an estimator that compares within groups,
    a group without spread gives no gradient. A group with a NaN counts as differing, so that the loss shows the NaN."""
    index_B, count = _number_groups(groups_B)
    lowest_G = _per_group(rewards_B, index_B, count, "amin")
    highest_G = _per_group(rewards_B, index_B, count, "amax")
    return (highest_G != lowest_G)[index_B]


def _within_groups(rewards_B: Tensor, groups_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reward minus group mean, group size and group standard deviation (0 for one member), (B,) float64 each."""
    rewards_B = rewards_B.double()
    index_B, count = _number_groups(groups_B)
    # Measured from the group's lowest, equal rewards are exact zeros and stay zeros when divided by a tiny deviation.
    above_B = rewards_B - _per_group(rewards_B, index_B, count, "amin")[index_B]
    size_G = _per_group(torch.ones_like(above_B), index_B, count, "sum")
    mean_G = _per_group(above_B, index_B, count, "sum") / size_G
    centred_B = above_B - mean_G[index_B]
    variance_G = _per_group(centred_B.square(), index_B, count, "sum") / (size_G - 1).clamp(min=1)
    return centred_B, size_G[index_B], variance_G.sqrt()[index_B]


def _number_groups(groups_B: Tensor) -> tuple[Tensor, int]:
    names_G, index_B = torch.unique(groups_B, return_inverse=True)
    return index_B, len(names_G)


def _per_group(values_B: Tensor, index_B: Tensor, count: int, reduce: str) -> Tensor:
    return values_B.new_zeros(count).scatter_reduce(0, index_B, values_B, reduce, include_self=False)


# ---------------------------------------------------------------------------------------------------- losses


def policy_loss(
    logprobs_BR: Tensor,
    old_logprobs_BR: Tensor,
    advantages_B: Tensor,
    mask_BR: Tensor,
    *,
    kind: str,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate per token, -min(w A, clip(w, 1 - clip_low, 1 + clip_high) A), and where the clip won.

    Both are (B, R) float32 and 0 outside the mask; the second is 1 where the clipped value was taken, so that its
    mask-weighted mean is the clip share. The weight w is

    - ``ppo_clip``: the token's ratio exp(log - old); PPO, arXiv 1707.06347, with the separate upper bound of DAPO,
      arXiv 2503.14476
    - ``gspo``: the ratio of the whole reply, exp(mean over its tokens of log - old), the same at each of its tokens;
      GSPO, arXiv 2507.18071

    For one advantage per reply the paper's GSPO-token form has the same value and the same gradient under every mode of
    `aggregate`, so there is no second form. GSPO's ratios keep close to 1: its paper clips at 3e-4 and 4e-4.
    A log ratio beyond ±20 counts as ±20 and passes no gradient.
    """
    if kind not in POLICY_LOSSES:
        raise ValueError(_unknown("policy loss", kind, POLICY_LOSSES))
    log_ratio_BR = masked(logprobs_BR.float() - old_logprobs_BR.float(), mask_BR)
    if kind == "gspo":
        tokens_B1 = mask_BR.sum(dim=1, keepdim=True).clamp(min=1)
        log_ratio_BR = (log_ratio_BR.sum(dim=1, keepdim=True) / tokens_B1).expand_as(log_ratio_BR)
    ratio_BR = log_ratio_BR.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    advantages_B1 = advantages_B.float().unsqueeze(1)
    free_BR = ratio_BR * advantages_B1
    clipped_BR = ratio_BR.clamp(1 - clip_low, 1 + clip_high) * advantages_B1
    loss_BR = -torch.minimum(free_BR, clipped_BR)
    return masked(loss_BR, mask_BR), masked((clipped_BR < free_BR).float(), mask_BR)


def kl_penalty(logprobs_BR: Tensor, ref_logprobs_BR: Tensor, *, kind: str) -> Tensor:
    """Distance of the policy from the reference on the drawn tokens, (B, R) float32. With d = ref - log:

    - ``low_var_kl``: exp(d) - d - 1, never negative ("k3" of the note Approximating KL Divergence, 2020). Above d = 10
      it continues along its tangent: value and gradient stay finite for any gap and still pull back towards the
      reference, where cutting the value off would let go of exactly the tokens that drifted furthest.
    - ``kl``: -d, unbiased, of either sign ("k1"). As a loss its expected gradient is 0: a measure, not a leash.
    - ``mse``: d² / 2 ("k2").
    """
    gap_BR = ref_logprobs_BR.float() - logprobs_BR.float()
    if kind == "low_var_kl":
        near_BR = gap_BR.clamp(max=K3_LINEAR_FROM)
        return torch.expm1(near_BR) + near_BR.exp() * (gap_BR - near_BR) - gap_BR
    if kind == "kl":
        return -gap_BR
    if kind == "mse":
        return 0.5 * gap_BR.square()
    raise ValueError(_unknown("KL type", kind, KL_KINDS))


# ---------------------------------------------------------------------------------------------------- aggregation


def aggregate(values_BR: Tensor, mask_BR: Tensor, *, mode: str) -> Tensor:
    """Numerator of a loss: a scalar to be divided by the `denominator` of the whole batch.

    - ``token-mean``: sum over tokens, each counting the same
    - ``seq-mean-token-mean``: sum over replies of the mean over their tokens (the GRPO paper)
    - ``seq-mean-token-sum``: sum over replies of the sum over their tokens (Dr. GRPO, up to a constant)

    Numerators and denominators add up over micro-batches and ranks. Dividing by the denominator of the global batch
    makes loss and gradient independent of how the batch was cut:
    ``loss = sum over pieces of aggregate(piece) / sum over pieces of denominator(piece)``.
    """
    values_BR = masked(values_BR.float(), mask_BR)
    if mode == "seq-mean-token-mean":
        return (values_BR.sum(dim=1) / mask_BR.sum(dim=1).clamp(min=1)).sum()
    if mode in AGGREGATIONS:
        return values_BR.sum()
    raise ValueError(_unknown("aggregation mode", mode, AGGREGATIONS))


def denominator(mask_BR: Tensor, *, mode: str) -> Tensor:
    """Counts, in float32, the tokens of a batch or its replies with tokens. `aggregate` is divided by the sum of this
    over the global batch.

    The count is 0 if nothing is left; then there is no loss and no update.
    """
    if mode not in AGGREGATIONS:
        raise ValueError(_unknown("aggregation mode", mode, AGGREGATIONS))
    counted = mask_BR.bool() if mode == "token-mean" else mask_BR.bool().any(dim=1)
    return counted.sum().float()


def masked(values_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """Zero outside the mask, whatever stood there; NaN on padding reaches neither the value nor the gradient."""
    return torch.where(mask_BR.bool(), values_BR, torch.zeros((), dtype=values_BR.dtype, device=values_BR.device))


# ---------------------------------------------------------------------------------------------------- from logits


def gather_logprobs(logits_BRV: Tensor, tokens_BR: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token under softmax(logits / temperature): (B, R) float32.

    Never holds a float32 copy of all logits: large inputs are worked off in chunks, again in the backward pass.
    """

    def logprobs(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
        logits_NV = _scaled(logits_NV, temperature)
        chosen_N = logits_NV.gather(1, tokens_N.unsqueeze(1)).squeeze(1)
        return chosen_N - logits_NV.logsumexp(dim=1)

    return _by_chunks(logprobs, logits_BRV.flatten(0, -2), tokens_BR.flatten()).view(tokens_BR.shape)


def entropy_from_logits(logits_BRV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(logits / temperature) in nats, (B, R) float32; tokens ruled out by -inf contribute 0."""

    def entropy(logits_NV: Tensor) -> Tensor:
        logits_NV = _scaled(logits_NV, temperature)
        finite_NV = logits_NV.masked_fill(logits_NV == -torch.inf, 0.0)  # 0 · -inf would be NaN
        return logits_NV.logsumexp(dim=1) - (logits_NV.softmax(dim=1) * finite_NV).sum(dim=1)

    return _by_chunks(entropy, logits_BRV.flatten(0, -2)).view(logits_BRV.shape[:-1])


def _scaled(logits_NV: Tensor, temperature: float) -> Tensor:
    logits_NV = logits_NV.float()
    return logits_NV if temperature == 1.0 else logits_NV / temperature


def _by_chunks(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function` over rows of `tensors`, some at a time; intermediate values are computed anew in the backward pass."""
    rows = max(1, CHUNK_ELEMENTS // tensors[0].shape[-1])
    if len(tensors[0]) <= rows:
        return function(*tensors)
    # split, not slices: the gradient of a slice is as large as the whole
    pieces = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    return torch.cat([checkpoint(function, *piece, use_reentrant=False) for piece in pieces])


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    return f"unknown {what} {name!r}: known are {', '.join(known)}"
