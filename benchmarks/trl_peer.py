"""TRL's GRPOTrainer, importable beside what is installed here: the benchmarks' and the tests' peer."""

from __future__ import annotations


def grpo_trainer() -> type:
    """The class. ImportError without TRL.

    TRL 0.24 asks transformers which optional packages there are; transformers 5 answers with a tuple, which is always
    true. And it is not to see vLLM, of which it wants another version than `make setup-vllm` brings.
    """
    import trl.import_utils as flags

    for name, value in vars(flags).items():
        if name.endswith("_available") and isinstance(value, tuple):
            setattr(flags, name, value[0])
    flags._vllm_available = False
    from trl.trainer.grpo_trainer import GRPOTrainer

    return GRPOTrainer
