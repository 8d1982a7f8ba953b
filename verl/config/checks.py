"""What must hold of and between the values; `check` lists all that does not."""

from __future__ import annotations

import math
from collections.abc import Iterator

from verl.config.errors import ConfigError
from verl.config.keys import flatten, get, nearest
from verl.config.records import Config

CHOICES = {
    "algorithm.adv_estimator": ("grpo", "dr_grpo", "rloo", "reinforce_pp"),
    "worker.actor.policy_loss": ("ppo_clip", "gspo"),
    "worker.actor.kl_loss_type": ("low_var_kl", "kl", "mse"),
    "worker.actor.loss_agg_mode": ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum"),
    "worker.actor.optim.lr_scheduler": ("constant", "cosine"),
    "worker.actor.fsdp.torch_dtype": ("bfloat16", "float32"),
    "worker.rollout.generation_defaults": ("plain", "checkpoint"),
    "worker.reward.reward_type": ("function",),
    "worker.reward.preset": ("strict", "released"),
    "trainer.logger": ("console", "jsonl", "tensorboard", "wandb"),
}
"""Known names; for a list, of each item."""

WHY_NOT = {
    ("worker.actor.fsdp.torch_dtype", "float16"): "; take bfloat16: small gradients would vanish in float16, for there "
    "is no loss scaling"
}
"""Names that one could expect to be known, and the reason why they are not."""

NEEDED = {
    "data.name": "the data set plug-in, such as video_seg_keyframe_sft_base_mod",
    "data.train_files": "the root of the training data",
    "worker.actor.model.model_path": "the folder of the checkpoint to start from",
    "worker.reward.compute_score": "the reward plug-in, such as video_match_keyframe_sft_sam_mod",
}

ZERO_TOO = {
    "data.seed",
    "worker.actor.max_tokens_per_micro_batch",
    "worker.actor.kl_loss_coef",
    "worker.actor.entropy_coeff",
    "worker.actor.model.lora.rank",
    "worker.actor.optim.weight_decay",
    "worker.actor.optim.lr_warmup_steps_ratio",
    "worker.rollout.max_model_len",
    "worker.reward.num_cpus_per_worker",
    "worker.reward.num_gpus_per_worker",
    "worker.reward.max_retries",
    "trainer.val_freq",
    "trainer.save_freq",
    "trainer.max_restarts",
    "trainer.max_bad_steps",
    "trainer.max_empty_steps",
    "trainer.stuck_after",
    "trainer.rollouts_kept",
}
"""Numbers that may be 0; all others are more."""

SHARES = (
    "worker.actor.clip_ratio",
    "worker.actor.optim.lr_warmup_steps_ratio",
    "worker.rollout.top_p",
    "worker.rollout.gpu_memory_utilization",
)
"""Numbers that are 1 at most."""


def check(config: Config) -> None:
    """ConfigError that lists all that is unset, out of range, unknown or contradictory, if anything is."""
    problems = [*_unset(config), *_out_of_range(config), *_unknown_names(config), *_contradictions(config)]
    if problems:
        raise ConfigError("\n".join(problems))


def _unset(config: Config) -> Iterator[str]:
    for key, meaning in NEEDED.items():
        if not get(config, key):
            yield f"{key} is not set: give {meaning}"
    if not config.trainer.save_checkpoint_path.strip():
        yield "trainer.save_checkpoint_path is empty: give a folder for the run"


