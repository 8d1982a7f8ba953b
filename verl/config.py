"""The whole configuration, typed. Names and defaults are those of the released YAML where it has them.

``python -m verl.config config=FILE.yaml key=value …`` prints what a run would use, or what is wrong with it.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml


@dataclass
class DataConfig:
    name: str = ""
    """Data set plug-in: an entry point of ``verl.datasets``, or ``package.module:attribute``."""
    train_files: str = ""
    """Root of the training data."""
    val_files: str = ""
    """Root of the validation data; empty: the training root."""
    train_split: str = "train"
    val_split: str = "valid"
    train_meta: str = ""
    """Another expression file, such as the sampled subset."""
    exclude: str = ""
    """A file of samples to leave out."""
    max_prompt_length: int = 7100
    """Tokens, images included."""
    max_response_length: int = 1024
    rollout_batch_size: int = 16
    """Prompts a step."""
    val_batch_size: int = 16
    val_limit: int = 64
    """Validation prompts at most."""
    sampled_frames: int = 6
    keyframe_resize: int = 560
    """Side in pixels of the frames the policy sees."""
    reference_image_resize: int = 560
    prompt_template: str = ""
    """A file with another wording; empty: the project's."""
    shuffle: bool = True
    seed: int = 42


@dataclass
class AlgorithmConfig:
    adv_estimator: str = "grpo"
    """grpo, dr_grpo, rloo or reinforce_pp."""
    drop_equal_groups: bool = False
    """Dynamic sampling: leave groups whose replies all have the same reward out of the update."""


@dataclass
class LoraConfig:
    rank: int = 0
    """0: train all weights."""
    alpha: int = 16
    target_modules: str = "all-linear"
    """``all-linear`` of the language model, or a comma-separated list of module names."""


@dataclass
class ModelConfig:
    model_path: str = ""
    enable_gradient_checkpointing: bool = True
    freeze_vision_tower: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class OptimConfig:
    lr: float = 1e-6
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    lr_warmup_steps_ratio: float = 0.0
    lr_scheduler: str = "constant"
    """constant or cosine."""


@dataclass
class FSDPConfig:
    torch_dtype: str = "bfloat16"
    """Type of forward and backward on a GPU; parameters and optimiser are float32. CPU runs are float32 throughout."""
    param_offload: bool = False
    """Keep parameters on the CPU between passes."""
    optimizer_offload: bool = False
    """Keep optimiser state on the CPU between updates."""


@dataclass
class ActorConfig:
    global_batch_size: int = 16
    """Prompts per optimiser step; a divisor of data.rollout_batch_size."""
    micro_batch_size_per_device_for_update: int = 1
    micro_batch_size_per_device_for_experience: int = 1
    max_tokens_per_micro_batch: int = 0
    """0: micro-batches by number of rollouts; otherwise by tokens, balanced."""
    ppo_epochs: int = 1
    use_kl_loss: bool = True
    kl_loss_coef: float = 5e-3
    kl_loss_type: str = "low_var_kl"
    """low_var_kl, kl or mse."""
    entropy_coeff: float = 1e-3
    """A released default that its YAML does not override."""
    policy_loss: str = "ppo_clip"
    """ppo_clip or gspo."""
    clip_ratio: float = 0.2
    clip_ratio_high: float | None = None
    """None: as clip_ratio."""
    loss_agg_mode: str = "token-mean"
    """token-mean, seq-mean-token-mean or seq-mean-token-sum."""
    max_grad_norm: float = 1.0
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    fsdp: FSDPConfig = field(default_factory=FSDPConfig)


