"""The loop: draw groups of replies, judge them, compare within the groups, update, repeat."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from verl.utils.tracking import MetricsLog
from verl.workers import checkpoint
from verl.workers.reward.pool import RewardPool
from verl.workers.worker import Worker


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
        """`apart`: as many ranks per node as configured; without it wherever there is room, as after a loss."""
        self.config = config
        self.folder = Path(config.trainer.save_checkpoint_path)
        self.prompts = open_prompts(config)
        self.dataset, self.held_out = self.prompts.train, self.prompts.held_out
        self.inputs = run_folder.find_inputs(
            config, {"data.train_files": self.dataset, "data.val_files": self.held_out}
        )
        self.past = run_folder.read_past(config, run_folder.find_past(config))
        if self.past is not None:
            checkpoint.verify(self.past.folder)
            for line in run_folder.check_inputs(config, self.past, self.inputs):
                print(f"resumed with a change: {line}", flush=True)
        data = config.data
        self.schedule = Schedule(len(self.dataset), data.rollout_batch_size, data.seed, data.shuffle)
        steps = self.schedule.steps_per_epoch * config.trainer.total_episodes
        self.total_steps = min(steps, config.trainer.max_steps or steps)
        self.bad_steps = self.empty_steps = 0
        self.first_step = self.past.step if self.past else 0
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

    def fit(self) -> None:
        """Run the steps that are left."""
        first_step = self.first_step
        if first_step >= self.total_steps:
            print(f"nothing is left to do: {first_step} steps are done of {self.total_steps}", flush=True)
            return
        self._resume()
        for note in self.prompts.notes:
            print(f"note: {note}", flush=True)
        run_folder.keep_config(self.config, self.folder)
        self.prompts.record(self.folder)
        generation.record(self.config, self.folder)
        goes_on = self.past is not None and self.past.own
        where = {"first_step": first_step, "total_steps": self.total_steps, "goes_on": goes_on}
        with MetricsLog(self.config, self.folder, **where) as self.log:
            if self.config.trainer.val_before_train and first_step == 0:
                self.log.write(0, self._validate(), {})
            left = range(first_step, self.total_steps)
            for step, prompts in zip(left, batches(self.dataset, self.schedule, left), strict=True):
                self._step(step, prompts)

    def _step(self, step: int, prompts: list[Prompt]) -> None:
        timer = Timer()
        with timer("generate"):
            groups = self._generate(_with_shared_images(prompts), step)
        judged = self.rewards.submit(groups.prompts, groups.texts)  # runs beside the next two passes
        if not self.on_policy:
            with timer("logprobs"):
                gap = _worst(self.group.call("add_logprobs"))
                self._guard(gap)
        with timer("reference"):
            if self.config.worker.actor.use_kl_loss:
                self.group.call("add_reference_logprobs")
        with timer("reward"):
            rewards = judged.result()
        with timer("update"):
            stats = self._update(groups, rewards)
        gaps = {"mean": stats.pop("actor/engine_gap"), "max": stats.pop("actor/engine_gap_max")}
        if self.on_policy:
            gap = metrics.prefixed("engine", {f"gap_{name}": value for name, value in gaps.items()})
            if stats["group/dropped"] == 1:  # no reply was looked at, and no distance is no agreement
                gap = _worst(self.group.call("add_logprobs"))
            self._guard(gap)  # before anything of this update is saved
        with timer("sync"):
            self.group.call("sync_weights")
        timer.seconds |= metrics.prefixed("reward", judged.metrics())
        self._finish(step, groups, rewards, {**stats, **gap}, timer)

    @property
    def on_policy(self) -> bool:
        """One update per batch: the replies come from the very weights that are updated, the ratio is 1, and the
        update's own log-probabilities are compared with the engine's; no pass of their own is needed."""
        actor = self.config.worker.actor
        return actor.ppo_epochs == 1 and actor.global_batch_size == self.config.data.rollout_batch_size

    def _generate(self, prompts: list[Prompt], step: int) -> Groups:
        ranks = len(self.group)
        drawn = self.group.call_each("generate", [prompts[rank::ranks] for rank in range(ranks)], step=step)
        n = self.config.worker.rollout.n
        by_prompt = [drawn[i % ranks][i // ranks * n : (i // ranks + 1) * n] for i in range(len(prompts))]
        return Groups(prompts=prompts, rollouts=by_prompt, ranks=ranks)

    def _update(self, groups: Groups, rewards: list[list[Reward]]) -> dict[str, float]:
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

    def _guard(self, gap: dict[str, float]) -> None:
        limit = self.config.worker.rollout.logprob_tolerance
        if not gap["engine/gap_mean"] <= limit:  # NaN is no agreement either
            raise RunStopped(
                f"the {self.config.worker.rollout.name} engine's log-probabilities are {gap['engine/gap_mean']:.4f} "
                f"from the actor's on average and {gap['engine/gap_max']:.4f} at most "
                f"(worker.rollout.logprob_tolerance is {limit}). {_account(self.group.call('stale_weights'))}"
            )

    def _count_bad_steps(self, *, skipped: bool, empty: bool) -> None:
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

    def _finish(
        self, step: int, groups: Groups, rewards: list[list[Reward]], stats: dict[str, float], timer: Timer
    ) -> None:
        """Log the step, validate and save where due."""
        rollouts = [rollout for group in groups.rollouts for rollout in group]
        memory = stats.pop("actor/memory_gib")
        values = {**metrics.reward_metrics(rewards), **metrics.length_metrics(rollouts), **stats}
        values |= self.prompts.metrics()
        self._keep_rollouts(step, groups, [reward for group in rewards for reward in group])
        trainer, last = self.config.trainer, step + 1 == self.total_steps
        if self.held_out is not None and trainer.val_freq > 0 and ((step + 1) % trainer.val_freq == 0 or last):
            with timer("validate"):
                values |= self._validate()
        self.log.write(step + 1, values, {**timer.seconds, "memory_gib": memory})
        self._count_bad_steps(skipped=values["actor/skipped"] > 0, empty=values["group/dropped"] == 1)
        if last or (trainer.save_freq > 0 and (step + 1) % trainer.save_freq == 0):
            self._save(step + 1, values)

    def _validate(self) -> dict[str, float]:
        """Greedy replies to the held-out prompts, judged by the same reward."""
        assert self.held_out is not None
        rewards: list[list[Reward]] = []
        count = len(self.held_out)
        for start in range(0, count, self.config.data.val_batch_size):
            stop = min(start + self.config.data.val_batch_size, count)
            prompts = _with_shared_images([self.held_out.get(index, epoch=0) for index in range(start, stop)])
            ranks = len(self.group)
            drawn = self.group.call_each("validate", [prompts[rank::ranks] for rank in range(ranks)])
            texts = [[drawn[i % ranks][i // ranks].text] for i in range(len(prompts))]
            rewards += self.rewards.submit(prompts, texts).result()
        wanted = ("reward/", "problem/")
        found = {name: value for name, value in metrics.reward_metrics(rewards).items() if name.startswith(wanted)}
        return metrics.prefixed("val", found)

    def _keep_rollouts(self, step: int, groups: Groups, rewards: Sequence[Reward]) -> None:
        kept = self.config.trainer.rollouts_kept
        if kept > 0:
            asked = zip(groups.prompts, groups.rollouts, strict=True)
            shown = [(rollout, prompt.note) for prompt, group in asked for rollout in group][:kept]
            text = "\n".join(
                metrics.readable(rollout, reward, note=note)
                for (rollout, note), reward in zip(shown, rewards[:kept], strict=True)
            )
            path = self.folder / "rollouts" / f"step_{step + 1:06d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="replace")

    def _resume(self) -> None:
        """Load the checkpoint to go on from, if there is one."""
        self.best, self.best_step = None, None
        if self.past is not None:
            self.group.call("load", self.past.folder)
            print(f"resuming after step {self.past.step} from {self.past.folder}", flush=True)
            self.best, self.best_step = self.past.progress["best"], self.past.progress["best_step"]

    def _save(self, step: int, values: dict[str, float]) -> None:
        """A checkpoint after `step` steps; the best by validation reward and the last few are kept."""
        score = values.get("val/reward/total")
        if score is not None and (self.best is None or score > self.best):
            self.best, self.best_step = score, step
        where = {"step": step, "best": self.best, "best_step": self.best_step}
        progress = run_folder.progress(self.config, self.inputs, self.past, **where)
        self.group.call("save", checkpoint.step_folder(self.folder, step), progress, self.dataset.asked())
        best = [] if self.best_step is None else [checkpoint.step_folder(self.folder, self.best_step)]
        checkpoint.prune(self.folder, keep_last=self.config.trainer.keep_last, keep=best)

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        self._opened.close()


class Timer:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def _with_shared_images(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with their images in Ray's object store: moved once to whoever needs them."""
    return [replace(prompt, images=ray.put(prompt.images)) for prompt in prompts]


def _account(found: Sequence[dict[str, float]], *, most: int = 8) -> str:
    """Which weights are to blame, the most distant first: in words, from what each rank found."""
    stale: dict[str, float] = {}
    for of_rank in found:
        stale |= {name: max(value, stale.get(name, 0.0)) for name, value in of_rank.items()}
    if not stale:
        return "It holds all weights as they were sent, so its inputs or its arithmetic differ"
    worst = sorted(stale, key=stale.__getitem__, reverse=True)
    names = ", ".join(f"{name} ({stale[name]:.2g})" for name in worst[:most])
    more = f" and {len(worst) - most} more" if len(worst) > most else ""
    return f"Stale in the engine, with their relative distance from what was sent: {names}{more}"


def _worst(gaps: Sequence[dict[str, float]]) -> dict[str, float]:
    """The engine's gap over all ranks: mean over tokens, largest of all."""
    tokens = sum(gap["tokens"] for gap in gaps)
    mean = sum(gap["mean"] * gap["tokens"] for gap in gaps) / max(tokens, 1.0)
    return {"engine/gap_mean": mean, "engine/gap_max": max(gap["max"] for gap in gaps)}
