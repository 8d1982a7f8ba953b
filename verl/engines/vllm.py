"""Draws replies with vLLM inside this process: with its scheduler and kernels, and the actor's weights.

In a process group every rank runs an engine (vLLM's `external_launcher`). Those of a tensor-parallel group hold shards
of one model, get the same requests and schedule them alike; groups know nothing of each other. Without a process group,
as in inference, the engine is alone and keeps its GPU memory.

A group of replies is one request: the prompt and its pictures are read once, and all replies after the first find them
in the prefix cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from verl.config import RolloutConfig
from verl.engines import generation, pretrained
from verl.engines.base import EngineOptions, Sampling
from verl.engines.inputs import PromptInputs
from verl.engines.weights import Fingerprints, differing, places
from verl.protocol import Batch

FORBIDDEN = -100.0
"""Bias added to the logit of a banned token: the lowest that vLLM takes, a probability of e^-100."""

SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
"""Environment that keeps the engine's core in this process, where the weights are."""
CPU_SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Environment on a CPU: GiB of keys and values, and no pinning, which would put all ranks of a machine on one core."""


class VLLMEngine:
    """A rollout engine (see `base.RolloutEngine`) on top of `vllm.LLM`. It joins the process group, if there is one.

    ``engine_logprobs`` are log_softmax(logits / temperature) over the whole vocabulary, as the hf engine's: before
    vision tokens are suppressed, repetition is penalised and top-p and top-k cut, so that they can be compared with the
    actor's. The same prompts and seeds give the same replies beside any others, as far as arithmetic allows; see
    `hf.HFEngine`.
    """

    def __init__(
        self, model_path: str, *, config: EngineOptions | RolloutConfig, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self._device, self._dtype = torch.device(device), dtype
        self._size = config.tensor_parallel_size
        pretrained.check(model_path)
        processor = pretrained.load_processor(model_path)
        self._pad, self._ends = generation.pad_id(processor), generation.end_ids(model_path, processor)
        self._joined = dist.is_initialized()
        self._llm = _open(model_path, config, self._device, dtype)
        [self._model] = self._llm.apply_model(lambda model: model)
        hf_config = self._llm.llm_engine.model_config.hf_config
        self._tied = bool(hf_config.get_text_config().tie_word_embeddings)
        self._never = dict.fromkeys(generation.banned_ids(hf_config), FORBIDDEN)
        self._temperature = 1.0
        plain = self._model.compute_logits

        def compute_logits(*args: Any, **kwargs: Any) -> Tensor | None:
            """Logits divided by the temperature: vLLM's own division comes after log-probabilities were noted."""
            logits = plain(*args, **kwargs)
            return None if logits is None else logits.float() / self._temperature

        self._model.compute_logits = compute_logits
        self._places = places(self._model)
        self._sent, self._stale = Fingerprints(dtype), dict[str, float]()
        self._asleep: set[str] = set()

    # ------------------------------------------------------------------------------------------------ weights

    def sync_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Take full tensors under their Hugging Face names; each rank keeps its shard. `stale_weights` tells afterwards
        what did not arrive."""
        stream = self._sent.watch(weights)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream, "is_checkpoint_format": True})
        for _ in stream:  # whatever the loader left: other ranks may be gathering it with us
            pass
        if self._tied:
            self._tie()
        self._llm.llm_engine.reset_encoder_cache()
        self._llm.reset_prefix_cache()
        self._stale = differing(self._places, self._sent)

    def _tie(self) -> None:
        """Make the head the embeddings again: a reload passes it by, and on a CPU it has a packed copy."""
        head, embeddings = self._model.language_model.lm_head, self._model.language_model.model.embed_tokens
        head.tie_weights(embeddings)
        head.quant_method.process_weights_after_loading(head)

    def stale_weights(self) -> dict[str, float]:
        return dict(self._stale)

    # ------------------------------------------------------------------------------------------------ replies

    def generate(self, prompts: Sequence[PromptInputs], *, n: int, sampling: Sampling, seeds: Sequence[int]) -> Batch:
        """Replies as `base.RolloutEngine.generate` says. All ranks of a tensor-parallel group must call, each with its
        own prompts, which may be none."""
        assert len(prompts) == len(seeds), f"{len(prompts)} prompts, {len(seeds)} seeds"
        self._wake("kv_cache")
        requests: list[dict[str, Any]] = []
        for prompt in prompts:  # ids with one token an image: vLLM expands them, as the trainer did
            pictures = {"multi_modal_data": {"image": list(prompt.images)}} if prompt.images else {}
            requests.append({"prompt_token_ids": prompt.bare_ids.tolist(), **pictures})
        # the requests of all ranks of the tensor-parallel group, and where this rank's begin among them
        shared, first = list(zip(requests, seeds, strict=True)), 0
        if self._size > 1:
            from vllm.distributed.parallel_state import get_tp_group

            group = get_tp_group()
            gathered: list[Any] = [None] * self._size
            dist.all_gather_object(gathered, shared, group=group.cpu_group)
            shared, first = list(chain.from_iterable(gathered)), sum(map(len, gathered[: group.rank_in_group]))
        self._temperature = sampling.temperature or 1.0
        outputs = []
        if shared:
            params = [self._params(n, sampling, seed) for _, seed in shared]
            outputs = self._llm.generate([request for request, _ in shared], params, use_tqdm=False)
        own = outputs[first : first + len(prompts)]
        groups = [sorted(output.outputs, key=lambda reply: reply.index) for output in own]
        replies = [group[i % len(group)] for group in groups for i in range(n)]
        lengths = [len(reply.token_ids) for reply in replies]
        token_BR = torch.full((len(replies), max(lengths, default=0)), self._pad)
        mask_BR, logprob_BR = torch.zeros_like(token_BR), torch.zeros(token_BR.shape)
        for row, (reply, length) in enumerate(zip(replies, lengths, strict=True)):
            drawn = [reply.logprobs.logprobs[start] for start in reply.logprobs.start_indices]  # of its own tokens
            token_BR[row, :length] = torch.tensor(reply.token_ids, dtype=torch.long)
            mask_BR[row, :length] = 1
            logprob_BR[row, :length] = torch.tensor(drawn)
        if not bool(logprob_BR.isfinite().all()):
            raise FloatingPointError("the rollout model's log-probabilities are not finite: its weights may be broken")
        tensors = {"responses": token_BR, "response_mask": mask_BR, "engine_logprobs": logprob_BR}
        return Batch(tensors, {"finished": [reply.finish_reason == "stop" for reply in replies]})

    def _params(self, n: int, sampling: Sampling, seed: int) -> Any:
        """vLLM's settings for the `n` replies to one prompt."""
        from vllm import SamplingParams

        greedy = sampling.temperature == 0
        return SamplingParams(
            n=1 if greedy else n,  # greedy replies are all the same
            seed=None if greedy else seed,  # reply i has seed + i
            max_tokens=sampling.max_tokens,
            temperature=0.0 if greedy else 1.0,  # see compute_logits
            top_p=1.0 if greedy else sampling.top_p,
            top_k=-1 if greedy else sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,  # a factor, so it may come after compute_logits'
            logit_bias=self._never,
            stop_token_ids=list(self._ends),
            ignore_eos=True,  # but for the above
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
        )

    # ------------------------------------------------------------------------------------------------ memory

    def sleep(self) -> None:
        """Give back weights and cache; the next weights come from `sync_weights`. On a CPU there is nothing to do, nor
        for an engine without a process group, which shares its GPU with no actor."""
        if self._device.type == "cuda" and self._joined and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep = {"weights", "kv_cache"}

    def wake(self) -> None:
        """Make room for the weights; `generate` makes that for the cache, after the actor has given up its own."""
        self._wake("weights")

    def _wake(self, tag: str) -> None:
        if tag in self._asleep:
            self._llm.wake_up(tags=[tag])
            self._asleep.discard(tag)


