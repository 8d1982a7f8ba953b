"""Imports TRL's GRPOTrainer beside the versions installed here, as a peer for benchmarks and tests."""

from __future__ import annotations


def grpo_trainer() -> type:
    """Returns the class; ImportError without TRL.

    TRL 0.24 asks transformers for optional packages; transformers 5 answers with a tuple, which is always true. vLLM is
    hidden from TRL, which needs another version than `make setup-vllm` brings.
    """
    import trl.import_utils as flags

    for name, value in vars(flags).items():
        if name.endswith("_available") and isinstance(value, tuple):
            setattr(flags, name, value[0])
    flags._vllm_available = False
    from trl.trainer.grpo_trainer import GRPOTrainer

    return GRPOTrainer
