"""The exception for what a user of an engine can put right."""

from __future__ import annotations

from verl.config import ConfigError


class EngineError(ConfigError):
    """A checkpoint that is not whole, or pictures that its processor does not take as they are."""
