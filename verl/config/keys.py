"""Full keys such as ``worker.rollout.n``: which there are, what they hold, which one is meant."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, get_origin, get_type_hints

from verl.config.errors import ConfigError, cut
from verl.config.records import Config


def get(config: Config, key: str) -> Any:
    """Value or section of a full key; the configuration itself for an empty one."""
    for name in filter(None, key.split(".")):
        config = getattr(config, name)
    return config


def flatten(config: Config) -> dict[str, Any]:
    """Every value by its full key."""
    return dict(leaves(plain(asdict(config))))


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


def leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full key and value of everything in nested sections. A section left empty says nothing."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in types():
            yield from leaves(value, f"{key}.")
        elif value is not None or key not in sections():
            yield key, value


def plain(value: Any) -> Any:
    """Tuples as lists: YAML knows no others."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def find(key: str, source: str) -> tuple[str, str]:
    """The field that a key names, and the entry of it if the field is a dictionary (else empty)."""
    if key in types():
        return key, ""
    if key in sections():
        inside = ", ".join(vars(get(Config(), key)))
        raise ConfigError(f"{source}: {key} is a section, not a value; it holds {inside}")
    for owner, kind in types().items():
        if get_origin(kind) is dict and key.startswith(f"{owner}.") and key != f"{owner}.":
            return owner, key.removeprefix(f"{owner}.")
    raise ConfigError(f"{source}: unknown key {cut(repr(key))}; the nearest is {nearest(key)!r}")


def nearest(key: str) -> str:
    """The known key most like `key`, as a whole and in its last word."""

    def likeness(known: str) -> float:
        last_words = known.rpartition(".")[2], key.rpartition(".")[2]
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in ((known, key), last_words))

    return max(types(), key=likeness)


@functools.cache
def types() -> dict[str, Any]:
    """Type of every value by full key, in the order of the records."""
    return {key: kind for key, kind in _fields(Config) if not is_dataclass(kind)}


@functools.cache
def sections() -> frozenset[str]:
    return frozenset(key for key, kind in _fields(Config) if is_dataclass(kind))


def _fields(section: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(section).items():
        yield f"{prefix}{name}", kind
        if is_dataclass(kind):
            yield from _fields(kind, f"{prefix}{name}.")
