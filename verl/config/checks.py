"""Checks single values and combinations of them, and finds values that the chosen parts never read."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from verl.config.loading import PLUGINS, ConfigError, defaults, flatten, leaves, nearest
from verl.config.records import Config
from verl.utils import plugins

NEEDED = {
    "data.name": "the data set plug-in",
    "data.train_files": "what it trains on, such as a folder",
    "worker.actor.model.model_path": "the folder of the checkpoint to start from",
    "worker.reward.compute_score": "the reward plug-in",
}

log = logging.getLogger(__name__)


def check(config: Config) -> None:
    """ConfigError that lists all that is unset, out of bounds, unknown or contradictory, if anything is; a warning that
    names what is `unread`."""
    problems = [*_wrong_values(config), *_contradictions(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    ignored = [f"{key} (because {why})" for key, why in unread(config).items()]
    if ignored:
        log.warning("set, but not read by the parts of this run: %s", ", ".join(ignored))


def unread(config: Config) -> dict[str, str]:
    """Keys with another value than their default that the chosen parts never read, and the setting that is why."""
    worker = config.worker
    vllm = [
        "tensor_parallel_size",
        "gpu_memory_utilization",
        "max_model_len",
        "enable_chunked_prefill",
        "enforce_eager",
    ]
    rules = [
        (worker.rollout.name == "hf", "worker.rollout.name=hf", [f"worker.rollout.{name}" for name in vllm]),
        (worker.rollout.name == "vllm", "worker.rollout.name=vllm", ["worker.rollout.batch_size"]),
        (
            not worker.actor.use_kl_loss,
            "worker.actor.use_kl_loss=false",
            ["worker.actor.kl_loss_coef", "worker.actor.kl_loss_type"],
        ),
        (
            worker.actor.model.lora.rank == 0,
            "worker.actor.model.lora.rank=0",
            ["worker.actor.model.lora.alpha", "worker.actor.model.lora.target_modules"],
        ),
        (not config.algorithm.drop_equal_groups, "algorithm.drop_equal_groups=false", ["trainer.max_empty_steps"]),
    ]
    now, default = flatten(config), flatten(defaults(config))
    return {key: why for holds, why, keys in rules if holds for key in keys if now[key] != default[key]}


def _wrong_values(config: Config) -> Iterator[str]:
    """Values that are unset, out of their field's bounds, or none of the names that it knows."""
    found = leaves(config)
    for key, meaning in NEEDED.items():
        if not found[key].value:
            there = f"; installed are {', '.join(plugins.names(PLUGINS[key][0]))}" if key in PLUGINS else ""
            yield f"{key} is not set: give {meaning}{there}"
    for key, leaf in found.items():
        value, rules = leaf.value, leaf.field.metadata
        for name in value if isinstance(value, list) else [value]:
            if "known" in rules and name not in rules["known"]:
                reason = rules["why_not"].get(name)
                yield f"{key}={name}: known are {', '.join(rules['known'])}{f'; {reason}' if reason else ''}"
        entries = value if isinstance(value, dict) else {"": value}
        for entry, number in entries.items():
            if isinstance(number, bool) or not isinstance(number, int | float) or number == rules.get("also"):
                continue
            least, most = rules.get("least"), rules.get("most", math.inf)
            shown = f"{key}.{entry}={number}" if entry else f"{key}={number}"
            if least is None and number <= 0:
                yield f"{shown}: must be more than 0"
            elif least is not None and not number >= least:
                yield f"{shown}: must be {least:g} or more"
            elif number > most:
                yield f"{shown}: must be {most:.10g} at most"
    for key in config.trainer.accept_changes:
        if key not in found:
            yield f"trainer.accept_changes names {key!r}, which is no key; the nearest is {nearest(key, found)!r}"


def _contradictions(config: Config) -> Iterator[str]:
    """Values that cannot go together."""
    actor, rollout, reward, trainer = config.worker.actor, config.worker.rollout, config.worker.reward, config.trainer
    if actor.global_batch_size > 0 and config.data.rollout_batch_size % actor.global_batch_size:
        yield (
            f"worker.actor.global_batch_size={actor.global_batch_size} does not divide "
            f"data.rollout_batch_size={config.data.rollout_batch_size}: both count prompts, and a step must hold "
            "a whole number of updates"
        )
    if config.data.seed >= 2**32:
        yield f"data.seed={config.data.seed}: must be less than 2^32, which is what NumPy's generators take"
    for beta in actor.optim.betas:
        if not 0 <= beta < 1:
            yield f"worker.actor.optim.betas holds {beta}: both must be 0 or more and less than 1"
    if rollout.name not in ("hf", "vllm") and ":" not in rollout.name:
        yield f"worker.rollout.name={rollout.name}: known are hf and vllm; your own is package.module:attribute"
    if rollout.n == 1 and config.algorithm.adv_estimator != "reinforce_pp":
        yield (
            f"worker.rollout.n=1: {config.algorithm.adv_estimator} compares the replies to one prompt with each "
            "other; take 2 or more"
        )
    if config.algorithm.drop_equal_groups and config.algorithm.adv_estimator == "reinforce_pp":
        yield (
            "algorithm.drop_equal_groups=true: reinforce_pp compares a reply with the whole batch, so that a group "
            "of equal rewards teaches as any other; take false, or grpo, dr_grpo or rloo"
        )
    if actor.model.lora.rank > 0 and not actor.model.lora.target_modules.strip(" ,"):
        yield "worker.actor.model.lora.target_modules names no module: give all-linear, or names such as q_proj"
    ranks = trainer.nnodes * trainer.n_gpus_per_node
    beside = math.ceil(reward.num_workers / ranks) if ranks > 0 else 0
    taken = beside * reward.num_gpus_per_worker
    if taken >= 1:
        yield (
            f"worker.reward.num_gpus_per_worker={reward.num_gpus_per_worker}: {reward.num_workers} reward "
            f"worker(s) on {ranks} GPU(s) are {beside} beside a rank, which take {taken:g} of its GPU; the sum "
            "must be less than 1, for the rank has what is left"
        )
    if rollout.name == "vllm" and rollout.tensor_parallel_size > 0 and ranks % rollout.tensor_parallel_size:
        yield (
            f"worker.rollout.tensor_parallel_size={rollout.tensor_parallel_size} does not divide the {ranks} "
            "processes of trainer.nnodes x trainer.n_gpus_per_node"
        )
    room, longest = rollout.max_model_len, config.data.max_prompt_length + config.data.max_response_length
    if 0 < room < longest:
        yield (
            f"worker.rollout.max_model_len={room}: a prompt and its reply may have {longest} tokens "
            "(data.max_prompt_length + data.max_response_length); 0 makes room for them"
        )
    if len(set(trainer.logger)) < len(trainer.logger):
        yield f"trainer.logger={','.join(trainer.logger)}: each once, or every line is written twice"
    if not trainer.save_checkpoint_path.strip():
        yield "trainer.save_checkpoint_path is empty: give a folder for the run"
