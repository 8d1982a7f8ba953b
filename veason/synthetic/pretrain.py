"""Train the base policy of the embedded default from scratch: a tiny Qwen2.5-VL that sees, but knows no better.

    python -m veason.synthetic.pretrain --out runs/base --minutes 45

First single frames, then clips; the last part with the whole prompt. What it learns is in `lessons`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from veason import atomic
from veason.synthetic.lessons import Lesson, Turn, choose_frames, lessons, turns
from veason.synthetic.muon import Muon
from veason.synthetic.packing import COORDINATE, SIZE, TOKENS, Pack, Packer
from veason.synthetic.policy import PolicySize, build_model, build_processor
from veason.synthetic.tokenizer import build_tokenizer

SIZE_OF_BASE = PolicySize(hidden=192, layers=4, mlp=384, vision_hidden=128, vision_layers=2, vision_mlp=256)
SPREAD = {COORDINATE: 1.2, SIZE: 0.8}
"""Standard deviation of the soft labels, in units of the number."""


@dataclass(frozen=True)
class Stage:
    """A share of the time, spent in one way."""

    name: str
    share: float
    frames: tuple[int, ...]
    """Numbers of frames of a clip, drawn from."""
    clips: int
    """In a step."""
    questions: int
    """Of a clip."""
    instructions: bool
    """Whether the prompt's instructions stand in the sequence."""
    together: int
    """Clips that go through the model at once."""


STAGES = (
    Stage("frames", 0.25, (1,), clips=64, questions=3, instructions=False, together=16),
    Stage("clips", 0.55, (3, 4, 5, 6), clips=20, questions=6, instructions=False, together=5),
    Stage("prompts", 0.20, (1, 4, 5, 6), clips=12, questions=5, instructions=True, together=3),
)


def batched_vision(model: PreTrainedModel) -> None:
    """Let the vision tower attend within all frames at once; the stock one takes them one after the other."""
    for block in model.model.visual.blocks:
        block.attn.forward = _attend.__get__(block.attn)


def _attend(attention: nn.Module, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings, **_) -> Tensor:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    length, frames = hidden_states.shape[0], len(cu_seqlens) - 1
    query, key, value = attention.qkv(hidden_states).reshape(length, 3, attention.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    query, key, value = (x.reshape(frames, length // frames, *x.shape[1:]).transpose(1, 2) for x in (query, key, value))
    made = nn.functional.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
    return attention.proj(made.transpose(1, 2).reshape(length, -1))


def hidden_states(model: PreTrainedModel, packer: Packer, pack: Pack) -> Tensor:
    """(B, L, hidden) of the last text layer."""
    inner = model.model
    embedded = inner.language_model.embed_tokens(pack.ids)
    frames = pack.patches.shape[0] // (4 * TOKENS)
    side = 2 * int(TOKENS**0.5)
    seen = inner.visual(pack.patches, grid_thw=torch.tensor([[1, side, side]] * frames)).pooler_output
    embedded = embedded.masked_scatter((pack.ids == model.config.image_token_id)[..., None], seen)
    mask = torch.zeros(pack.mask().shape).masked_fill(~pack.mask(), torch.finfo(torch.float32).min)
    return inner.language_model(
        inputs_embeds=embedded,
        attention_mask={"full_attention": mask},
        position_ids=pack.positions,
        use_cache=False,
    ).last_hidden_state


def reply_logits(model: PreTrainedModel, packer: Packer, pack: Pack) -> tuple[Tensor, Tensor]:
    """Logits (N, V) of the N reply tokens, and where they stand: (N, 2) row and column."""
    where = pack.learned.nonzero()
    before = hidden_states(model, packer, pack)[where[:, 0], where[:, 1] - 1]
    return model.lm_head(before), where


def loss_of(logits: Tensor, where: Tensor, pack: Pack, numbers: Tensor) -> Tensor:
    """Mean cross-entropy; a number's label is spread over its neighbours, so that near is better than far."""
    logprobs = logits.log_softmax(dim=-1)
    rows, columns = where.T
    ids, kinds, values = (x[rows, columns] for x in (pack.ids, pack.kinds, pack.values))
    losses = -logprobs.gather(1, ids[:, None])[:, 0]
    for kind, spread in SPREAD.items():
        chosen = (kinds == kind).nonzero()[:, 0]
        distance = torch.arange(len(numbers)) - values[chosen, None]
        soft = (-0.5 * (distance / spread) ** 2).softmax(dim=-1)
        entropy = -torch.special.xlogy(soft, soft).sum(dim=-1)
        cross = -(soft * logprobs[chosen][:, numbers]).sum(dim=-1)
        losses = losses.index_copy(0, chosen, cross - entropy)
    return losses.mean()


@torch.no_grad()
def measure(model: PreTrainedModel, packer: Packer, held_out: Sequence[Lesson], frames: int) -> dict[str, float]:
    """With the true words so far given: IoU of the boxes, error of the sizes, share of right first name tokens."""
    rng = Random(5)
    counts = {"iou": [0.0, 0], "size_error": [0.0, 0], "name": [0.0, 0]}
    for start in range(0, len(held_out), 16):
        pack, asked = _pack(held_out[start : start + 16], packer, rng, frames, 5, instructions=False, rough=False)
        logits, where = reply_logits(model, packer, pack)
        rows, columns = where.T
        kinds, values, blocks = (x[rows, columns] for x in (pack.kinds, pack.values, pack.blocks))
        found = logits[:, packer.numbers].argmax(dim=-1).float()
        boxes = kinds == COORDINATE
        counts["iou"][0] += _ious(found[boxes].reshape(-1, 4), values[boxes].reshape(-1, 4)).sum().item()
        counts["iou"][1] += int(boxes.sum()) // 4
        counts["size_error"][0] += (found - values)[kinds == SIZE].abs().sum().item()
        counts["size_error"][1] += int((kinds == SIZE).sum())
        key = rows * 1000 + blocks
        first = torch.cat([torch.tensor([True]), key[1:] != key[:-1]]).nonzero()[:, 0] + 4  # <think>This is the COLOUR
        counts["name"][0] += (logits[first].argmax(dim=-1) == pack.ids[rows[first], columns[first]]).sum().item()
        counts["name"][1] += len(first)
    return {name: total / max(number, 1) for name, (total, number) in counts.items()}


def _ious(a: Tensor, b: Tensor) -> Tensor:
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    inside = (high - low + 1).clamp(min=0).prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2] + 1).clamp(min=0).prod(dim=1) for box in (a, b)]
    return inside / (areas[0] + areas[1] - inside)


