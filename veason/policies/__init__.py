"""Who answers: a model through transformers (`hf`) or vLLM (`vllm`), the ground truth (`oracle`), recorded replies
(`replay`)."""

from veason.policies.base import Policy

__all__ = ["NAMES", "Policy"]

NAMES = ("oracle", "replay", "hf", "vllm")
