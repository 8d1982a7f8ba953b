"""YAML as configurations use it: a key stands once, any text comes back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from verl.config.errors import ConfigError


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
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except OSError as error:
        raise ConfigError(f"config={path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{path}: expected sections such as 'data:', found {type(tree).__name__}")
    return tree or {}