def _open(model_path: str, config: EngineOptions | RolloutConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """A `vllm.LLM` with the checkpoint's weights: one rank of the process group, or alone where there is none."""
    on_cpu, joined = device.type == "cpu", dist.is_initialized()
    assert joined or config.tensor_parallel_size == 1, "shards of a model need the ranks of a process group"
    # at every sync vLLM warns of layers that got no weights, of which some have none; `stale_weights` knows better
    level = {"VLLM_LOGGING_LEVEL": "ERROR" if joined else "WARNING"}
    for name, value in {**SETTINGS, **level, **(CPU_SETTINGS if on_cpu else {})}.items():
        os.environ.setdefault(name, value)
    if on_cpu:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling takes a minute
    room: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_utilization, "enable_sleep_mode": joined}
    if on_cpu:
        room = {"skip_mm_profiling": True}
    if joined:
        os.environ |= {"RANK": str(dist.get_rank()), "LOCAL_RANK": str(device.index or 0)}
        room |= {
            "distributed_executor_backend": "external_launcher",
            "tensor_parallel_size": config.tensor_parallel_size,
            "seed": dist.get_rank() // config.tensor_parallel_size,
        }
    from vllm import LLM

    if config.max_model_len:
        room["max_model_len"] = config.max_model_len
    set_threads = torch.set_num_threads
    try:
        with _own_shared_memory() if on_cpu and joined else nullcontext():
            return LLM(
                model_path,
                dtype=str(dtype).removeprefix("torch."),
                enforce_eager=config.enforce_eager or on_cpu,
                enable_chunked_prefill=config.enable_chunked_prefill and not on_cpu,  # there a seed and a chunk clash
                enable_prefix_caching=True,
                logprobs_mode="raw_logprobs",  # of logits that `compute_logits` has divided by the temperature
                generation_config="vllm",  # what a checkpoint recommends is not what the run is configured to do
                limit_mm_per_prompt={"video": 0},
                **room,
            )
    finally:
        torch.set_num_threads = set_threads  # vLLM on a CPU puts a warning in its place


@contextmanager
def _own_shared_memory() -> Iterator[None]:
    """Within, vLLM names the memory through which ranks on a CPU talk after this run, and not after its launcher: that
    name is the same in every run on the machine and is left behind. Afterwards, all ranks holding it, it is removed."""
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher as Launcher

    name = [uuid4().hex]
    dist.broadcast_object_list(name, src=0)
    plain = Launcher._distributed_args
    Launcher._distributed_args = lambda self: (f"env://{name[0]}", *plain(self)[1:])  # the process group exists
    try:
        yield
    finally:
        Launcher._distributed_args = plain
        for path in Path("/dev/shm").glob(f"{name[0]}*"):
            path.unlink(missing_ok=True)
