"""YAML as configurations use it: a key stands once, any text comes back as it was."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml

from verl.config.errors import ConfigError, cut

LARGEST = 1 << 20
"""Bytes of a configuration file at most; the whole configuration written out takes 4,000."""


class Dumper(yaml.SafeDumper):
    """Text with line breaks of any kind goes in double quotes, where they are escaped; PyYAML's choice loses some."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar(
            "tag:yaml.org,2002:str", text, style='"' if len(f"{text}.".splitlines()) > 1 else None
        )


Dumper.add_representer(str, Dumper.represent_text)


class Loader(yaml.SafeLoader):
    """YAML in which a key stands once; plain YAML silently keeps the last of several."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{min(twice, key=str)!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read(path: Path) -> dict[str, Any]:
    """The sections of a YAML file; ConfigError for anything that is none, pipes and huge files included."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise ConfigError(f"config={path}: {kind}, expected a YAML file")
        if status.st_size > LARGEST:
            raise ConfigError(
                f"config={path}: {status.st_size:,} bytes, too large for a configuration; is it the file?"
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config={cut(str(path), limit=500)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    try:
        tree = parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{path}: expected sections such as 'data:', found {type(tree).__name__}")
    return tree or {}


def parse(text: str) -> Any:
    """What YAML makes of `text`; ConfigError if it makes nothing of it."""
    try:
        return yaml.load(text, Loader=Loader)
    except RecursionError:
        raise ConfigError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # the latter: a 30th of February, a list as a key twice
        raise ConfigError(cut(str(error), limit=500)) from error