def _out_of_range(config: Config) -> Iterator[str]:
    numbers = {key: value for key, value in flatten(config).items() if type(value) in (int, float)}
    for key, value in numbers.items():
        if value < 0 and key in ZERO_TOO:
            yield f"{key}={value}: must be 0 or more"
        elif value <= 0 and key not in ZERO_TOO and (key, value) != ("worker.rollout.top_k", -1):
            yield f"{key}={value}: must be more than 0"
        elif key in SHARES and value > 1:
            yield f"{key}={value}: must be 1 at most"
    if config.data.seed >= 2**32:
        yield f"data.seed={config.data.seed}: must be less than 2^32, which is what NumPy's generators take"
    for beta in config.worker.actor.optim.betas:
        if not 0 <= beta < 1:
            yield f"worker.actor.optim.betas holds {beta}: both must be 0 or more and less than 1"
    for term, weight in config.worker.reward.weights.items():
        if not 0 <= weight < math.inf:
            yield f"worker.reward.weights.{term}={weight}: must be 0 or more"


def _unknown_names(config: Config) -> Iterator[str]:
    for key, known in CHOICES.items():
        value = get(config, key)
        for name in value if isinstance(value, list) else [value]:
            if name not in known:
                yield f"{key}={name}: known are {', '.join(known)}{WHY_NOT.get((key, name), '')}"
    for name in config.trainer.accept_changes:
        if name not in flatten(config):
            yield f"trainer.accept_changes names {name!r}, which is no key; the nearest is {nearest(name)!r}"
    logger = config.trainer.logger
    if len(set(logger)) < len(logger):
        yield f"trainer.logger={','.join(logger)}: each once, or every line is written twice"
    engine = config.worker.rollout.name
    if engine not in ("hf", "vllm") and ":" not in engine:
        yield f"worker.rollout.name={engine}: known are hf and vllm; your own is package.module:attribute"


def _contradictions(config: Config) -> Iterator[str]:
    actor, rollout, trainer = config.worker.actor, config.worker.rollout, config.trainer
    if actor.global_batch_size > 0 and config.data.rollout_batch_size % actor.global_batch_size:
        yield (
            f"worker.actor.global_batch_size={actor.global_batch_size} does not divide "
            f"data.rollout_batch_size={config.data.rollout_batch_size}: both count prompts, and a step must hold "
            "a whole number of updates"
        )
    if rollout.n == 1 and config.algorithm.adv_estimator != "reinforce_pp":
        yield (
            f"worker.rollout.n=1: {config.algorithm.adv_estimator} compares the replies to one prompt with each other; "
            "take 2 or more"
        )
    if config.algorithm.drop_equal_groups and config.algorithm.adv_estimator == "reinforce_pp":
        yield (
            "algorithm.drop_equal_groups=true: reinforce_pp compares a reply with the whole batch, so that a group of "
            "equal rewards teaches as any other; take false, or grpo, dr_grpo or rloo"
        )
    if actor.model.lora.rank > 0 and not actor.model.lora.target_modules.strip(" ,"):
        yield "worker.actor.model.lora.target_modules names no module: give all-linear, or names such as q_proj,v_proj"
    ranks = trainer.nnodes * trainer.n_gpus_per_node
    reward = config.worker.reward
    beside = math.ceil(reward.num_workers / ranks) if ranks > 0 else 0
    taken = beside * reward.num_gpus_per_worker
    if taken >= 1:
        yield (
            f"worker.reward.num_gpus_per_worker={reward.num_gpus_per_worker}: {reward.num_workers} reward worker(s) on "
            f"{ranks} GPU(s) are {beside} beside a rank, which take {taken:g} of its GPU; the sum must be less than 1, "
            "for the rank has what is left"
        )
    if rollout.name == "vllm" and rollout.tensor_parallel_size > 0 and ranks % rollout.tensor_parallel_size:
        yield (
            f"worker.rollout.tensor_parallel_size={rollout.tensor_parallel_size} does not divide the {ranks} processes "
            "of trainer.nnodes x trainer.n_gpus_per_node"
        )
    room, longest = rollout.max_model_len, config.data.max_prompt_length + config.data.max_response_length
    if 0 < room < longest:
        yield (
            f"worker.rollout.max_model_len={room}: a prompt and its reply may have {longest} tokens "
            "(data.max_prompt_length + data.max_response_length); 0 makes room for them"
        )
