"""Who answers: a model through transformers (`hf`), the ground truth (`oracle`), a file of answers (`replay`)."""

from veason.policies.base import Policy

__all__ = ["NAMES", "Policy"]

NAMES = ("oracle", "replay", "hf")
