"""The configuration: typed records, and how a YAML file and ``key=value`` arguments become one that holds together.

`records` is the page to read; ``python -m verl.config config=FILE.yaml key=value …`` prints what a run would use.
"""

from verl.config.checks import NEEDED, check, unread
from verl.config.loading import ConfigError, defaults, describe, flatten, get, leaves, load, to_yaml
from verl.config.records import (
    ActorConfig,
    AlgorithmConfig,
    Config,
    DataConfig,
    FSDPConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RolloutConfig,
    TrainerConfig,
    WorkerConfig,
    names_file,
    number,
    one_of,
)

__all__ = [
    "NEEDED",
    "ActorConfig",
    "AlgorithmConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "FSDPConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimConfig",
    "RewardConfig",
    "RolloutConfig",
    "TrainerConfig",
    "WorkerConfig",
    "check",
    "defaults",
    "describe",
    "flatten",
    "get",
    "leaves",
    "load",
    "names_file",
    "number",
    "one_of",
    "to_yaml",
    "unread",
]
