"""The policy that is trained: sharded over all ranks, it scores replies and learns from them.

Every public method is called on all ranks together, each with its own rows, which may be none. What comes out does not
depend on how rows are spread over ranks or cut into micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from verl import core_algos
from verl.config import ActorConfig, OptimConfig
from verl.engines import generation, pretrained
from verl.engines.inputs import collate
from verl.models import loading, shared_prompts
from verl.protocol import Batch
from verl.utils import fsdp, micro_batches
from verl.utils.runtime import free_cache, rank_device

SUMS = ("loss", "policy_loss", "kl", "entropy", "clip_fraction", "engine_gap")
"""Metrics of an update that add up over micro-batches and ranks."""

NO_ROWS = Batch({name: torch.zeros(0, 1, dtype=torch.long) for name in ("responses", "response_mask")}, {"inputs": []})


@dataclass(frozen=True)
class Plan:
    """The rows that go through the model together: as many passes on every rank, some of them with no rows."""

    passes: list[list[int]]
    pictured: bool
    """Some rank has images, so every pass must go through the vision tower."""


class Actor:
    """Policy, optimiser and, where the KL loss needs one beside it, the reference policy."""

    def __init__(
        self, config: ActorConfig, *, temperature: float, total_steps: int = 0, mesh: DeviceMesh | None = None
    ) -> None:
        """The process group must exist. A cosine schedule or a warm-up needs `total_steps`: the optimiser steps of the
        whole run, which are calls of `update` (see `updates_per_step`) and not RL steps."""
        self.config, self.temperature = config, temperature
        self.mesh = mesh or fsdp.make_mesh()
        self.device = rank_device()
        on_gpu = self.device.type == "cuda"
        self.compute_dtype = getattr(torch, config.fsdp.torch_dtype) if on_gpu else torch.float32
        self.pad_id = generation.pad_id(pretrained.load_processor(config.model.model_path))
        self.model = self._sharded(lambda empty: loading.load_policy(config.model, empty=empty))
        self.reference: nn.Module | None = None
        if config.use_kl_loss and not self.has_adapter:
            self.reference = self._sharded(
                lambda empty: pretrained.load_base(
                    config.model.model_path, dtype=self.compute_dtype, empty=empty
                ).requires_grad_(False)
            )
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        optim = config.optim
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=optim.lr,
            betas=(optim.betas[0], optim.betas[1]),
            weight_decay=optim.weight_decay,
            foreach=True,
        )
        self.scheduler = LearningRate(self.optimizer, lr=optim.lr, factor=lr_factor(optim, total_steps))
        self._offloaded = False

    @property
    def has_adapter(self) -> bool:
        return isinstance(self.model, PeftModel)

    # ------------------------------------------------------------------------------------------------ scoring

    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probabilities of the replies' tokens at the run's temperature, 0 on padding: (B, R) float32, on CPU."""
        return self._score(self.model, batch)

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """The same under the policy that training began with."""
        if isinstance(self.model, PeftModel):
            with self.model.disable_adapter():
                return self._score(self.model, batch)
        if self.reference is None:
            raise ValueError("there is no reference policy: worker.actor.use_kl_loss is false")
        return self._score(self.reference, batch)

    @torch.no_grad()
    def _score(self, model: nn.Module, batch: Batch) -> Tensor:
        model.eval()
        plan = self._plan(batch, self.config.micro_batch_size_per_device_for_experience)
        logprobs_BR = torch.zeros(batch["responses"].shape) if len(batch) else torch.zeros(0, 0)
        for rows in plan.passes:
            part, logits, tokens = self._forward(model, batch, rows, pictured=plan.pictured)
            if rows:
                found = core_algos.gather_logprobs(logits, tokens, temperature=self.temperature)
                found = core_algos.masked(_by_row(found, part["response_mask"]), part["response_mask"])
                logprobs_BR[torch.tensor(rows), : found.shape[1]] = found.cpu()
        fsdp.reshard(model)
        return logprobs_BR

    # ------------------------------------------------------------------------------------------------ learning

    def update(self, batch: Batch) -> dict[str, float]:
        """One optimiser step on all ranks' rows; the metrics are those of the whole, equal on every rank.

        Rows have lists ``inputs`` and tensors ``responses``, ``response_mask``, ``advantages``; ``old_logprobs`` unless
        the replies were drawn from these very weights; ``ref_logprobs`` for the KL loss. ``engine_logprobs``, if given,
        are compared with the policy's: ``engine_gap`` is the mean distance over tokens, ``engine_gap_max`` the largest.
        A loss or gradient that is not finite leaves weights, optimiser and schedule as they were, on all ranks, and
        counts as ``skipped``. Without a row on any rank there is nothing to learn from: weights and optimiser stay, the
        schedule goes on, and the update counts as ``empty``. ``lr`` is the learning rate of this update.
        """
        self.model.train()
        (lr,) = self.scheduler.get_last_lr()
        plan = self._plan(batch, self.config.micro_batch_size_per_device_for_update)
        modes = ("token-mean", self.config.loss_agg_mode)
        mask_BR = batch["response_mask"] if len(batch) else torch.zeros(1, 1)
        local = torch.stack([core_algos.denominator(mask_BR, mode=mode) for mode in modes]).double()
        tokens, denominator = fsdp.reduce(local, self.mesh).tolist()  # of all ranks: reply tokens, the loss's divisor
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        self._largest_gap = torch.zeros((), device=self.device)
        if denominator > 0:
            for rows in plan.passes:
                loss, parts = self._loss(batch, rows, denominator, tokens, pictured=plan.pictured)
                # FSDP averages gradients over ranks; the loss is already a share of the global one.
                (loss * self.mesh.size()).backward()
                sums += parts
        totals = dict(zip(SUMS, fsdp.reduce(sums, self.mesh).tolist(), strict=True))
        empty, finite, norm = denominator == 0, True, 0.0
        if not empty:
            parameters = list(self.trained.values())
            grad_norm = fsdp.grad_norm(parameters)
            norm = float(grad_norm)
            # equal on every rank, since both numbers are of all ranks
            finite = math.isfinite(totals["loss"]) and math.isfinite(norm)
            if finite:
                fsdp.clip(parameters, max_norm=self.config.max_grad_norm, norm=grad_norm)
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if finite:
            self.scheduler.step()
        gap = float(fsdp.reduce(self._largest_gap, self.mesh, op=dist.ReduceOp.MAX))
        counts = {"tokens": tokens, "skipped": float(not finite), "empty": float(empty)}
        return {**totals, "engine_gap_max": gap, "grad_norm": norm, "lr": lr, **counts}

    def _loss(
        self, batch: Batch, rows: Sequence[int], denominator: float, tokens: float, *, pictured: bool
    ) -> tuple[Tensor, Tensor]:
        """These rows' share of the global loss, and of each of `SUMS`."""
        part, logits, drawn = self._forward(self.model, batch, rows, pictured=pictured)
        if not rows:
            return 0.0 * logits[..., 0].float().sum(), torch.zeros(len(SUMS), device=self.device)
        config, mask = self.config, part["response_mask"]
        logprobs = _by_row(core_algos.gather_logprobs(logits, drawn, temperature=self.temperature), mask)
        policy, clipped = core_algos.policy_loss(
            logprobs,
            part["old_logprobs"] if "old_logprobs" in part else logprobs.detach(),
            part["advantages"],
            mask,
            kind=config.policy_loss,
            clip_low=config.clip_ratio,
            clip_high=config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high,
        )
        kl = torch.zeros_like(logprobs)
        if config.use_kl_loss:
            kl = core_algos.kl_penalty(logprobs, part["ref_logprobs"], kind=config.kl_loss_type)
        with nullcontext() if config.entropy_coeff != 0 else torch.no_grad():
            entropy = _by_row(core_algos.entropy_from_logits(logits, temperature=self.temperature), mask)
        policy, kl, entropy = (
            core_algos.aggregate(values, mask, mode=config.loss_agg_mode) / denominator
            for values in (policy, kl, entropy)
        )
        loss = policy + config.kl_loss_coef * kl - config.entropy_coeff * entropy
        share = core_algos.aggregate(clipped, mask, mode="token-mean") / tokens
        gap = torch.zeros((), device=self.device)
        if "engine_logprobs" in part:
            gaps_BR = core_algos.masked((part["engine_logprobs"] - logprobs.detach()).abs(), mask)
            self._largest_gap = torch.maximum(self._largest_gap, gaps_BR.max())
            gap = gaps_BR.sum()
        return loss, torch.stack([loss, policy, kl, entropy, share, gap / tokens]).detach()

    # ------------------------------------------------------------------------------------------------ one pass

    def _plan(self, batch: Batch, rows: int) -> Plan:
        """This rank's micro-batches, filled up with empty ones until every rank has as many."""
        self.reload()
        prompts = batch["inputs"] if len(batch) else []
        groups = [id(prompt) if self._packs else row for row, prompt in enumerate(prompts)]
        passes = micro_batches.by_count(groups, rows)
        if self.config.max_tokens_per_micro_batch > 0 and prompts:
            replies = batch["response_mask"].sum(dim=1).tolist()
            sizes = [(len(prompt), reply) for prompt, reply in zip(prompts, replies, strict=True)]
            passes = micro_batches.by_tokens(sizes, groups, self.config.max_tokens_per_micro_batch)
        pictured = any(prompt.pixel_values is not None for prompt in prompts)
        mine = torch.tensor([len(passes), int(pictured)])
        count, pictured = fsdp.reduce(mine, self.mesh, op=dist.ReduceOp.MAX).tolist()
        return Plan(passes + [[]] * (count - len(passes)), pictured=bool(pictured))

    def _forward(
        self, model: nn.Module, batch: Batch, rows: Sequence[int], *, pictured: bool
    ) -> tuple[Batch, Tensor, Tensor]:
        """These rows on the device, cut to their longest reply r; logits (b, r, V) and the tokens (b, r) drawn from
        them, or both flat for the N tokens of the mask alone, (N, V) and (N,). For no rows: the logits of a filler, to
        be weighted with 0."""
        part = NO_ROWS
        if rows:
            part = batch.select(rows)
            width, wide = max(1, int(part["response_mask"].sum(dim=1).max())), part["responses"].shape[1]
            of_replies = {n: t[:, :width] for n, t in part.tensors.items() if t.dim() == 2 and t.shape[1] == wide}
            part = part.with_tensors(**of_replies)
        prompts, responses, mask = list(part["inputs"]), part["responses"], part["response_mask"]
        together = self._packs and len({id(prompt) for prompt in prompts}) < len(prompts)
        if not rows or (pictured and all(prompt.pixel_values is None for prompt in prompts)):
            # Sharded layers are collectives: where one rank looks at images, all must.
            prompts.append(loading.filler_prompt(model.config, pictured=pictured))
            responses, mask = (nn.functional.pad(tensor, (0, 0, 0, 1)) for tensor in (responses, mask))
        part = part.to(self.device)
        if together:
            inputs = shared_prompts.collate(prompts, responses, mask, model=loading.plain(model))
            return part, self._run(model, inputs)[0], part["responses"][part["response_mask"].bool()]
        inputs = collate(shared_prompts.without_repeats(prompts), responses, mask, pad_id=self.pad_id)
        with shared_prompts.images_once(loading.vision_tower(model), prompts):
            logits = self._run(model, {**inputs, "logits_to_keep": responses.shape[1] + 1})[:, :-1]
        return part, logits[: len(rows)] if rows else logits, part["responses"]

    def _run(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Logits of inputs that may still lie on the CPU."""
        there = {name: value if isinstance(value, int) else value.to(self.device) for name, value in inputs.items()}
        return model(**there, use_cache=False).logits

    # ------------------------------------------------------------------------------------------------ weights

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full float32 tensors, one at a time, under every name of the plain model's ``state_dict`` (a tied head
        included), an adapter folded in. Every rank must use up the stream."""
        self.reload()
        fsdp.reshard(self.model)
        for name, tensors, scale in loading.plain_weights(self.model):
            yield name, loading.fold([fsdp.full(tensor.detach()) for tensor in tensors], scale)

    def offload(self) -> None:
        """Move what the configuration allows off the GPU, until `reload` or the next use."""
        if not self._offloaded:
            self._move(torch.device("cpu"))
            self._offloaded = True

    def reload(self) -> None:
        """Bring back what `offload` has moved."""
        if self._offloaded:
            self._move(self.device)
            self._offloaded = False

    def _move(self, device: torch.device) -> None:
        if self.device.type == "cpu":
            return
        if self.config.fsdp.param_offload:
            for model in filter(None, (self.model, self.reference)):
                fsdp.move(model, device)
        if self.config.fsdp.optimizer_offload:
            fsdp.move_optimizer(self.optimizer, device)
        free_cache()

    def _sharded(self, load: Callable[[bool], nn.Module]) -> nn.Module:
        def prepared(empty: bool) -> nn.Module:
            model = load(empty)
            self._packs = self.config.share_prompts and shared_prompts.use_packing(loading.plain(model))
            return model

        return fsdp.load_sharded(prepared, self.mesh, layers=loading.layer_classes, compute_dtype=self.compute_dtype)


def _by_row(values: Tensor, mask_BR: Tensor) -> Tensor:
    """Lays out values of reply tokens as (B, R), if they are not so already but (N,) for the N tokens of the mask."""
    return values if values.dim() == 2 else values.new_zeros(mask_BR.shape).masked_scatter(mask_BR.bool(), values)


def updates_per_step(config: ActorConfig, *, rollout_batch_size: int) -> int:
    """Optimiser steps for one batch of rollouts: its mini-batches, once per epoch over it."""
    return rollout_batch_size // config.global_batch_size * config.ppo_epochs


def lr_factor(config: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """Learning rate of an update (from 0) as a share of the configured one: linear warm-up, then constant or a half
    cosine that would reach 0 with the update after the last. Everything counts optimiser steps, not RL steps."""
    if config.lr_scheduler not in ("constant", "cosine"):
        raise ValueError(f"worker.actor.optim.lr_scheduler is {config.lr_scheduler!r}; known are constant, cosine")
    needs_total = config.lr_scheduler == "cosine" or config.lr_warmup_steps_ratio > 0
    if needs_total and total_steps <= 0:
        raise ValueError("a cosine schedule or a warm-up needs the number of steps of the run, counted in updates")
    warmup = math.ceil(config.lr_warmup_steps_ratio * total_steps)

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / (warmup + 1)
        if config.lr_scheduler == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (update - warmup) / max(1, total_steps - warmup))))

    return factor


class LearningRate:
    """Sets an optimiser's learning rate by the number of updates behind it.

    A checkpoint brings that number back, not the rate: after a resume the rate is that of the run's own configuration.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, lr: float, factor: Callable[[int], float]) -> None:
        self._optimizer, self._lr, self._factor = optimizer, lr, factor
        self.last_epoch = 0
        """Updates done; the name is that of torch's schedulers."""
        self._apply()

    def step(self) -> None:
        self.last_epoch += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Learning rate of the coming update, for each group of parameters."""
        return [group["lr"] for group in self._optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.last_epoch = state["last_epoch"]
        self._apply()

    def _apply(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * self._factor(self.last_epoch)
