"""Reads a YAML file and ``key=value`` arguments as a configuration, and writes one.

OmegaConf merges and converts by the records. What it would take more loosely than a configuration should be read (a
number as text, ``yes`` as true, ``${…}`` as a reference, such as to the environment) is refused before.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import json
import logging
import math
import stat
import textwrap
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf

from verl.config.records import Config, DataConfig, RewardConfig, WorkerConfig
from verl.utils import plugins

PLUGINS: dict[str, tuple[str, type[DataConfig | RewardConfig]]] = {
    "data.name": (plugins.DATASETS, DataConfig),
    "worker.reward.compute_score": (plugins.REWARDS, RewardConfig),
}
"""Keys that name the plug-in which extends their section: its group of entry points, and the section's own record."""
LARGEST = 1 << 20
"""Bytes of a configuration file at most; the whole configuration written out takes 4,000."""
WANTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text (in YAML, put it in quotes)",
    list: "a list such as [a,b]",
    dict: "entries by name, such as {a: 1}",
}

log = logging.getLogger(__name__)


class ConfigError(ValueError):
    """A key, value or combination that the user can put right. The message names it, where it stood and the remedy."""


# --------------------------------------------------------------------------------------------------------- keys


@dataclass(frozen=True)
class Leaf:
    """One value of the configuration and the field that holds it."""

    value: Any
    kind: Any
    """The field's type."""
    field: Field[Any]
    record: type
    """The dataclass that has the field."""


def leaves(section: Any, prefix: str = "") -> dict[str, Leaf]:
    """Every value of the configuration, or of a section under its prefix (``data.``), by full key."""
    found: dict[str, Leaf] = {}
    kinds = get_type_hints(type(section))
    for field in fields(section):
        key, value = f"{prefix}{field.name}", getattr(section, field.name)
        if is_dataclass(value):
            found |= leaves(value, f"{key}.")
        else:
            found[key] = Leaf(value, kinds[field.name], field, type(section))
    return found


def flatten(config: Config) -> dict[str, Any]:
    """Every value by its full key; tuples as lists, for JSON and YAML know no others."""
    return {key: list(v) if isinstance(v := leaf.value, tuple) else v for key, leaf in leaves(config).items()}


def get(config: Config, key: str) -> Any:
    """The value or section of a full key; the configuration itself for an empty one."""
    found: Any = config
    for name in filter(None, key.split(".")):
        found = getattr(found, name)
    return found


def defaults(config: Config) -> Config:
    """The configuration with the same plug-ins' records in which every value is its default."""
    return Config(data=type(config.data)(), worker=WorkerConfig(reward=type(config.worker.reward)()))


def nearest(key: str, known: Iterable[str]) -> str:
    """The known key most like `key`, as a whole and in its last word."""

    def likeness(other: str) -> float:
        last_words = other.rpartition(".")[2], key.rpartition(".")[2]
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in ((other, key), last_words))

    return max(known, key=likeness)


def describe() -> str:
    """Every key with its default and what its record says about it; keys of registered plug-ins under their names."""
    shown = {"": leaves(Config())}
    for (key, name), found in _registered().items():
        shown[f"\nWith {key}={name} also:"] = {each: leaf for each, leaf in found.items() if each not in shown[""]}
    lines: list[str] = []
    for head, found in shown.items():
        lines += [head] if head and found else []
        for key, leaf in found.items():
            text = (leaf.value or "''") if isinstance(leaf.value, str) else json.dumps(leaf.value)
            lines.append(f"{key}={text}")
            lines += [f"    {note}" for note in [_note(leaf)] if note]
    return "\n".join(lines)


def _note(leaf: Leaf) -> str:
    """The text beneath a field in its record's source, which Python itself does not keep."""
    for record in leaf.record.__mro__[:-1]:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
        assert isinstance(tree, ast.ClassDef)
        for declared, below in itertools.pairwise(tree.body):
            if isinstance(declared, ast.AnnAssign) and ast.unparse(declared.target) == leaf.field.name:
                text = ast.literal_eval(below.value) if isinstance(below, ast.Expr) else ""
                return " ".join(text.replace("``", "").split())
    return ""


def _registered() -> dict[tuple[str, str], dict[str, Leaf]]:
    """The keys of the section of each registered plug-in, by the key that chooses it and its name."""
    found = {}
    for key, (group, section) in PLUGINS.items():
        for name in plugins.names(group):
            try:
                record = plugins.record_of(name, section, group=group)
                _check_record(record, section)
            except Exception as error:  # anything can go wrong in another package, which this run need not use
                log.warning("%s=%s: its keys are unknown, because it cannot be loaded: %s", key, name, error)
                continue
            found[key, name] = leaves(record(), f"{key.rpartition('.')[0]}.")
    return found


# ------------------------------------------------------------------------------------------------ reading, writing


