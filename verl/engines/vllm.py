"""Draw replies with vLLM in this very process: its scheduler, its kernels, the actor's weights.

In a process group every rank runs an engine (vLLM's `external_launcher`); those of a tensor-parallel group hold shards
of one model, are given the same requests and schedule them alike. Groups know nothing of each other. Without a process
group, as in inference, the engine is alone and keeps its GPU memory.

A group of replies is one request: the prompt and its pictures are read once, the others find them in the prefix cache.
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
from verl.engines.weights import Fingerprints, differing, places, tie
from verl.protocol import Batch

FORBIDDEN = -100.0
"""Added to a logit: the lowest bias that vLLM takes, a probability of e^-100."""

SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
"""The engine's core belongs into this process, where the weights are."""
CPU_SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""GiB of keys and values, and no pinning: the ranks of one machine would all be pinned to the same cores."""


class VLLMEngine:
    """A rollout engine (see `base.RolloutEngine`) on top of `vllm.LLM`. It joins the process group, if there is one.

    ``engine_logprobs`` are log_softmax(logits / temperature) over the whole vocabulary, as the hf engine's: before
    vision tokens are suppressed, repetition is penalised and top-p and top-k cut, so that they can be compared with the
    actor's.

    The same prompts and seeds give the same replies in any company as far as the arithmetic does, see `hf.HFEngine`.
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
        self._scale_logits()
        self._places = places(self._model)
        self._sent, self._stale = Fingerprints(dtype), dict[str, float]()
        self._asleep: set[str] = set()

    def _scale_logits(self) -> None:
        """Divide by the temperature inside the model: vLLM's own division comes after log-probabilities were noted."""
        plain = self._model.compute_logits

        def compute_logits(*args: Any, **kwargs: Any) -> Tensor | None:
            logits = plain(*args, **kwargs)
            return None if logits is None else logits.float() / self._temperature

        self._model.compute_logits = compute_logits

    # ------------------------------------------------------------------------------------------------ weights

    def sync_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Full tensors under their Hugging Face names; each rank keeps its shard. What did not arrive is noted for
        `stale_weights`."""
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
        """Make the head anew from the embeddings: a reload passes it by, and on a CPU it has a packed copy."""
        tie(self._model)

    def stale_weights(self) -> dict[str, float]:
        return dict(self._stale)

    # ------------------------------------------------------------------------------------------------ replies

    def generate(self, prompts: Sequence[PromptInputs], *, n: int, sampling: Sampling, seeds: Sequence[int]) -> Batch:
        """Replies as `base.RolloutEngine.generate` says. All ranks of a tensor-parallel group must call, each with its
        own prompts, which may be none."""
        assert len(prompts) == len(seeds), f"{len(prompts)} prompts, {len(seeds)} seeds"
        self._wake("kv_cache")
        requests = [(_request(prompt), seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        shared, first = self._of_the_group(requests)
        self._temperature = sampling.temperature or 1.0
        outputs = []
        if shared:
            asked, params = zip(*[(ask, self._params(n, sampling, seed)) for ask, seed in shared], strict=True)
            outputs = self._llm.generate(list(asked), list(params), use_tqdm=False)
        own = outputs[first : first + len(prompts)]
        groups = [sorted(output.outputs, key=lambda reply: reply.index) for output in own]
        return self._batch([group[i % len(group)] for group in groups for i in range(n)])

    def _params(self, n: int, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams

        greedy = sampling.temperature == 0
        return SamplingParams(
            n=1 if greedy else n,  # greedy replies are all the same
            seed=None if greedy else seed,  # reply i has seed + i
            max_tokens=sampling.max_tokens,
            temperature=0.0 if greedy else 1.0,  # see _scale_logits
            top_p=1.0 if greedy else sampling.top_p,
            top_k=-1 if greedy else sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,  # a factor, so it may come after _scale_logits'
            logit_bias=self._never,
            stop_token_ids=list(self._ends),
            ignore_eos=True,  # but for the above
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
        )

    def _of_the_group(self, requests: list[Any]) -> tuple[list[Any], int]:
        """The requests of all ranks of the tensor-parallel group, and where this rank's begin among them."""
        if self._size == 1:
            return requests, 0
        from vllm.distributed.parallel_state import get_tp_group

        group = get_tp_group()
        gathered: list[Any] = [None] * self._size
        dist.all_gather_object(gathered, requests, group=group.cpu_group)
        return list(chain.from_iterable(gathered)), sum(map(len, gathered[: group.rank_in_group]))

    def _batch(self, replies: Sequence[Any]) -> Batch:
        """Cut to the longest reply. FloatingPointError if the model gave something that is not a number."""
        lengths = [len(reply.token_ids) for reply in replies]
        token_BR = torch.full((len(replies), max(lengths, default=0)), self._pad)
        mask_BR, logprob_BR = torch.zeros_like(token_BR), torch.zeros(token_BR.shape)
        for row, (reply, length) in enumerate(zip(replies, lengths, strict=True)):
            token_BR[row, :length] = torch.tensor(reply.token_ids, dtype=torch.long)
            mask_BR[row, :length] = 1
            logprob_BR[row, :length] = torch.tensor(_of_drawn(reply))
        if not bool(logprob_BR.isfinite().all()):
            raise FloatingPointError("the rollout model's log-probabilities are not finite: its weights are broken")
        tensors = {"responses": token_BR, "response_mask": mask_BR, "engine_logprobs": logprob_BR}
        return Batch(tensors, {"finished": [reply.finish_reason == "stop" for reply in replies]})

    # ------------------------------------------------------------------------------------------------ memory

    def sleep(self) -> None:
        """Give back weights and cache; the next weights come from `sync_weights`. Nothing to do on a CPU, nor for an
        engine without a process group, which shares its GPU with no actor."""
        if self._device.type == "cuda" and self._joined and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep = {"weights", "kv_cache"}

    def wake(self) -> None:
        """Make room for the weights; that for the cache is taken when it is needed, by `generate`, after the actor has
        given up its own."""
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
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling takes a minute, and the tests' models are tiny
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
                logprobs_mode="raw_logprobs",  # of logits that `_scale_logits` has divided by the temperature
                generation_config="vllm",  # what a checkpoint recommends is not what the run is configured to do
                limit_mm_per_prompt={"video": 0},
                **room,
            )
    finally:
        torch.set_num_threads = set_threads  # vLLM on a CPU puts a warning in its place


@contextmanager
def _own_shared_memory() -> Iterator[None]:
    """Ranks on a CPU talk through memory that vLLM names after its launcher: the same in every run on the machine, and
    left behind. Here it is named after this run, and loses its name when all ranks hold it."""
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


def _request(prompt: PromptInputs) -> dict[str, Any]:
    """Ids with one token an image; vLLM expands them with the checkpoint's own processor, as the trainer did."""
    request: dict[str, Any] = {"prompt_token_ids": prompt.bare_ids.tolist()}
    if prompt.images:
        request["multi_modal_data"] = {"image": list(prompt.images)}
    return request


def _of_drawn(reply: Any) -> list[float]:
    """Log-probabilities of a completion's own tokens."""
    return [reply.logprobs.logprobs[start] for start in reply.logprobs.start_indices]
