"""A value from YAML or the command line, as its field's type."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args, get_origin

from verl.config.dialect import parse
from verl.config.errors import ConfigError


class Unfit(Exception):
    """A value is not of its field's type; the text says what would be."""


def convert(value: Any, kind: Any) -> Any:
    """`value` as a `kind`. Text is read as a user means it: ``5e-3``, ``true``, ``null``, ``[a,b]`` or ``a,b``."""
    inner = get_args(kind)
    if type(None) in inner:
        (kind,) = (each for each in inner if each is not type(None))
        empty = value is None or (isinstance(value, str) and value.strip().lower() in ("null", "none", "~"))
        return None if empty else convert(value, kind)
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
        raise Unfit("a list such as [a,b]" if wanted is None else f"{wanted} values such as [a,b]")
    return get_origin(kind)(convert(item, inner[0]) for item in value)


def _convert_mapping(value: Any, kind: Any) -> dict[str, Any]:
    value = _parse_flow(value) if isinstance(value, str) else value
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise Unfit("entries by name, such as {a: 1}")
    return {name: convert(item, kind) for name, item in value.items()}


def _parse_flow(text: str) -> Any:
    try:
        return parse(text)
    except ConfigError:
        return None  # of no type: the caller says what it wanted


def _bool(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "false") or not isinstance(value, bool | str):
        raise Unfit("true or false")
    return text == "true"


def _int(value: Any) -> int:
    try:
        if isinstance(value, bool | float):
            raise ValueError
        return int(value)
    except (ValueError, TypeError):
        raise Unfit("a whole number") from None


def _float(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML leaves 1e-6 a text
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unfit("a finite number")
    return number


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise Unfit("text (in YAML, put it in quotes)")
    return value


_SCALARS: dict[type, Callable[[Any], Any]] = {bool: _bool, int: _int, float: _float, str: _str}
