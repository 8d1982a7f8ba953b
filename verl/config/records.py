"""The whole configuration as typed records. Names and defaults are those of the released YAML where it has them.

A plug-in extends `DataConfig` or `RewardConfig` by a record of its own, see `verl.utils.plugins`; its keys then stand
beside those here. A number must be more than 0 and a text may be any, unless the field says otherwise by `number`,
`one_of` or `names_file`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeVar

Number = TypeVar("Number", int, float)


def number(default: Number, *, least: float | None = None, most: float = math.inf, also: float | None = None) -> Number:
    """A number from `least` (None: more than 0) to `most`, or the one `also`."""
    return field(default=default, metadata={"least": least, "most": most, "also": also})


def one_of(*known: str, why_not: dict[str, str] | None = None) -> str:
    """One of the `known` names, by default the first. `why_not`: reasons why names that one could expect are none."""
    return field(default=known[0], metadata={"known": known, "why_not": why_not or {}})


def names_file(default: str = "") -> str:
    """The path of a file or a checkpoint folder, whose contents a resumed run must find as they were."""
    return field(default=default, metadata={"file": True})


@dataclass
class DataConfig:
    name: str = ""
    """Data set plug-in: an entry point of ``verl.datasets``, or ``package.module:attribute``."""
    train_files: str = ""
    """The training data: a folder, a file, or names that the plug-in reads."""
    val_files: str = ""
    """The validation data, in the same form. If empty, the plug-in chooses, for example train_files."""
    max_prompt_length: int = 7100
    """Largest number of tokens of a prompt, images included."""
    filter_overlong_prompts: bool = True
    """Leave out prompts that may be longer, and report their number. If false, the run refuses to start with them."""
    max_response_length: int = 1024
    """Largest number of tokens of a reply."""
    rollout_batch_size: int = 16
    """Number of prompts per step."""
    val_batch_size: int = 16
    """Number of validation prompts that are answered together."""
    val_limit: int = 64
    """Largest number of validation prompts. They are drawn with the seed: one of every group before two of any."""
    shuffle: bool = True
    """Shuffle the training prompts in each epoch."""
    seed: int = number(42, least=0)
    """Seed of everything random in the run."""


@dataclass
class AlgorithmConfig:
    adv_estimator: str = one_of("grpo", "dr_grpo", "rloo", "reinforce_pp")
    """Advantage estimator: grpo, dr_grpo, rloo or reinforce_pp."""
    drop_equal_groups: bool = False
    """Dynamic sampling: leave groups whose replies all have the same reward out of the update. Not allowed with
    reinforce_pp, which compares with the whole batch."""


@dataclass
class LoraConfig:
    rank: int = number(0, least=0)
    """Rank of the LoRA adapter; 0 trains all weights."""
    alpha: int = 16
    target_modules: str = "all-linear"
    """``all-linear`` (the linear layers of the language model), or a comma-separated list of module names."""


@dataclass
class ModelConfig:
    model_path: str = names_file()
    """The model to train: a checkpoint folder or a hub name."""
    enable_gradient_checkpointing: bool = True
    freeze_vision_tower: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class OptimConfig:
    lr: float = 1e-6
    weight_decay: float = number(1e-2, least=0)
    betas: tuple[float, float] = (0.9, 0.999)
    lr_warmup_steps_ratio: float = number(0.0, least=0, most=1)
    """Share of the run over which the learning rate rises to lr."""
    lr_scheduler: str = one_of("constant", "cosine")
    """Learning-rate schedule: constant or cosine."""


@dataclass
class FSDPConfig:
    torch_dtype: str = one_of(
        "bfloat16",
        "float32",
        why_not={"float16": "take bfloat16: small gradients would vanish in float16, for there is no loss scaling"},
    )
    """Number type of the forward and backward passes on a GPU, bfloat16 or float32. Parameters and optimiser state are
    float32. On a CPU everything is float32."""
    param_offload: bool = False
    """Keep parameters on the CPU between passes."""
    optimizer_offload: bool = False
    """Keep optimiser state on the CPU between updates."""


@dataclass
class ActorConfig:
    global_batch_size: int = 16
    """Number of prompts per optimiser step; it divides data.rollout_batch_size."""
    micro_batch_size_per_device_for_update: int = 1
    """Number of rollouts per forward and backward pass."""
    micro_batch_size_per_device_for_experience: int = 1
    """Number of rollouts per pass that only computes log-probabilities."""
    max_tokens_per_micro_batch: int = number(0, least=0)
    """Largest number of tokens of a micro-batch; 0 limits micro-batches by their number of rollouts instead."""
    share_prompts: bool = True
    """Process a prompt once for all of its replies in a micro-batch. If false, it is processed once for each reply.
    The numbers are the same."""
    ppo_epochs: int = 1
    use_kl_loss: bool = True
    kl_loss_coef: float = number(5e-3, least=0)
    kl_loss_type: str = one_of("low_var_kl", "kl", "mse")
    """Estimator of the KL divergence: low_var_kl, kl or mse."""
    entropy_coeff: float = number(1e-3, least=0)
    """Weight of the entropy bonus. The default is the released code's; the released YAML does not change it."""
    policy_loss: str = one_of("ppo_clip", "gspo")
    """Policy loss: ppo_clip or gspo."""
    clip_ratio: float = number(0.2, most=1)
    clip_ratio_high: float | None = None
    """Upper clip ratio; null takes clip_ratio."""
    loss_agg_mode: str = one_of("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")
    """Aggregation of the loss: token-mean, seq-mean-token-mean or seq-mean-token-sum."""
    max_grad_norm: float = 1.0
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    fsdp: FSDPConfig = field(default_factory=FSDPConfig)


