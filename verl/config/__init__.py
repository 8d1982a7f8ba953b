"""The configuration: typed records, and how a YAML file and ``key=value`` arguments become one that holds together.

`records` is the page to read; ``python -m verl.config config=FILE.yaml key=value …`` prints what a run would use.
"""

from verl.config.checks import CHOICES, NEEDED, SHARES, ZERO_TOO, check
from verl.config.command import main
from verl.config.errors import ConfigError
from verl.config.keys import describe, flatten, get
from verl.config.loading import load, to_yaml
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
)

__all__ = [
    "CHOICES",
    "NEEDED",
    "SHARES",
    "ZERO_TOO",
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
    "describe",
    "flatten",
    "get",
    "load",
    "main",
    "to_yaml",
]
