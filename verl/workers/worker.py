"""One rank: policy and rollout engine in one process, with the tensors of the step that is under way.

The driver hands in prompts and gets text back; tokens, patches and log-probabilities never leave the worker. A rank
keeps the same prompts from generation to update, so images come to it once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from transformers.utils.logging import disable_progress_bar

from verl.config import Config
from verl.engines import open_engine
from verl.engines.base import Sampling
from verl.engines.generation import samplings
from verl.engines.inputs import PromptInputs, process
from verl.engines.pretrained import load_processor
from verl.protocol import Batch, Prompt, Rollout
from verl.utils import logs, runtime
from verl.workers import checkpoint
from verl.workers.actor import Actor, updates_per_step


class Worker:
    """Policy and engine of one rank. Every method is called on all ranks together: inside are collectives."""

    def __init__(self, config: Config, *, total_steps: int) -> None:
        """The environment holds RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as for torch.distributed. `total_steps`
        are the RL steps of the whole run."""
        self.config = config
        model_path = config.worker.actor.model.model_path
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        logs.configure(f"rank {rank}")
        # ranks that wait for one that hangs give up later than the driver, which knows how to go on
        limit_s = max(1800.0, 2 * config.trainer.stuck_after)
        runtime.join(rank=rank, world_size=ranks, init_method="env://", timeout_s=limit_s)
        runtime.seed_all(config.data.seed)
        disable_progress_bar()  # a "Loading weights" from every rank tells nobody anything
        self.processor = load_processor(model_path)
        actor = config.worker.actor
        self.updates = updates_per_step(actor, rollout_batch_size=config.data.rollout_batch_size)
        """Optimiser steps of one RL step."""
        self.actor = Actor(actor, temperature=config.worker.rollout.temperature, total_steps=total_steps * self.updates)
        rollout, data = config.worker.rollout, config.data
        longest = rollout.max_model_len or data.max_prompt_length + data.max_response_length
        self.engine = open_engine(
            model_path,
            config=replace(rollout, max_model_len=longest),
            device=self.actor.device,
            dtype=self.actor.compute_dtype,
        )
        self.samplings = samplings(config)
        self._batch = Batch()
        self.sync_weights()

    def sync_weights(self) -> None:
        """Give the engine the policy's weights."""
        self.engine.wake()
        self.engine.sync_weights(self.actor.weights())
        self.actor.offload()

    def stale_weights(self) -> dict[str, float]:
        """Weights that the engine does not hold as the policy sent them, with their relative distance."""
        return self.engine.stale_weights()

    def generate(self, prompts: Sequence[Prompt], *, step: int) -> list[Rollout]:
        """Draw a group of replies to each of this rank's prompts and keep them for the rest of the step, the
        `step`-th from 0."""
        logs.set_step(step + 1)
        n, sampling = self.config.worker.rollout.n, self.samplings["training"]
        self._batch, rollouts = self._draw(prompts, n=n, sampling=sampling, step=step)
        self.engine.sleep()
        self.actor.reload()
        return rollouts

    def validate(self, prompts: Sequence[Prompt]) -> list[Rollout]:
        """One greedy reply to each of this rank's prompts; nothing is kept."""
        self.engine.wake()
        return self._draw(prompts, n=1, sampling=self.samplings["validation"], step=0)[1]

    def _draw(self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, step: int) -> tuple[Batch, list[Rollout]]:
        """`n` replies to each prompt, prompt after prompt: as tensors, and as what the driver gets to know of them."""
        longest = self.config.data.max_prompt_length
        inputs: list[PromptInputs] = []
        for prompt in prompts:
            if isinstance(prompt.images, ray.ObjectRef):
                prompt = replace(prompt, images=ray.get(prompt.images))
            inputs.append(process(prompt, self.processor, max_length=longest))
        seeds = [runtime.derive(self.config.data.seed, step, prompt.uid) for prompt in prompts]
        batch = self.engine.generate(inputs, n=n, sampling=sampling, seeds=seeds)
        batch.lists["inputs"] = [item for item in inputs for _ in range(n)]
        lengths = [int(batch["response_mask"][row].sum()) for row in range(len(batch))]
        texts = [
            self.processor.tokenizer.decode(
                batch["responses"][row, :length], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for row, length in enumerate(lengths)
        ]
        rollouts = [
            Rollout(
                uid=prompts[row // n].uid,
                index=row % n,
                text=text,
                prompt_tokens=len(batch["inputs"][row]),
                response_tokens=lengths[row],
                finished=bool(batch["finished"][row]),
            )
            for row, text in enumerate(texts)
        ]
        return batch, rollouts

    def add_logprobs(self) -> dict[str, float]:
        """Compute and keep the actor's log-probabilities of the kept replies; how far the engine's are from them."""
        self._batch = self._batch.with_tensors(old_logprobs=self.actor.logprobs(self._batch))
        return logprob_gap(self._batch)

    def add_reference_logprobs(self) -> None:
        """Compute and keep the reference policy's log-probabilities of the kept replies."""
        self._batch = self._batch.with_tensors(ref_logprobs=self.actor.reference_logprobs(self._batch))

    def update(
        self, advantages: Sequence[float], kept: Sequence[bool], mini_batches: Sequence[int]
    ) -> dict[str, float]:
        """Train on the kept replies: one optimiser step per mini-batch number, in order, the same on every rank.

        `advantages`, `kept` (dynamic sampling may leave rows out) and the mini-batch number are by row. Returns the
        metrics of the last update that had something to learn from, or of the last one if none had; ``skipped`` and
        ``empty`` are sums over all.
        """
        batch = self._batch.with_tensors(advantages=torch.tensor(list(advantages), dtype=torch.float32))
        done: list[dict[str, float]] = []
        epochs = self.config.worker.actor.ppo_epochs
        for number in [*range(self.updates // epochs)] * epochs:
            rows = [row for row in range(len(advantages)) if mini_batches[row] == number and kept[row]]
            done.append(self.actor.update(batch.select(rows) if rows else Batch()))
        shown = next((stats for stats in reversed(done) if not stats["empty"]), done[-1])
        sums = {name: sum(stats[name] for stats in done) for name in ("skipped", "empty")}
        return {**shown, **sums, "memory_gib": runtime.peak_memory_gib(self.actor.device)}

    def save(self, folder: Path, progress: dict[str, Any], asked: dict[str, Any] | None = None) -> None:
        """Write a checkpoint. `asked` says how the policy is to be prompted, in the task's terms; it is kept for the
        export."""
        checkpoint.save(folder, self.actor, progress, asked=asked or {})

    def load(self, folder: Path, *, verified: bool = False) -> None:
        """Go on from a checkpoint, which the caller has verified or not; see `checkpoint.load`."""
        checkpoint.load(folder, self.actor, verified=verified)
        self.sync_weights()


def logprob_gap(batch: Batch) -> dict[str, float]:
    """Mean and largest distance between the engine's and the actor's log-probabilities of the drawn tokens."""
    if not len(batch):
        return {"mean": 0.0, "max": 0.0, "tokens": 0.0}
    mask = batch["response_mask"].bool()
    gaps = (batch["engine_logprobs"] - batch["old_logprobs"].cpu()).abs()[mask]
    return {"mean": float(gaps.mean()), "max": float(gaps.max()), "tokens": float(mask.sum())}
