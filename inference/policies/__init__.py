"""Who answers: a model through transformers (`hf`), vLLM (`vllm`) or a server (`openai`), the ground truth (`oracle`),
recorded replies (`replay`)."""

from inference.policies.base import Policy

__all__ = ["NAMES", "Policy"]

NAMES = ("oracle", "replay", "hf", "vllm", "openai")