@dataclass
class RolloutConfig:
    name: str = "hf"
    """Engine: hf, vllm, or ``package.module:attribute``."""
    n: int = 8
    """Group size."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    batch_size: int = 16
    """Rollouts that the hf engine draws together."""
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.25
    enable_chunked_prefill: bool = False
    enforce_eager: bool = False
    logprob_tolerance: float = 0.1
    """Largest mean gap between the engine's and the actor's log-probabilities before the run stops."""


@dataclass
class RewardConfig:
    reward_type: str = "function"
    compute_score: str = ""
    """Reward plug-in: an entry point of ``verl.rewards``, or ``package.module:attribute``."""
    num_workers: int = 1
    num_cpus_per_worker: float = 1.0
    num_gpus_per_worker: float = 0.0
    timeout_s: float = 600.0
    """Seconds one prompt's replies may take before their worker is replaced."""
    max_retries: int = 2
    """How often one prompt's work is redone on a new worker before the run stops."""
    preset: str = "strict"
    """strict or released."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of a term by name, 1 where not named; 0 leaves the term out."""
    tracker: str = "sam2"
    sam2_mode: str = "video"
    sam2_config: str = "configs/sam2.1/sam2.1_hiera_l.yaml"
    sam2_checkpoint: str = ""
    options: dict[str, str] = field(default_factory=dict)
    """Anything a plug-in of your own wants to know."""


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
    logger: list[str] = field(default_factory=lambda: ["console", "jsonl"])
    """Of console, jsonl, tensorboard, wandb."""
    nnodes: int = 1
    n_gpus_per_node: int = 2
    """Processes per node; CPU ranks where there is no GPU."""
    val_freq: int = 0
    """Steps between validations; 0: never."""
    val_before_train: bool = False
    save_freq: int = 50
    save_checkpoint_path: str = "checkpoints"
    keep_last: int = 2
    """Checkpoints kept, besides the best."""
    resume: str = "auto"
    """auto, never, or a checkpoint folder."""
    max_restarts: int = 3
    """How often a lost worker or node may restart the run from its last checkpoint."""
    max_bad_steps: int = 3
    """Skipped steps (loss not finite) in a row that stop the run."""
    rollouts_kept: int = 4
    """Rollouts written as text per step."""


@dataclass
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


class ConfigError(ValueError):
    """A key, value or combination that the user can put right. The message names it, where it stood and the remedy."""


# ---------------------------------------------------------------------------------------------------- loading


def load(argv: Sequence[str]) -> Config:
    """Configuration from command-line arguments: ``config=FILE.yaml`` (at most once, or not at all) and ``key=value``.

    The file is laid over the defaults, the other arguments over both, later ones over earlier. See `check` for what
    must hold between the values.
    """
    pairs = [_split_argument(argument) for argument in argv]
    paths = [Path(value) for key, value in pairs if key == "config"]
    if len(paths) > 1:
        raise ConfigError(f"command line: config= is given {len(paths)} times, wanted once at most")
    config = Config()
    for path in paths:
        for key, value in _leaves(_read_yaml(path)):
            _assign(config, key, value, source=str(path))
    for key, value in pairs:
        if key != "config":
            _assign(config, key, value, source="command line")
    return config


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML that `load` reads back to an equal one."""
    return yaml.dump(_plain(asdict(config)), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def flatten(config: Config) -> dict[str, Any]:
    """Every value by its full key."""
    return dict(_leaves(_plain(asdict(config))))


def describe() -> str:
    """Every key with its default and what its class says about it."""
    notes = {key: note for section, prefix in _classes(Config) for key, note in _notes(section, prefix)}
    lines = []
    for key, value in flatten(Config()).items():
        shown = (value or "''") if isinstance(value, str) else json.dumps(value)
        lines += [f"{key}={shown}", *([f"    {notes[key]}"] if key in notes else [])]
    return "\n".join(lines)


def _classes(section: type, prefix: str = "") -> Iterator[tuple[type, str]]:
    yield section, prefix
    for name, kind in get_type_hints(section).items():
        if is_dataclass(kind):
            yield from _classes(kind, f"{prefix}{name}.")


def _notes(section: type, prefix: str) -> Iterator[tuple[str, str]]:
    """The text beneath each field of a class, which Python itself does not keep."""
    (tree,) = ast.parse(inspect.getsource(section)).body
    for declared, below in itertools.pairwise(tree.body):
        if isinstance(declared, ast.AnnAssign) and isinstance(below, ast.Expr):
            yield f"{prefix}{declared.target.id}", " ".join(below.value.value.replace("``", "").split())


def _split_argument(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals:
        raise ConfigError(f"command line: expected key=value, got {argument!r}")
    return key.strip(), value


class _Dumper(yaml.SafeDumper):
    """Text with line breaks of any kind goes in double quotes, where they are escaped; PyYAML's choice loses some."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar(
            "tag:yaml.org,2002:str", text, style='"' if len(f"{text}.".splitlines()) > 1 else None
        )


