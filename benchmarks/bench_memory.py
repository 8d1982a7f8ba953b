"""Measures the memory of policy and tracker at their real sizes by tracing tensors, and so how they can share a GPU.

Usage: ``python -m benchmarks.bench_memory [--frames T]``. Qwen2.5-VL 3B and 7B and SAM2.1 hiera-large have random
weights and run here on the CPU in float32; every live tensor is counted, so the numbers hold for any device except for
memory inside of kernels. A prompt's pass is measured in one layer of each kind (the next layer reuses the memory of the
last one) and halved for bfloat16; weights and cache are computed from the configuration. The tracker is measured as a
whole: on a GPU, under autocast, it takes less.
"""

from __future__ import annotations

import argparse
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.bench_sam2 import DriftingFrames, quiet
from inference import options
from veason.tables import aligned
from veason.trackers.sam2 import FEATURE_BUDGET, Sam2Tracker, build_predictor

GIB = 1 << 30
SHOWN, CELLS, WORDS, REPLY = 8, 20, 300, 1024
"""Frames of a prompt; tokens along a side of a frame (560 / 28); tokens of text; tokens of the longest reply."""
CARDS = (24, 40, 80)
"""Memory of common cards in GiB."""
CONTEXT = 0.6
"""GiB of a process for CUDA itself, its libraries and fragmentation: an allowance, not measured."""
HIERA_LARGE = "configs/sam2.1/sam2.1_hiera_l.yaml"


