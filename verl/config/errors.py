"""The one exception for what a user of the configuration can put right."""

from __future__ import annotations


class ConfigError(ValueError):
    """A key, value or combination that the user can put right. The message names it, where it stood and the remedy."""
