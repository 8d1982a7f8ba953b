"""Draws replies with the transformers model itself: no other software is needed, and the numbers are the actor's.

A prompt is read once, however many replies are drawn; its keys and values are then repeated for the rows of the group.
Rows that have ended leave the batch as soon as half of it has.

Tensor names carry their axes: B rows still being drawn, P prompt positions, R reply positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from verl.config import RolloutConfig
from verl.engines import generation, pretrained
from verl.engines.attention import open_cache, use_shared_heads
from verl.engines.base import EngineOptions, Sampling
from verl.engines.inputs import PromptInputs, collate
from verl.engines.weights import Fingerprints, fingerprint
from verl.protocol import Batch


class HFEngine:
    """A rollout engine (see `base.RolloutEngine`) with its own full copy of the model.

    ``engine_logprobs`` are log_softmax(logits / temperature) over the whole vocabulary in float32, at temperature 1 for
    greedy replies. They leave out the suppression of vision tokens, the repetition penalty, top-p and top-k, so that
    they can be compared with the actor's whatever the sampling is. Everything that `generate` returns is on the CPU.

    The same prompts and seeds give the same replies beside any others, as far as arithmetic allows: in float32 on a CPU
    a larger batch or more padding moves a log-probability by some 1e-6, in bfloat16 on a GPU by some 1e-2.
    """

    def __init__(
        self, model_path: str, *, config: EngineOptions | RolloutConfig, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self._device, self._rows = torch.device(device), config.batch_size
        if self._rows < 1:
            raise ValueError(f"worker.rollout.batch_size is {self._rows}, it must be at least 1")
        model = pretrained.load_base(model_path, dtype=dtype)
        model.to(self._device)  # type: ignore[arg-type]  # transformers types `to` as if it were not bound
        self.model: PreTrainedModel = model.eval().requires_grad_(False)
        use_shared_heads(model)
        processor = pretrained.load_processor(model_path)
        self._pad = generation.pad_id(processor)
        self._ends = torch.tensor(generation.end_ids(model_path, processor), device=self._device)
        self._never = torch.tensor(generation.banned_ids(model.config), dtype=torch.long, device=self._device)
        self._sent = Fingerprints(dtype)

    @torch.no_grad()
    def sync_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Copy full tensors in place. Names are those of the transformers model (`named_parameters`), all of them; of
        tied weights one name is enough. ValueError names what is missing, unknown or of another shape."""
        own = self.model.state_dict(keep_vars=True)
        given: set[int] = set()
        wrong = []  # and go on: other ranks may be gathering the rest of the stream with us
        for name, tensor in self._sent.watch(weights):
            mine = own.get(name)
            if mine is None:
                wrong.append(f"{name} is unknown")
                continue
            if mine.shape != tensor.shape:
                wrong.append(f"{name} is {tuple(tensor.shape)}, {tuple(mine.shape)} was wanted")
            elif id(mine) in given and not torch.equal(mine, tensor.to(mine)):
                wrong.append(f"{name} differs from the weights it is tied to")
            else:
                mine.copy_(tensor)
            given.add(id(mine))
        missing = [name for name, tensor in own.items() if id(tensor) not in given]
        if wrong or missing:
            raise ValueError(f"weights do not fit the rollout model: {_some(wrong)}; missing: {_some(missing)}")

    def stale_weights(self) -> dict[str, float]:
        own = self.model.state_dict(keep_vars=True)
        return self._sent.differing(
            [name for name in own if name in self._sent], lambda name, sent: (fingerprint(own[name]), sent)
        )

    @torch.inference_mode()
    def generate(self, prompts: Sequence[PromptInputs], *, n: int, sampling: Sampling, seeds: Sequence[int]) -> Batch:
        """Replies as `base.RolloutEngine.generate` says, `config.batch_size` rows at a time."""
        assert len(prompts) == len(seeds), f"{len(prompts)} prompts, {len(seeds)} seeds"
        total, length = len(prompts) * n, sampling.max_tokens
        replies = _Replies.empty(total, length, pad=self._pad, device=self._device)
        # the random numbers of reply i to a prompt come from (the prompt's seed, i) alone
        uniform = [np.random.default_rng([seed, index]).random(length) for seed in seeds for index in range(n)]
        uniform_BR = torch.from_numpy(np.array(uniform).reshape(total, length)).to(self._device)
        for start in range(0, total, self._rows):
            rows = torch.arange(start, min(start + self._rows, total), device=self._device)
            first = start // n
            self._draw(prompts[first : int(rows[-1]) // n + 1], rows // n - first, rows, replies, uniform_BR, sampling)
        return replies.batch()

    def _draw(
        self,
        prompts: Sequence[PromptInputs],
        owner_B: Tensor,
        row_B: Tensor,
        replies: _Replies,
        uniform_BR: Tensor,
        sampling: Sampling,
    ) -> None:
        """Write the replies of rows `row_B` into `replies`; row b answers ``prompts[owner_B[b]]``."""
        state, logits_BV = self._prefill(prompts)
        if sampling.repetition_penalty != 1:
            state.seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
            for seen_V, prompt in zip(state.seen_BV, prompts, strict=True):
                seen_V[prompt.input_ids.to(self._device)] = True
        state, logits_BV = state.select(owner_B), logits_BV[owner_B]
        greedy = sampling.temperature == 0
        for position in range(sampling.max_tokens):
            scaled_BV = logits_BV.float() / (1.0 if greedy else sampling.temperature)
            logprob_BV = scaled_BV.log_softmax(dim=-1)
            drawn_from_BV = logprob_BV
            if state.seen_BV is not None:
                drawn_from_BV = penalised(scaled_BV, state.seen_BV, penalty=sampling.repetition_penalty)
                drawn_from_BV = drawn_from_BV.log_softmax(dim=-1)
            allowed_BV = drawn_from_BV.index_fill(1, self._never, -torch.inf)
            if greedy:
                token_B = allowed_BV.argmax(dim=-1)
            else:
                token_B = pick(truncate(allowed_BV.exp(), sampling), uniform_BR[row_B, position])
            replies.write(row_B, position, token_B, logprob_BV.gather(1, token_B[:, None])[:, 0])
            if state.seen_BV is not None:
                state.seen_BV.scatter_(1, token_B[:, None], True)
            ended_B = torch.isin(token_B, self._ends)
            replies.finished_B[row_B[ended_B]] = True
            going_B = ~replies.finished_B[row_B]
            going = int(going_B.sum())
            if going == 0 or position + 1 == sampling.max_tokens:
                return
            if going <= len(row_B) // 2:  # rows that ended are drawn on, to be thrown away, until this many have
                kept = going_B.nonzero()[:, 0]
                state, row_B, token_B = state.select(kept), row_B[kept], token_B[kept]
            logits_BV = self._step(state, token_B)

    def _prefill(self, prompts: Sequence[PromptInputs]) -> tuple[_State, Tensor]:
        """Read some prompts into a cache, and compute the logits of the first token of a reply."""
        none_BR = torch.zeros(len(prompts), 0, dtype=torch.long)
        inputs = collate(prompts, none_BR, none_BR, pad_id=self._pad)
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        # positions by hand: the model would remember those of an earlier batch, and count padding in one without images
        position_3BP, delta_B1 = self.model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs.get("image_grid_thw"),
            attention_mask=inputs["attention_mask"],
        )
        cache = open_cache(self.model.config.get_text_config())
        logits_B1V = self.model(
            **inputs, position_ids=position_3BP, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits
        mask_BP = inputs["attention_mask"]
        next_B = mask_BP.sum(dim=1) + delta_B1[:, 0]
        return _State(cache, mask_BP if bool((mask_BP == 0).any()) else None, next_B), logits_B1V[:, -1]

    def _step(self, state: _State, token_B: Tensor) -> Tensor:
        """Logits (B, V) of the token after `token_B`; `state` grows by one position."""
        if state.mask_BP is not None:
            state.mask_BP = torch.nn.functional.pad(state.mask_BP, (0, 1), value=1)
        logits_B1V = self.model(
            input_ids=token_B[:, None],
            attention_mask=state.mask_BP,
            position_ids=state.next_B.expand(3, -1)[:, :, None],
            past_key_values=state.cache,
            use_cache=True,
        ).logits
        state.next_B = state.next_B + 1
        return logits_B1V[:, -1]

    def sleep(self) -> None:
        """Move the weights to the CPU, unless they are there already."""
        if self._device.type == "cuda":
            self.model.to("cpu")  # type: ignore[arg-type]  # as above
            torch.cuda.empty_cache()

    def wake(self) -> None:
        if self._device.type == "cuda":
            self.model.to(self._device)  # type: ignore[arg-type]  # as above


def penalised(logits_BV: Tensor, seen_BV: Tensor, *, penalty: float) -> Tensor:
    """Logits with those of the tokens that were seen made smaller, as transformers and vLLM do it."""
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def truncate(prob_BV: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities with the tokens outside top-k, and then outside top-p of the rest, set to 0; not normalised."""
    if sampling.top_k < 1 and sampling.top_p >= 1:
        return prob_BV
    sorted_BV, order_BV = prob_BV.sort(dim=-1, descending=True)
    if sampling.top_k >= 1:
        sorted_BV[:, sampling.top_k :] = 0
    sorted_BV = sorted_BV / sorted_BV.sum(dim=-1, keepdim=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    sorted_BV[before_BV >= sampling.top_p] = 0  # the first token always stays: nothing is before it
    return torch.zeros_like(sorted_BV).scatter(1, order_BV, sorted_BV)


def pick(weight_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Draw a token per row in proportion to its weights, by a random number in [0, 1) for each row.

    The token is where the running sum of weights passes that share of the whole. One number decides, so a row's token
    does not depend on how many rows there are.
    """
    sum_BV = weight_BV.double().cumsum(dim=-1)
    share_B = uniform_B.clamp(max=1 - 2**-40)  # so that rounding cannot reach the whole
    token_B = torch.searchsorted(sum_BV, share_B[:, None] * sum_BV[:, -1:], right=True)[:, 0]
    return token_B.clamp(max=weight_BV.shape[1] - 1)  # only where a weight was NaN, which `batch` reports


@dataclass
class _State:
    """The state of the rows of a batch between two tokens."""

    cache: DynamicCache
    mask_BP: Tensor | None
    """1 on real tokens, of prompt and reply so far; None if there is no padding."""
    next_B: Tensor
    """Rotary position of the next token; the same in all three axes, as for any text."""
    seen_BV: Tensor | None = None
    """bool: tokens that the prompt or the reply so far holds; None without a repetition penalty."""

    def select(self, rows: Tensor) -> _State:
        """These rows, a row possibly several times. The cache is handed over: this state is of no use afterwards."""
        self.cache.batch_select_indices(rows)
        mask_BP, seen_BV = (None if part is None else part[rows] for part in (self.mask_BP, self.seen_BV))
        return _State(self.cache, mask_BP, self.next_B[rows], seen_BV)


@dataclass
class _Replies:
    """All replies of a call, filled position by position."""

    token_BR: Tensor
    mask_BR: Tensor
    logprob_BR: Tensor
    finished_B: Tensor

    @classmethod
    def empty(cls, rows: int, length: int, *, pad: int, device: torch.device) -> _Replies:
        return cls(
            torch.full((rows, length), pad, device=device),
            torch.zeros(rows, length, dtype=torch.long, device=device),
            torch.zeros(rows, length, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )

    def write(self, row_B: Tensor, position: int, token_B: Tensor, logprob_B: Tensor) -> None:
        """One token for each of these rows, except those that have ended."""
        going_B = ~self.finished_B[row_B]
        rows = row_B[going_B]
        self.token_BR[rows, position] = token_B[going_B]
        self.logprob_BR[rows, position] = logprob_B[going_B]
        self.mask_BR[rows, position] = 1

    def batch(self) -> Batch:
        """The replies, cut to the longest one. FloatingPointError where a log-probability is not finite."""
        if not bool(self.logprob_BR.isfinite().all()):
            raise FloatingPointError("the rollout model's log-probabilities are not finite: its weights may be broken")
        length = int(self.mask_BR.sum(dim=1).max()) if len(self.mask_BR) else 0
        tensors = {
            "responses": self.token_BR[:, :length],
            "response_mask": self.mask_BR[:, :length],
            "engine_logprobs": self.logprob_BR[:, :length],
        }
        return Batch(tensors, {"finished": self.finished_B.tolist()}).to("cpu")


def _some(names: Sequence[str], *, most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