def _pack(
    chosen: Sequence[Lesson], packer: Packer, rng: Random, frames: int, questions: int, *, instructions: bool,
    rough: bool = True,
) -> tuple[Pack, list[list[Turn]]]:  # fmt: skip
    clips, asked = [], []
    for lesson in chosen:
        shown = choose_frames(lesson, min(frames, len(lesson.frame_ids)), rng)
        found = list(turns(lesson, shown, questions, rng, rough=rough))
        if found:
            clips.append(([lesson.frame_ids[k] for k in shown], lesson.frames[shown]))
            asked.append(found)
    return packer.pack(clips, asked, instructions=instructions), asked


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=args.seed, size=SIZE_OF_BASE).train()
    batched_vision(model)
    packer, rng = Packer(tokenizer, model), Random(args.seed)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters", flush=True)
    start = time.perf_counter()
    school = lessons(args.lessons, seed=args.seed)
    held_out = lessons(96, seed=args.seed + 1_000_000)
    print(f"{len(school)} lessons in {time.perf_counter() - start:.0f} s", flush=True)
    optimizers = make_optimizers(model, args.lr)
    curve, log = [], open(args.log, "w") if args.log else None
    start, step, budget = time.perf_counter(), 0, 60.0 * args.minutes
    last = -1e9
    for stage, progress in schedule(start, budget):
        factor = min(1.0, (step + 1) / 50, (1 - progress) / 0.5)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * max(factor, 0.01)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = learn(model, packer, rng.sample(school, stage.clips), stage, rng)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        if time.perf_counter() - last > args.every:
            last = time.perf_counter()
            model.eval()
            found = measure(model, packer, held_out, 1 if stage.frames == (1,) else 5)
            model.train()
            line = {"step": step, "seconds": last - start, "stage": stage.name, "loss": loss, **found}
            curve.append(line)
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}), flush=True)
            save(model, tokenizer, args, curve, step, last - start)
    save(model, tokenizer, args, curve, step, time.perf_counter() - start)


def learn(model: PreTrainedModel, packer: Packer, chosen: Sequence[Lesson], stage: Stage, rng: Random) -> float:
    """Gradients of one step, a few clips at a time: small tensors stay in the processor's cache."""
    frames = rng.choice(stage.frames)
    packs = [
        _pack(chosen[i : i + stage.together], packer, rng, frames, stage.questions, instructions=stage.instructions)[0]
        for i in range(0, len(chosen), stage.together)
    ]
    total, sum_of_losses = sum(int(pack.learned.sum()) for pack in packs), 0.0
    for pack in packs:
        logits, where = reply_logits(model, packer, pack)
        loss = loss_of(logits, where, pack, packer.numbers) * (len(where) / total)
        loss.backward()
        sum_of_losses += loss.item()
    return sum_of_losses


def schedule(start: float, budget: float) -> Iterator[tuple[Stage, float]]:
    """The stage of every step and the share of the time that has gone."""
    while (progress := (time.perf_counter() - start) / budget) < 1:
        done = 0.0
        for stage in STAGES:
            done += stage.share
            if progress < done:
                break
        yield stage, progress


def make_optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, head, biases and norms."""
    apart = ("embed_tokens", "lm_head", "patch_embed")
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and not any(word in n for word in apart)]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    return [Muon(matrices, lr=lr), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def save(model, tokenizer, args, curve, step, seconds) -> None:
    model.save_pretrained(args.out)
    build_processor(tokenizer).save_pretrained(args.out)
    record = {"seed": args.seed, "lessons": args.lessons, "minutes": args.minutes, "lr": args.lr, "steps": step,
              "seconds": seconds, "stages": [asdict(stage) for stage in STAGES], "curve": curve}  # fmt: skip
    atomic.write_json(Path(args.out) / "pretraining.json", record)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m veason.synthetic.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--lessons", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--every", type=float, default=60, help="seconds between measurements")
    parser.add_argument("--log", type=Path)
    train(parser.parse_args(argv))


if __name__ == "__main__":
    main()
