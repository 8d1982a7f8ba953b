"""The one exception for what a user of the configuration can put right."""

from __future__ import annotations


class ConfigError(ValueError):
    """A key, value or combination that the user can put right. The message names it, where it stood and the remedy."""


def cut(text: str, *, limit: int = 120) -> str:
    """`text` on one line, cut after `limit` characters: what an error repeats of what it was given."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}… ({len(text):,} characters)"
