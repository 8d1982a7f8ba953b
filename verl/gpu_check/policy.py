"""A random Qwen2.5-VL and what it is asked: tiny, or with the widths of the 3B model and fewer layers.

Built from transformers' classes and written like any checkpoint, so that everything else reads it as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from verl.engines.inputs import PromptInputs, process
from verl.protocol import Batch, Prompt

END, PAD = "<|im_end|>", "<|endoftext|>"
SPECIAL = (PAD, "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% for part in turn.content %}"
    "{{ part.text if part.type == 'text' else '<|vision_start|><|image_pad|><|vision_end|>' }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GROUP = 4
"""Replies to a prompt."""


@dataclass(frozen=True)
class Size:
    """How large the policy is, and what it is asked."""

    vocabulary: int
    text: dict[str, Any]
    vision: dict[str, Any]
    tied: bool
    pictures: int
    side: int
    """Pixels of a picture, a multiple of 28."""
    reply: int
    """Tokens of the longest reply."""
    shard_bytes: int
    """Of a file of the checkpoint, which is meant to have several."""
    lr: float
    """Of all weights: large enough for a second step to be better than the first."""
    adapter_lr: float
    """Large enough for one step to move log-probabilities by more than bfloat16 rounds them."""


SIZES = {
    # attention heads of 32 dimensions: the least that vLLM takes on a CPU
    "tiny": Size(
        vocabulary=512,
        text={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.05,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        },
        vision={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.05,
        },
        tied=False,
        pictures=2,
        side=84,
        reply=12,
        shard_bytes=200_000,
        lr=1e-3,
        adapter_lr=0.05,
    ),
    # 1.05e9 parameters: with gradients, both moments and what AdamW needs beside them 19.5 GiB in float32
    "mid": Size(
        vocabulary=151_936,
        text={
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 7,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision={
            "depth": 8,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [3, 7],
        },
        tied=True,
        pictures=4,
        side=336,
        reply=96,
        shard_bytes=500_000_000,
        lr=2e-5,
        adapter_lr=0.02,
    ),
}


def configure(size: Size, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    token = tokenizer.convert_tokens_to_ids
    ends = {"bos_token_id": None, "eos_token_id": token(END), "pad_token_id": token(PAD)}
    return Qwen2_5_VLConfig(
        text_config={"vocab_size": size.vocabulary, "tie_word_embeddings": size.tied, **size.text, **ends},
        vision_config=size.vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=size.tied,
        **ends,
    )


def make(size: Size, *, device: torch.device) -> PreTrainedModel:
    """The model in bfloat16, its weights drawn on the device."""
    tokenizer = make_tokenizer(size.vocabulary)
    torch.manual_seed(0)
    with device:
        model = AutoModelForImageTextToText.from_config(configure(size, tokenizer), dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model.eval()


def save(model: PreTrainedModel, folder: Path, *, size: Size) -> None:
    """Weights in several files, and all else that a checkpoint has."""
    model.save_pretrained(folder, max_shard_size=size.shard_bytes)
    tokenizer = make_tokenizer(size.vocabulary)
    pixels = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=pixels),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A token for each byte, which every text falls into, and as many more as the model has rows for."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"w{number}" for number in range(vocabulary - len(pieces) - len(SPECIAL))]
    made = Tokenizer(BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[token for token in SPECIAL if token not in (END, PAD)],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )


def ask(size: Size, *, rank: int) -> list[Prompt]:
    """This rank's two prompts, of different lengths."""
    rng = np.random.default_rng(rank)
    prompts = []
    for number in range(2):
        text = {"type": "text", "text": "what moves? " * (number + 1)}
        content = [*({"type": "image"} for _ in range(size.pictures)), text]
        images = [rng.integers(0, 256, (size.side, size.side, 3), dtype=np.uint8) for _ in range(size.pictures)]
        prompts.append(Prompt(f"{rank}/{number}", [{"role": "user", "content": content}], images, None))
    return prompts


def read(size: Size, processor: Any, *, rank: int) -> list[PromptInputs]:
    return [process(prompt, processor, max_length=8192) for prompt in ask(size, rank=rank)]


def rollouts(size: Size, inputs: list[PromptInputs], *, rank: int) -> Batch:
    """Replies as if someone had drawn them: `GROUP` to each prompt, of lengths down to 1, every second one praised."""
    generator = torch.Generator().manual_seed(rank)
    count = len(inputs) * GROUP
    lengths = torch.linspace(size.reply, 1, count).long()
    words = size.vocabulary - len(SPECIAL)
    tensors = {
        "responses": torch.randint(0, words, (count, size.reply), generator=generator),
        "response_mask": (torch.arange(size.reply) < lengths[:, None]).long(),
        "advantages": torch.tensor([1.0, -1.0]).repeat(count // 2),
    }
    return Batch(tensors, {"inputs": [item for item in inputs for _ in range(GROUP)]})