_Dumper.add_representer(str, _Dumper.represent_text)


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once; plain YAML silently keeps the last of several."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{min(twice, key=str)!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"config={path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{path}: expected sections such as 'data:', found {type(tree).__name__}")
    return tree or {}


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full key and value of everything in nested sections. A section left empty says nothing."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in _types():
            yield from _leaves(value, f"{key}.")
        elif value is not None or key not in _sections():
            yield key, value


def _assign(config: Config, key: str, value: Any, *, source: str) -> None:
    """Set one value, turned into its field's type. `value` is what YAML made of it, or the text of an argument."""
    owner, entry = _find(key, source)
    kind = _types()[owner]
    try:
        made = {**get(config, owner), entry: _convert(value, get_args(kind)[1])} if entry else _convert(value, kind)
    except _Unfit as unfit:
        shown = "null" if value is None else f"{value!r}"
        raise ConfigError(f"{source}: {key}: expected {unfit}, got {shown}") from None
    section, _, name = owner.rpartition(".")
    setattr(get(config, section), name, made)


def get(config: Config, key: str) -> Any:
    """Value or section of a full key; the configuration itself for an empty one."""
    for name in filter(None, key.split(".")):
        config = getattr(config, name)
    return config


def _find(key: str, source: str) -> tuple[str, str]:
    """The field that a key names, and the entry of it if the field is a dictionary (else empty)."""
    if key in _types():
        return key, ""
    if key in _sections():
        inside = ", ".join(vars(get(Config(), key)))
        raise ConfigError(f"{source}: {key} is a section, not a value; it holds {inside}")
    for owner, kind in _types().items():
        if get_origin(kind) is dict and key.startswith(f"{owner}.") and key != f"{owner}.":
            return owner, key.removeprefix(f"{owner}.")
    raise ConfigError(f"{source}: unknown key {key!r}; the nearest is {_nearest(key)!r}")


def _nearest(key: str) -> str:
    """The known key most like `key`, as a whole and in its last word."""

    def likeness(known: str) -> float:
        last_words = known.rpartition(".")[2], key.rpartition(".")[2]
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in ((known, key), last_words))

    return max(_types(), key=likeness)


@functools.cache
def _types() -> dict[str, Any]:
    """Type of every value by full key, in the order of the classes above."""
    return {key: kind for key, kind in _fields(Config) if not is_dataclass(kind)}


@functools.cache
def _sections() -> frozenset[str]:
    return frozenset(key for key, kind in _fields(Config) if is_dataclass(kind))


