"""An engine with a fault."""

from verl.engines.vllm import VLLMEngine


class ForgetfulEngine(VLLMEngine):
    """Leaves a tied head as it was."""

    def _tie(self) -> None:
        pass