def load(argv: Sequence[str]) -> Config:
    """Configuration from command-line arguments: ``config=FILE.yaml`` (at most once, or not at all) and ``key=value``.

    The file is laid over the defaults, the other arguments over both, later ones over earlier. Plug-ins that are named
    bring their records; a key that only another registered plug-in knows is left out, with a warning. See `check` for
    what must hold between the values.
    """
    arguments = []
    for argument in argv:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ConfigError(f"command line: expected key=value, got {_cut(repr(argument))}")
        arguments.append((key.strip(), text))
    paths = [Path(text) for key, text in arguments if key == "config"]
    if len(paths) > 1:
        raise ConfigError(f"command line: config= is given {len(paths)} times; it may be given only once")
    texts = [(key, text) for key, text in arguments if key != "config"]
    trees = {path: _read(path) for path in paths}
    try:
        names = {key: name for tree in trees.values() for key, name in _flat(tree) if key in PLUGINS}
    except RecursionError:
        raise ConfigError(f"{paths[0]}: nested too deeply") from None
    records = _find_records(names | {key: text for key, text in texts if key in PLUGINS})
    config = Config(data=records["data.name"](), worker=WorkerConfig(reward=records["worker.reward.compute_score"]()))
    known, tree, unread = leaves(config), OmegaConf.structured(config), []
    given: list[tuple[str, str, Any]] = []
    for path in paths:
        for key, value in _flat(trees[path], known):
            entries = value if isinstance(value, dict) and get_origin(known[key].kind) is dict else {}
            if not all(name and isinstance(name, str) for name in entries):
                entries = {}
            given.append((str(path), key, {} if entries else value))
            given += [(str(path), f"{key}.{name}", item) for name, item in entries.items()]  # so that an error names it
    given += [("command line", key, text) for key, text in texts]
    for source, key, value in given:
        owner = _owner(key, known)
        if owner is None and any(other.startswith(f"{key}.") for other in known):
            if value is None:
                continue  # a section that the file leaves empty
            raise ConfigError(
                f"{source}: {key} is a section, not a value; it holds {', '.join(vars(get(config, key)))}"
            )
        if owner is None:
            others = {other: leaf for found in _registered().values() for other, leaf in found.items()}
            if _owner(key, others) is None:
                near = nearest(key, [*known, *others])
                raise ConfigError(f"{source}: unknown key {_cut(repr(key))}; the nearest is {near!r}")
            unread.append(key)
            continue
        kind = known[owner].kind if key == owner else get_args(known[owner].kind)[1]
        try:
            meant = _as_meant(value, kind)
            if key == owner:
                OmegaConf.update(tree, key, meant, merge=False)
            else:
                OmegaConf.select(tree, owner)[key.removeprefix(f"{owner}.")] = meant
        except _Unfit as error:
            shown = "null" if value is None else _cut(repr(value))
            raise ConfigError(f"{source}: {key}: expected {error}, got {shown}") from None
    if unread:
        log.warning("%s: ignored, because the chosen plug-ins have no such key", ", ".join(dict.fromkeys(unread)))
    made = OmegaConf.to_object(tree)
    assert isinstance(made, Config)
    for key, leaf in leaves(made).items():
        if get_origin(leaf.kind) is tuple:  # OmegaConf hands over a list
            setattr(get(made, key.rpartition(".")[0]), leaf.field.name, tuple(leaf.value))
    return made


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML that `load` reads back to an equal one."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _find_records(names: Mapping[str, Any]) -> dict[str, type]:
    """The record of each section that a plug-in extends, by the key that names the plug-in."""
    found = {}
    for key, (group, section) in PLUGINS.items():
        name = names.get(key)
        try:
            found[key] = plugins.record_of(name, section, group=group) if isinstance(name, str) and name else section
            _check_record(found[key], section)
        except ValueError as error:
            raise ConfigError(f"{key}={_cut(str(name))}: {error}") from error
    return found


def _check_record(record: type, section: type) -> None:
    """ValueError for a plug-in's record that no configuration can be read into."""
    if "__dataclass_fields__" not in vars(record):
        raise ValueError(f"{record.__name__} is no dataclass; write @dataclass above it")
    for field in fields(record):
        if field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{record.__name__}.{field.name} has no default; give it one")
    own = leaves(section())
    for key, leaf in leaves(record()).items():
        if key in own and leaf.kind != own[key].kind:
            kinds = inspect.formatannotation(leaf.kind), inspect.formatannotation(own[key].kind)
            raise ValueError(f"{record.__name__}.{key} is {kinds[0]}, but {section.__name__}'s own is {kinds[1]}")
        if not _is_readable(leaf.kind):
            raise ValueError(
                f"{record.__name__}.{key} is {inspect.formatannotation(leaf.kind)}, which a configuration cannot hold; "
                "take bool, int, float, str, list[…], dict[str, …], a tuple of fixed length, or one of them with | None"
            )