@dataclass
class RolloutConfig:
    name: str = "hf"
    """Engine: hf, vllm, or ``package.module:attribute``."""
    generation_defaults: str = one_of("plain", "checkpoint")
    """``plain`` draws replies with the settings of this section, from the distribution that the actor scores.
    ``checkpoint`` adds the repetition penalty and, where top_k is -1, the top-k of the checkpoint's
    ``generation_config.json``."""
    n: int = 8
    """Group size: the number of replies to each prompt."""
    temperature: float = 1.0
    top_p: float = number(1.0, most=1)
    top_k: int = number(-1, also=-1)
    batch_size: int = 16
    """hf: number of rollouts that are drawn together."""
    tensor_parallel_size: int = 1
    """vllm: number of ranks that share one copy of the weights."""
    gpu_memory_utilization: float = number(0.25, most=1)
    max_model_len: int = number(0, least=0)
    """vllm: largest number of tokens of prompt and reply; 0 takes data.max_prompt_length + data.max_response_length."""
    enable_chunked_prefill: bool = False
    enforce_eager: bool = False
    logprob_tolerance: float = 0.1
    """The run stops if the mean gap between the engine's and the actor's log-probabilities is larger than this."""


@dataclass
class RewardConfig:
    reward_type: str = one_of("function")
    compute_score: str = ""
    """Reward plug-in: an entry point of ``verl.rewards``, or ``package.module:attribute``."""
    num_workers: int = 1
    num_cpus_per_worker: float = number(1.0, least=0)
    num_gpus_per_worker: float = number(0.0, least=0)
    timeout_s: float = 600.0
    """Seconds for scoring the replies to one prompt, after which the worker is replaced."""
    max_retries: int = number(2, least=0)
    """Number of times that a prompt is scored again on a new worker before the run stops."""
    options: dict[str, str] = field(default_factory=dict)
    """Further settings of a plug-in that has no record of its own."""


@dataclass
class WorkerConfig:
    actor: ActorConfig = field(default_factory=ActorConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)


@dataclass
class TrainerConfig:
    total_episodes: int = 1
    max_steps: int | None = None
    project_name: str = "veason-r1"
    experiment_name: str = "grpo"
    logger: list[str] = field(
        default_factory=lambda: ["console", "jsonl"],
        metadata={"known": ("console", "jsonl", "tensorboard", "wandb"), "why_not": {}},
    )
    """Loggers: any of console, jsonl, tensorboard, wandb."""
    nnodes: int = 1
    n_gpus_per_node: int = 2
    """Number of processes per node; they run on the CPU where there is no GPU."""
    val_freq: int = number(0, least=0)
    """Number of steps between validations; 0 never validates."""
    val_before_train: bool = False
    """Validate once before the first step."""
    save_freq: int = number(50, least=0)
    """Number of steps between checkpoints; 0 saves only after the last step."""
    save_checkpoint_path: str = "checkpoints"
    """The folder of the run."""
    keep_last: int = 2
    """Number of checkpoints that are kept, besides the best."""
    resume: str = "auto"
    """``auto`` continues from the run's last checkpoint, ``never`` starts anew, and a checkpoint folder is where a new
    run starts; run again, it continues from its own checkpoints."""
    accept_changes: list[str] = field(default_factory=list)
    """Keys that may differ from those of the checkpoint that is resumed, such as [worker.actor.optim.lr]. Without it, a
    resumed run may change only its length, limits, machines, logging and saving."""
    max_restarts: int = number(3, least=0)
    """Number of times that the run restarts from its last checkpoint after it lost a worker or node."""
    placement_timeout_s: float = 120.0
    """Seconds to wait for resources of the cluster, at the start and after a loss. Then the run stops and says which
    resources are missing."""
    stuck_after: float = number(3600.0, least=0)
    """Seconds after which ranks that have not finished a part of a step count as lost, like a dead rank; 0 turns this
    off. It must exceed the time of the longest part: loading the model, generating, updating, saving."""
    max_bad_steps: int = number(3, least=0)
    """Number of skipped steps (loss not finite) in a row that are tolerated; one more stops the run."""
    max_empty_steps: int = number(10, least=0)
    """Number of steps in a row that are tolerated in which algorithm.drop_equal_groups left no group; one more stops
    the run."""
    rollouts_kept: int = number(4, least=0)
    """Number of rollouts per step that are written as text."""


@dataclass
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
