"""Who answers: a model here (`hf`) or on a server (`openai`), the truth (`oracle`), recorded replies (`replay`)."""

from veason.policies.base import Policy

__all__ = ["NAMES", "Policy"]

NAMES = ("oracle", "replay", "hf", "openai")
