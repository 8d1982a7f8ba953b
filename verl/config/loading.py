"""From a file and arguments to a configuration, and from a configuration to a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import yaml

from verl.config import dialect, keys
from verl.config.errors import ConfigError, cut
from verl.config.records import Config
from verl.config.values import Unfit, convert


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
        tree = dialect.read(path)
        try:
            for key, value in keys.leaves(tree):
                _assign(config, key, value, source=str(path))
        except RecursionError:
            raise ConfigError(f"{path}: nested too deeply") from None
    for key, value in pairs:
        if key != "config":
            _assign(config, key, value, source="command line")
    return config


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML that `load` reads back to an equal one."""
    return yaml.dump(keys.plain(asdict(config)), Dumper=dialect.Dumper, sort_keys=False, allow_unicode=True, width=120)


def _assign(config: Config, key: str, value: Any, *, source: str) -> None:
    """Set one value, turned into its field's type. `value` is what YAML made of it, or the text of an argument."""
    owner, entry = keys.find(key, source)
    kind = keys.types()[owner]
    try:
        made = {**keys.get(config, owner), entry: convert(value, get_args(kind)[1])} if entry else convert(value, kind)
    except Unfit as unfit:
        shown = "null" if value is None else cut(repr(value))
        raise ConfigError(f"{source}: {key}: expected {unfit}, got {shown}") from None
    section, _, name = owner.rpartition(".")
    setattr(keys.get(config, section), name, made)


def _split_argument(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals:
        raise ConfigError(f"command line: expected key=value, got {cut(repr(argument))}")
    return key.strip(), value