@dataclass(frozen=True)
class Policy:
    """Dimensions of a published Qwen2.5-VL."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    def config(self, *, layers: int, vision_layers: int) -> Qwen2_5_VLConfig:
        text = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": self.tied,
        }
        vision = {
            "depth": vision_layers,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": self.hidden,
            "fullatt_block_indexes": [vision_layers - 1],
        }
        ids = {"image_token_id": 151655, "vision_start_token_id": 151652, "vision_end_token_id": 151653}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=self.tied, **ids)

    @property
    def weights(self) -> int:
        """Bytes in bfloat16."""
        with torch.device("meta"):
            model = Qwen2_5_VLForConditionalGeneration(self.config(layers=self.layers, vision_layers=32))
        return 2 * sum(p.numel() for p in model.parameters())

    @property
    def cache(self) -> int:
        """Bytes of keys and values of a prompt and the longest reply, in bfloat16."""
        return self.layers * 2 * self.kv_heads * (self.hidden // self.heads) * 2 * (prompt_tokens() + REPLY)


POLICIES = {
    "Qwen2.5-VL-3B": Policy(2048, 11008, 36, 16, 2, 151936, tied=True),
    "Qwen2.5-VL-7B": Policy(3584, 18944, 28, 28, 4, 152064, tied=False),
}


def prompt_tokens() -> int:
    return SHOWN * (CELLS**2 + 2) + WORDS


def prompts(config: Qwen2_5_VLConfig, rows: int) -> dict[str, Any]:
    """Returns the inputs of `rows` equal prompts: the frames, then the text."""
    frame = [config.vision_start_token_id, *[config.image_token_id] * CELLS**2, config.vision_end_token_id]
    ids = torch.tensor([frame * SHOWN + [100] * WORDS] * rows)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.randn(rows * SHOWN * (2 * CELLS) ** 2, 1176),
        "image_grid_thw": torch.tensor([[1, 2 * CELLS, 2 * CELLS]] * SHOWN * rows),
    }


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every tensor that is made inside, until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for storage in {t.untyped_storage()._cdata: t.untyped_storage() for t in _tensors(made)}.values():
            if storage._cdata not in given:  # neither a view nor written in place
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return made

    def _add(self, count: int) -> None:
        self.now += count
        self.peak = max(self.peak, self.now)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@torch.inference_mode()
def peak(work: Callable[[], Any]) -> tuple[int, int, Any]:
    """Returns (bytes at the peak, bytes at the end, result) of some work, counting the tensors that it makes."""
    with LiveBytes() as alive:
        made = work()
        return alive.peak, alive.now, made


def prompt_bytes(policy: Policy) -> int:
    """Returns the bytes in bfloat16 that one more prompt takes beyond weights and cache: the growth from one to two."""
    config = policy.config(layers=1, vision_layers=1)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    found = []
    for rows in (1, 2):
        inputs = prompts(config, rows)
        most, _, _ = peak(lambda inputs=inputs: model(**inputs, use_cache=True, logits_to_keep=1))
        found.append(most)
    cache = 2 * policy.kv_heads * (policy.hidden // policy.heads) * 4 * prompt_tokens()  # one layer's, in float32
    return (found[1] - found[0] - cache) // 2


@dataclass(frozen=True)
class Tracking:
    """Bytes of SAM2 in float32."""

    weights: int
    feature: int
    """Bytes of the features of a frame."""
    encoding: int
    """Bytes at the peak of encoding a frame, beyond its features."""
    at_work: dict[int, int]
    """Bytes at the peak of tracking, beyond weights and features, by the number of objects."""


def tracking(frames: int, objects: Sequence[int]) -> Tracking:
    predictor = build_predictor(HIERA_LARGE, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random.pt"
        torch.save({"model": predictor.state_dict()}, checkpoint)
        tracker = Sam2Tracker(config=HIERA_LARGE, checkpoint=checkpoint, device="cpu")
    weights = sum(tensor.untyped_storage().nbytes() for tensor in tracker.predictor.state_dict().values())
    video = DriftingFrames(frames)
    most, end, encoded = peak(lambda: tracker.encode(video))
    feature = sum(tensor.untyped_storage().nbytes() for tensor in encoded.features.get(0)[1]["backbone_fpn"])
    at_work = {}
    for count in objects:
        boxes = [np.array([20 + 10 * k, 20, 120 + 10 * k, 120], np.float32) for k in range(count)]
        at_work[count], _, _ = peak(lambda boxes=boxes: tracker.track(encoded, keyframe=frames // 2, boxes=boxes))
    return Tracking(weights, feature, most - end + feature, at_work)


def gib(count: float) -> str:
    return f"{count / GIB:.2f}"


def policy_table(needs: dict[str, tuple[int, int, int]]) -> str:
    rows = []
    for name, (weights, cache, once) in needs.items():
        batches = [weights + batch * (cache + once) for batch in (1, 8, 32)]
        rows.append((name, *map(gib, (weights, cache, once, *batches))))
    head = ("weights", "cache of a reply", "reading a prompt", "batch of 1", "of 8", "of 32")
    return aligned(("policy, bfloat16, GiB", *head), rows)


def tracker_table(found: Tracking, frames: int) -> str:
    rows = [
        ("weights", gib(found.weights)),
        ("features of a frame", f"{found.feature / GIB:.4f}"),
        (f"features kept on the GPU at most, of {FEATURE_BUDGET // found.feature} frames", gib(FEATURE_BUDGET)),
        ("encoding a frame, beyond that", gib(found.encoding)),
    ]
    for count, most in found.at_work.items():
        rows.append((f"{frames} frames, {count} object{'s' * (count > 1)}: tracking, beyond that", gib(most)))
    return aligned(("SAM2.1 hiera-large, float32", "GiB"), rows)


def share_table(needs: dict[str, tuple[int, int, int]], tracker: int, lean: int) -> str:
    """Formats the largest batch that fits beside the tracker in the default shares of some cards."""
    rows = []
    for card in CARDS:
        room = [share * card - CONTEXT for share in options.GPU_SHARES]
        fits = {"all of it": tracker, "with --sam2-offload": lean}
        beside = next((how for how, need in fits.items() if need / GIB <= room[1]), "does not fit")
        batches = [int((room[0] * GIB - weights) // (cache + once)) for weights, cache, once in needs.values()]
        rows.append((f"{card} GiB", *(str(b) if b > 0 else "does not fit" for b in batches), beside))
    head = (f"largest batch of hf in {options.GPU_SHARES[0]} of a card", *needs, f"SAM2 in {options.GPU_SHARES[1]}")
    return aligned(head, rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_memory", description=__doc__)
    parser.add_argument("--frames", type=int, default=8, metavar="T", help="frames of the tracked clip (default: 8)")
    args = parser.parse_args(argv)
    quiet()
    needs = {name: (p.weights, p.cache, prompt_bytes(p)) for name, p in POLICIES.items()}
    print(f"{SHOWN} frames of 560 px, {prompt_tokens():,} tokens a prompt, replies of {REPLY:,}\n")
    print(policy_table(needs), end="\n\n")
    found = tracking(args.frames, (1, 4))
    print(tracker_table(found, args.frames), end="\n\n")
    lean = found.weights + max(found.encoding, *found.at_work.values())
    print(share_table(needs, lean + FEATURE_BUDGET, lean))


if __name__ == "__main__":
    main()
