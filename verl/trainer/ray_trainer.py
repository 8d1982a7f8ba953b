"""The loop of GRPO: draw groups of replies, score them, compare within the groups, update, repeat."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch

from verl import core_algos
from verl.config import Config, ConfigError
from verl.engines import generation
from verl.protocol import Prompt, Reward, Rollout
from verl.ray import placement
from verl.ray.group import WorkerGroup
from verl.trainer import RunStopped, metrics, run_folder
from verl.trainer.prompts import Schedule, batches, open_prompts
from verl.utils import logs
from verl.utils.tracking import MetricsLog
from verl.workers import checkpoint
from verl.workers.reward import RewardPool
from verl.workers.worker import Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Groups:
    """The rollouts of a step, group by group in the order of the prompts, and who holds them."""

    prompts: list[Prompt]
    rollouts: list[list[Rollout]]
    """One group per prompt."""
    ranks: int

    def by_rank(self, values: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """Values by group and reply, as each rank holds its rows: rank r has groups r, r + ranks, …"""
        return [[value for group in values[rank :: self.ranks] for value in group] for rank in range(self.ranks)]

    @property
    def texts(self) -> list[list[str]]:
        return [[rollout.text for rollout in group] for group in self.rollouts]


class RayTrainer:
    """Trains one policy as its configuration says, from the last checkpoint if there is one."""

    def __init__(self, config: Config, *, apart: bool = True) -> None:
        """With `apart`, as many ranks run on each node as configured; without it, as after a loss, wherever there is
        room."""
        self.config = config
        self.folder = Path(config.trainer.save_checkpoint_path)
        self.prompts = open_prompts(config)
        self.inputs = run_folder.find_inputs(
            config, {"data.train_files": self.prompts.train, "data.val_files": self.prompts.held_out}
        )
        self.past = run_folder.read_past(config, run_folder.find_past(config))
        if self.past is not None:
            checkpoint.verify(self.past.folder)
            for line in run_folder.check_inputs(config, self.past, self.inputs):
                log.info("resumed with a change: %s", line)
        data = config.data
        self.schedule = Schedule(len(self.prompts.train), data.rollout_batch_size, data.seed, data.shuffle)
        steps = self.schedule.steps_per_epoch * config.trainer.total_episodes
        self.total_steps = min(steps, config.trainer.max_steps or steps)
        self.first_step = self.past.step if self.past else 0
        self.bad_steps = self.empty_steps = 0
        self.best = run_folder.best_so_far(self.past, self.prompts.validation_hash())
        with ExitStack() as opened:
            if self.first_step < self.total_steps:
                self._open_workers(opened, apart=apart)
            self._opened = opened.pop_all()  # all came up: from here on `close` ends them

    def _open_workers(self, opened: ExitStack, *, apart: bool) -> None:
        """Ranks first, then the reward workers, on the ranks' GPUs where they want a share of one."""
        trainer, reward = self.config.trainer, self.config.worker.reward
        ranks = trainer.nnodes * trainer.n_gpus_per_node
        beside = math.ceil(reward.num_workers / ranks)
        shared = reward.num_gpus_per_worker > 0
        cpus = reward.num_cpus_per_worker
        placement.connect(address=os.environ.get("RAY_ADDRESS"), cpus=ranks + reward.num_workers * cpus)
        gpu = {"GPU": 1.0} if ray.cluster_resources().get("GPU", 0) > 0 else {}
        longer = "free what other runs hold, or wait longer (trainer.placement_timeout_s)"
        ranks_place = placement.reserve_ranks(
            trainer.nnodes,
            trainer.n_gpus_per_node,
            {"CPU": 1 + beside * cpus * shared, **gpu},
            apart=apart,
            remedy=f"Set trainer.nnodes and trainer.n_gpus_per_node to what there is, {longer}",
            timeout_s=trainer.placement_timeout_s,
        )
        opened.callback(ranks_place.free)
        reward_place = ranks_place
        if not shared and cpus > 0:
            reward_place = placement.reserve(
                1,
                reward.num_workers,
                {"CPU": cpus},
                wanted=f"{reward.num_workers} reward worker(s)",
                remedy="The ranks have theirs. Set worker.reward.num_workers and worker.reward.num_cpus_per_worker to "
                f"what is left, {longer}",
                timeout_s=trainer.placement_timeout_s,
            )
            opened.callback(reward_place.free)
        share = 1.0 - beside * reward.num_gpus_per_worker
        self.group = WorkerGroup(
            Worker,
            self.config,
            total_steps=self.total_steps,
            placement=ranks_place,
            gpu_share=share,
            stuck_after=trainer.stuck_after,
            stuck_key="trainer.stuck_after",
            user_error=ConfigError,
        )
        opened.callback(self.group.shutdown)
        slots = [reward_place.slot(number) for number in range(len(reward_place))]
        self.rewards = RewardPool(reward, reward.compute_score, slots=slots)
        opened.callback(self.rewards.close)

    @property
    def on_policy(self) -> bool:
        """True if there is one update per batch. The replies then come from the weights that are updated, so the ratio
        is 1 and the update's own log-probabilities are compared with the engine's; no separate pass is needed."""
        actor = self.config.worker.actor
        return actor.ppo_epochs == 1 and actor.global_batch_size == self.config.data.rollout_batch_size

    def fit(self) -> None:
        """Run the steps that are left."""
        if self.first_step >= self.total_steps:
            log.info("nothing is left to do: %d steps are done of %d", self.first_step, self.total_steps)
            return
        if self.past is not None:
            self.group.call("load", self.past.folder, verified=True)  # in __init__
            log.info("resuming after step %d from %s", self.past.step, self.past.folder)
        for note in self.prompts.notes:
            log.info("note: %s", note)
        run_folder.keep_config(self.config, self.folder)
        self.prompts.record(self.folder)
        generation.record(self.config, self.folder)
        self.metrics_log = MetricsLog(
            self.config,
            self.folder,
            first_step=self.first_step,
            total_steps=self.total_steps,
            goes_on=self.past is not None and self.past.own,
        )
        with self.metrics_log:
            if self.config.trainer.val_before_train and self.first_step == 0:
                self.metrics_log.write(0, self.validate(), {})
            left = range(self.first_step, self.total_steps)
            for step, prompts in zip(left, batches(self.prompts.train, self.schedule, left), strict=True):
                logs.set_step(step + 1)
                timer = metrics.Timer()
                groups, rewards, stats = self.train_step(step, prompts, timer)
                self.finish_step(step + 1, groups, rewards, stats, timer)

    def train_step(
        self, step: int, prompts: list[Prompt], timer: metrics.Timer
    ) -> tuple[Groups, list[list[Reward]], dict[str, float]]:
        """One step of GRPO, from prompts to synchronised weights: its rollouts, their rewards, the update's metrics."""
        with timer("generate"):
            groups = self.draw("generate", prompts, n=self.config.worker.rollout.n, step=step)
        pending = self.rewards.submit(groups.prompts, groups.texts)  # runs beside the next two passes
        if not self.on_policy:
            with timer("logprobs"):
                gap = metrics.engine_gap(self.group.call("add_logprobs"))
                self.stop_if_engine_differs(gap)
        with timer("reference"):
            if self.config.worker.actor.use_kl_loss:
                self.group.call("add_reference_logprobs")
        with timer("reward"):
            rewards = pending.result()
        with timer("update"):
            stats = self.update(groups, rewards)
        own = {"engine/gap_mean": stats.pop("actor/engine_gap"), "engine/gap_max": stats.pop("actor/engine_gap_max")}
        if self.on_policy:
            gap = own
            if stats["group/dropped"] == 1:  # no reply was looked at, and no distance is no agreement
                gap = metrics.engine_gap(self.group.call("add_logprobs"))
            self.stop_if_engine_differs(gap)  # before anything of this update is saved
        with timer("sync"):
            self.group.call("sync_weights")
        timer.seconds |= metrics.prefixed("reward", pending.metrics())
        return groups, rewards, {**stats, **gap}

    def finish_step(
        self, done: int, groups: Groups, rewards: list[list[Reward]], stats: dict[str, float], timer: metrics.Timer
    ) -> None:
        """Log the step, and validate and save where due. `done` is the number of steps done."""
        trainer, last = self.config.trainer, done == self.total_steps
        memory = stats.pop("actor/memory_gib")
        rollouts = [rollout for group in groups.rollouts for rollout in group]
        values = {**metrics.reward_metrics(rewards), **metrics.length_metrics(rollouts), **stats}
        values |= self.prompts.metrics()
        if trainer.rollouts_kept > 0:
            by_prompt = zip(groups.prompts, groups.rollouts, rewards, strict=True)
            rows = [(prompt, *row) for prompt, *pair in by_prompt for row in zip(*pair, strict=True)]
            shown = [metrics.readable(rollout, reward, note=prompt.note) for prompt, rollout, reward in rows]
            path = self.folder / "rollouts" / f"step_{done:06d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(shown[: trainer.rollouts_kept]), encoding="utf-8", errors="replace")
        if self.prompts.held_out is not None and trainer.val_freq > 0 and (done % trainer.val_freq == 0 or last):
            with timer("validate"):
                values |= self.validate()
        self.metrics_log.write(done, values, {**timer.seconds, "memory_gib": memory})
        self.stop_if_nothing_is_learned(skipped=values["actor/skipped"] > 0, empty=values["group/dropped"] == 1)
        if last or (trainer.save_freq > 0 and done % trainer.save_freq == 0):
            self.save(done, values.get("val/reward/total"))

    def draw(self, method: str, prompts: Sequence[Prompt], *, n: int, **arguments: Any) -> Groups:
        """`n` replies to each prompt, by a method of the workers. Rank r has prompts r, r + ranks, …

        Images go into Ray's object store first, so that they are moved once to whoever needs them.
        """
        prompts, ranks = [replace(prompt, images=ray.put(prompt.images)) for prompt in prompts], len(self.group)
        drawn = self.group.call_each(method, [prompts[rank::ranks] for rank in range(ranks)], **arguments)
        by_prompt = [drawn[i % ranks][i // ranks * n : (i // ranks + 1) * n] for i in range(len(prompts))]
        return Groups(prompts=prompts, rollouts=by_prompt, ranks=ranks)

    def update(self, groups: Groups, rewards: list[list[Reward]]) -> dict[str, float]:
        """Compare the rewards within their groups and train on the result."""
        totals_B = torch.tensor([reward.total for group in rewards for reward in group])
        groups_B = torch.tensor([number for number, group in enumerate(rewards) for _ in group])
        advantages_B = core_algos.group_advantages(totals_B, groups_B, estimator=self.config.algorithm.adv_estimator)
        kept_B = torch.ones_like(groups_B, dtype=torch.bool)
        if self.config.algorithm.drop_equal_groups:
            kept_B = core_algos.groups_with_spread(totals_B, groups_B)
        n, size = len(rewards[0]), self.config.worker.actor.global_batch_size
        columns = [values.reshape(-1, n).tolist() for values in (advantages_B, kept_B, groups_B // size)]
        stats = self.group.call_each("update", *(groups.by_rank(values) for values in columns))
        return {**metrics.prefixed("actor", stats[0]), "group/dropped": float((~kept_B).float().mean())}

    def validate(self) -> dict[str, float]:
        """Metrics of greedy replies to the held-out prompts, scored by the same reward."""
        held_out, size = self.prompts.held_out, self.config.data.val_batch_size
        assert held_out is not None
        rewards: list[list[Reward]] = []
        for start in range(0, len(held_out), size):
            indices = range(start, min(start + size, len(held_out)))
            groups = self.draw("validate", [held_out.get(index, epoch=0) for index in indices], n=1)
            rewards += self.rewards.submit(groups.prompts, groups.texts).result()
        wanted = ("reward/", "problem/")
        found = {name: value for name, value in metrics.reward_metrics(rewards).items() if name.startswith(wanted)}
        return metrics.prefixed("val", found)

    def stop_if_engine_differs(self, gap: dict[str, float]) -> None:
        """Raise RunStopped where the engine's log-probabilities are too far from the actor's."""
        limit = self.config.worker.rollout.logprob_tolerance
        if not gap["engine/gap_mean"] <= limit:  # NaN is no agreement either
            stale = metrics.describe_stale_weights(self.group.call("stale_weights"))
            raise RunStopped(
                f"the {self.config.worker.rollout.name} engine's log-probabilities are {gap['engine/gap_mean']:.4f} "
                f"from the actor's on average and {gap['engine/gap_max']:.4f} at most "
                f"(worker.rollout.logprob_tolerance is {limit}). {stale}"
            )

    def stop_if_nothing_is_learned(self, *, skipped: bool, empty: bool) -> None:
        """Count the steps in a row without an update; raise RunStopped where there are too many."""
        trainer = self.config.trainer
        self.bad_steps = self.bad_steps + 1 if skipped else 0
        self.empty_steps = self.empty_steps + 1 if empty else 0
        if self.bad_steps > trainer.max_bad_steps:
            raise RunStopped(
                f"{self.bad_steps} steps in a row had a loss or gradient that was not finite "
                "(trainer.max_bad_steps): lower the learning rate or look at the rewards"
            )
        if self.empty_steps > trainer.max_empty_steps:
            raise RunStopped(
                f"{self.empty_steps} steps in a row had nothing to learn from (trainer.max_empty_steps): the replies "
                "to each prompt had all the same reward, and algorithm.drop_equal_groups leaves such groups out. Look "
                "at the rollouts: is every reply right, or none? Harder or easier prompts, a higher "
                "worker.rollout.temperature or more replies (worker.rollout.n) give differences"
            )

    def save(self, step: int, score: float | None) -> None:
        """Write a checkpoint after `step` steps, and delete all but the last few and the best by validation reward."""
        if score is not None and (self.best.score is None or score > self.best.score):
            self.best = replace(self.best, score=score, step=step)
        record = run_folder.progress(self.config, self.inputs, self.past, step=step, **self.best.record())
        self.group.call("save", checkpoint.step_folder(self.folder, step), record, self.prompts.train.asked())
        best = [] if self.best.step is None else [checkpoint.step_folder(self.folder, self.best.step)]
        checkpoint.prune(self.folder, keep_last=self.config.trainer.keep_last, keep=best)

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        self._opened.close()
        logs.set_step(None)
