"""Find a plug-in by name: an entry point of a group, or ``package.module:attribute``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any


def find(name: str, *, group: str) -> Any:
    """The function or class that `name` stands for, imported. ValueError if there is no such thing; an error inside the
    plug-in's own module is passed on as it is."""
    if ":" in name:
        found = _attribute(name, *name.split(":", 1))
    else:
        known = _registered(group)
        if name not in known:
            raise ValueError(_unknown(name, known, group=group))
        found = known[name].load()
    if not callable(found):
        raise ValueError(f"plug-in {name!r} is {type(found).__name__}, expected a function or class that builds it")
    return found


def _unknown(name: str, known: Mapping[str, Any], *, group: str) -> str:
    """What to tell the user who asked for `name`."""
    there = ", ".join(sorted(known)) or "none (is the project installed?)"
    near = get_close_matches(name, known, n=1, cutoff=0.3)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return (
        f"no plug-in of {group} is called {name!r}{meant}; there are: {there}. Name your own package.module:attribute"
    )


def _registered(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def _attribute(name: str, module_name: str, path: str) -> Any:
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(f"plug-in {name!r}: {module_name!r} is no module's name; expected package.module:attribute")
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        raise ValueError(f"plug-in {name!r}: there is no module {error.name!r} on the Python path") from error
    for part in path.split("."):
        if not hasattr(found, part):
            there = [key for key in vars(found) if not key.startswith("_")] if hasattr(found, "__dict__") else []
            near = get_close_matches(part, there, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"plug-in {name!r}: {module_name} has no {part!r}{meant}; it has {', '.join(there)}")
        found = getattr(found, part)
    return found
