"""Plug-ins are functions or classes, found by name: an entry point of a group, or ``package.module:attribute``.

A data set or reward plug-in may bring a typed record of the keys that it adds to its section of the configuration:

    @dataclass
    class Options(DataConfig):
        colours: int = 3

    @plugins.reads(Options)
    def build(config: Options, *, split: str) -> PromptDataset: ...

With ``data.name=package.module:build`` the run then knows ``data.colours``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any, TypeVar

DATASETS, REWARDS = "verl.datasets", "verl.rewards"
"""Groups of entry points whose plug-ins own a section of the configuration."""

Factory = TypeVar("Factory", bound=Callable[..., Any])
Section = TypeVar("Section")


def reads(record: type, *, check: Callable[[Any], None] | None = None) -> Callable[[Factory], Factory]:
    """Marks a plug-in: its section of the configuration is a `record`, a dataclass that extends verl's own
    and has a default for every field.

    check: called with the filled record before a run starts; its ValueError is what the user reads.
    """

    def mark(factory: Factory) -> Factory:
        for name, value in {"options": record, "check": check}.items():
            if value is not None:
                setattr(factory, name, value)
        return factory

    return mark


def record_of(name: str, section: type[Section], *, group: str) -> type[Section]:
    """The record that the plug-in `name` brings for a section of the configuration; the section's own if it has none.
    ValueError as by `find`, or for a record that does not extend the section's own."""
    record = getattr(find(name, group=group), "options", None)
    if not isinstance(record, type):
        return section
    if not issubclass(record, section):
        raise ValueError(f"the options of {name!r} are a {record.__name__}, which does not extend {section.__name__}")
    return record


def names(group: str) -> list[str]:
    """The registered plug-ins of a group."""
    return sorted({point.name for point in entry_points(group=group)})


def find(name: str, *, group: str) -> Any:
    """The function or class that `name` stands for, imported. ValueError if there is no such thing; an error inside the
    plug-in's own module is passed on as it is."""
    if ":" in name:
        found = _attribute(name, *name.split(":", 1))
    else:
        known = {point.name: point for point in entry_points(group=group)}
        if name not in known:
            there = ", ".join(sorted(known)) or "none (is the project installed?)"
            raise ValueError(
                f"no plug-in of {group} is called {name!r}{_meant(name, known)}; there are: {there}. Name your own "
                "package.module:attribute"
            )
        found = known[name].load()
    if not callable(found):
        raise ValueError(f"plug-in {name!r} is {type(found).__name__}, expected a function or class that builds it")
    return found


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
            raise ValueError(
                f"plug-in {name!r}: {module_name} has no {part!r}{_meant(part, there)}; it has {', '.join(there)}"
            )
        found = getattr(found, part)
    return found


def _meant(name: str, known: Any) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.3)
    return f" (did you mean {near[0]}?)" if near else ""