def _fields(section: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(section).items():
        yield f"{prefix}{name}", kind
        if is_dataclass(kind):
            yield from _fields(kind, f"{prefix}{name}.")


class _Unfit(Exception):
    """A value is not of its field's type; the text says what would be."""


def _convert(value: Any, kind: Any) -> Any:
    """`value` as a `kind`. Text is read as a user means it: ``5e-3``, ``true``, ``null``, ``[a,b]`` or ``a,b``."""
    inner = get_args(kind)
    if type(None) in inner:
        (kind,) = (each for each in inner if each is not type(None))
        empty = value is None or (isinstance(value, str) and value.strip().lower() in ("null", "none", "~"))
        return None if empty else _convert(value, kind)
    if get_origin(kind) in (list, tuple):
        return _convert_sequence(value, kind)
    if get_origin(kind) is dict:
        return _convert_mapping(value, inner[1])
    return _SCALARS[kind](value)


def _convert_sequence(value: Any, kind: Any) -> Any:
    inner = get_args(kind)
    if isinstance(value, str):
        value = _parse_flow(value) if value.strip().startswith("[") else [part.strip() for part in value.split(",")]
        value = [] if value == [""] else value
    wanted = len(inner) if get_origin(kind) is tuple else None
    if not isinstance(value, list) or wanted not in (None, len(value)):
        raise _Unfit("a list such as [a,b]" if wanted is None else f"{wanted} values such as [a,b]")
    return get_origin(kind)(_convert(item, inner[0]) for item in value)


def _convert_mapping(value: Any, kind: Any) -> dict[str, Any]:
    value = _parse_flow(value) if isinstance(value, str) else value
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise _Unfit("entries by name, such as {a: 1}")
    return {name: _convert(item, kind) for name, item in value.items()}


def _parse_flow(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return None  # of no type: the caller says what it wanted


def _bool(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "false") or not isinstance(value, bool | str):
        raise _Unfit("true or false")
    return text == "true"


def _int(value: Any) -> int:
    try:
        if isinstance(value, bool | float):
            raise ValueError
        return int(value)
    except (ValueError, TypeError):
        raise _Unfit("a whole number") from None


def _float(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML leaves 1e-6 a text
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _Unfit("a finite number")
    return number


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unfit("text (in YAML, put it in quotes)")
    return value


_SCALARS: dict[type, Callable[[Any], Any]] = {bool: _bool, int: _int, float: _float, str: _str}


def _plain(value: Any) -> Any:
    """Tuples as lists: YAML knows no others."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


# ---------------------------------------------------------------------------------------------------- checking

CHOICES = {
    "algorithm.adv_estimator": ("grpo", "dr_grpo", "rloo", "reinforce_pp"),
    "worker.actor.policy_loss": ("ppo_clip", "gspo"),
    "worker.actor.kl_loss_type": ("low_var_kl", "kl", "mse"),
    "worker.actor.loss_agg_mode": ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum"),
    "worker.actor.optim.lr_scheduler": ("constant", "cosine"),
    "worker.actor.fsdp.torch_dtype": ("bfloat16", "float16", "float32"),
    "worker.reward.reward_type": ("function",),
    "worker.reward.preset": ("strict", "released"),
    "trainer.logger": ("console", "jsonl", "tensorboard", "wandb"),
}
"""Known names; for a list, of each item."""

NEEDED = {
    "data.name": "the data set plug-in, such as video_seg_keyframe_sft_base_mod",
    "data.train_files": "the root of the training data",
    "worker.actor.model.model_path": "the folder of the checkpoint to start from",
    "worker.reward.compute_score": "the reward plug-in, such as video_match_keyframe_sft_sam_mod",
}

ZERO_TOO = {
    "data.val_limit",
    "data.seed",
    "worker.actor.max_tokens_per_micro_batch",
    "worker.actor.kl_loss_coef",
    "worker.actor.entropy_coeff",
    "worker.actor.model.lora.rank",
    "worker.actor.optim.weight_decay",
    "worker.actor.optim.lr_warmup_steps_ratio",
    "worker.reward.num_cpus_per_worker",
    "worker.reward.num_gpus_per_worker",
    "worker.reward.max_retries",
    "trainer.val_freq",
    "trainer.save_freq",
    "trainer.max_restarts",
    "trainer.max_bad_steps",
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


def _out_of_range(config: Config) -> Iterator[str]:
    numbers = {key: value for key, value in flatten(config).items() if type(value) in (int, float)}
    for key, value in numbers.items():
        if value < 0 and key in ZERO_TOO:
            yield f"{key}={value}: must be 0 or more"
        elif value <= 0 and key not in ZERO_TOO and (key, value) != ("worker.rollout.top_k", -1):
            yield f"{key}={value}: must be more than 0"
        elif key in SHARES and value > 1:
            yield f"{key}={value}: must be 1 at most"


def _unknown_names(config: Config) -> Iterator[str]:
    for key, known in CHOICES.items():
        value = get(config, key)
        for name in value if isinstance(value, list) else [value]:
            if name not in known:
                yield f"{key}={name}: known are {', '.join(known)}"
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
    ranks = trainer.nnodes * trainer.n_gpus_per_node
    if rollout.name == "vllm" and rollout.tensor_parallel_size > 0 and ranks % rollout.tensor_parallel_size:
        yield (
            f"worker.rollout.tensor_parallel_size={rollout.tensor_parallel_size} does not divide the {ranks} processes "
            "of trainer.nnodes x trainer.n_gpus_per_node"
        )


# ---------------------------------------------------------------------------------------------------- command line


def main(argv: Sequence[str]) -> int:
    """Print the resolved configuration, or what is wrong with it; with --help every key there is."""
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(f"{describe()}\n")
        return 0
    try:
        config = load(argv)
        check(config)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(to_yaml(config))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