def _is_readable(kind: Any) -> bool:
    """Returns True if `_as_meant` and YAML can read a field of this type."""
    origin, inner = get_origin(kind) or kind, [each for each in get_args(kind) if each is not NoneType]
    if NoneType in get_args(kind):
        return len(inner) == 1 and _is_readable(inner[0])
    if origin in (list, tuple, dict):
        return bool(inner) and all(map(_is_readable, inner)) and (origin is not dict or inner[0] is str)
    return origin in (bool, int, float, str)


def _owner(key: str, known: Mapping[str, Leaf]) -> str | None:
    """The field that a key stands for: itself, or the dictionary whose entry it is."""
    if key in known:
        return key
    dictionaries = (owner for owner, leaf in known.items() if get_origin(leaf.kind) is dict)
    return next((owner for owner in dictionaries if key.startswith(f"{owner}.") and key != f"{owner}."), None)


class _Unfit(ValueError):
    """A value is not of its field's type, or a text is no YAML; the message says what was wanted."""


def _as_meant(value: Any, kind: Any) -> Any:
    """`value` as a `kind` that OmegaConf takes: text is read as a user means it, ``null``, ``true``, ``[a,b]`` or
    ``a,b``. What only OmegaConf would take raises `_Unfit`."""
    origin, inner = get_origin(kind) or kind, [each for each in get_args(kind) if each is not NoneType]
    if NoneType in get_args(kind):
        empty = value is None or (isinstance(value, str) and value.strip().lower() in ("null", "none", "~"))
        return None if empty else _as_meant(value, inner[0])
    wanted = f"{len(inner)} values such as [a,b]" if origin is tuple else WANTED[origin]
    if isinstance(value, str) and origin in (list, tuple, dict):
        if value.strip().startswith("[") or origin is dict:
            try:
                value = _parse(value)
            except _Unfit:
                raise _Unfit(wanted) from None
        else:
            value = [part.strip() for part in value.split(",")] if value else []
    if isinstance(value, str) and ("${" in value or value == "???"):
        raise _Unfit("a literal value: ${…} and ??? are not supported")
    accepted = {float: (int, float), tuple: (list,)}
    try:
        if origin is bool and isinstance(value, str):
            value = {"true": True, "false": False}.get(value.strip().lower())
        elif origin in (int, float) and isinstance(value, str):
            value = origin(value)
        if not isinstance(value, accepted.get(origin, origin)) or (isinstance(value, bool) and origin is not bool):
            raise _Unfit(wanted)
        if origin is float and not math.isfinite(value):
            raise _Unfit(wanted)
    except (ValueError, OverflowError):  # no number, or one with too many digits
        raise _Unfit(wanted) from None
    if origin is tuple and len(value) != len(inner):
        raise _Unfit(wanted)
    if origin is dict:
        if not all(isinstance(name, str) for name in value):
            raise _Unfit(wanted)
        return {name: _as_meant(item, inner[1]) for name, item in value.items()}
    return [_as_meant(item, inner[0]) for item in value] if origin in (list, tuple) else value


# --------------------------------------------------------------------------------------------------------- YAML


class _Dumper(yaml.SafeDumper):
    """Text with line breaks of any kind goes in double quotes, where they are escaped; PyYAML's choice loses some."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if len(f"{text}.".splitlines()) > 1 else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once; plain YAML silently keeps the last of several."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        times = Counter(key for key in keys if isinstance(key, Hashable))
        twice = {key for key, number in times.items() if number > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{min(twice, key=str)!r} appears twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    """The sections of a YAML file; ConfigError for anything that is none, pipes and huge files included."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise ConfigError(f"config={path}: {kind}, expected a YAML file")
        if status.st_size > LARGEST:
            size = f"{status.st_size:,} bytes"
            raise ConfigError(f"config={path}: {size}, too large for a configuration; give the YAML file")
        tree = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config={_cut(str(path), limit=500)}: {error.strerror}") from error
    except (UnicodeDecodeError, _Unfit) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{path}: expected sections such as 'data:', found {type(tree).__name__}")
    return tree or {}


def _flat(tree: Mapping[Any, Any], known: Iterable[str] = (), prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full key and value of everything in nested sections. A mapping is a value where its key is a `known` one."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and f"{prefix}{name}" not in known:
            yield from _flat(value, known, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _parse(text: str) -> Any:
    """The YAML document `text`; `_Unfit` if it is none."""
    try:
        found = yaml.load(text, Loader=_Loader)
        if _count(found, {}) > LARGEST:
            raise _Unfit("too large once its aliases are written out")
        return found
    except RecursionError:
        raise _Unfit("nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # the latter: a 30th of February, a list as a key twice
        raise _Unfit(_cut(str(error), limit=500)) from error


def _count(value: Any, known: dict[int, int]) -> int:
    """Counts the values in `value` with all YAML aliases expanded; raises RecursionError if it contains itself."""
    if not isinstance(value, dict | list):
        return 1
    if known.setdefault(id(value), -1) == -1:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(value)]


def _cut(text: str, *, limit: int = 120) -> str:
    """`text` on one line, cut after `limit` characters: what an error repeats of what it was given."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}… ({len(text):,} characters)"
