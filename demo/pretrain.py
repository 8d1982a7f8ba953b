"""Train the base policy of the embedded default from scratch: a tiny Qwen2.5-VL that boxes what is named.

    python -m demo.pretrain --out runs/base

The vision tower is trained first (`probe`), then the whole model: on single frames, on clips, and on clips with all of
the prompt (`pretraining_data`). The folder ``base_policy/pretraining`` has the settings, times and curve of the shipped
model. Training takes up to an hour on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from demo import probe
from demo.muon import Muon
from demo.packing import COORDINATE, NAME, SIZE, TOKENS, Pack, Packer
from demo.policy import PolicySize, build_model, save_policy
from demo.pretraining_data import CELLS, Example, choose_frames, make_examples, turns
from demo.tokenizer import build_tokenizer
from veason import atomic

SIZE_OF_BASE = PolicySize(hidden=192, layers=4, mlp=384, vision_hidden=128, vision_layers=2, vision_mlp=256)
SPREAD = {COORDINATE: 1.2, SIZE: 0.8}
"""Standard deviation of the soft labels, in units of the number."""
WEIGHTS = {COORDINATE: 2.0, NAME: 3.0}
"""Of a token in the loss, 1 for every other: which object, and where, is what all the rest hangs on."""
WARM_UP = 50
WAVES = (400.0, 200.0, 100.0, 66.0, 50.0, 40.0, 30.0, 24.0, 18.0, 12.0)
"""Periods of the code that numbers start from."""


@dataclass(frozen=True)
class Stage:
    """Steps of one kind."""

    name: str
    steps: int
    frames: tuple[int, ...]
    """Numbers of frames of a clip, drawn from."""
    clips: int
    """In a step."""
    questions: int
    """Of a clip."""
    style: str = "rough"
    """Of the replies (`pretraining_data.turns`)."""
    instructions: bool = False
    """Whether the prompt's instructions stand in the sequence."""


VISION_STEPS, VISION_FRAMES, VISION_LR = 1200, 48, 3e-3
"""Steps of the vision tower's own stage, frames in each, and its learning rate."""

STAGES = (
    Stage("frames", 700, (1,), clips=8, questions=12, style="short"),
    Stage("moments", 300, (3, 4, 5, 6), clips=5, questions=12, style="short"),
    Stage("clips", 2600, (3, 4, 5, 6), clips=6, questions=6),
    Stage("prompts", 450, (1, 4, 5, 6), clips=4, questions=5, instructions=True),
)


@dataclass
class Trainer:
    """The state of one training run."""

    model: PreTrainedModel
    packer: Packer
    train: list[Example]
    held_out: list[Example]
    rng: Random
    lr: float
    folder: Path
    """Of the record, and of the state while training."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """A line per measurement."""
    start: float = field(default_factory=time.perf_counter)

    def log(self, **values: Any) -> None:
        line = {"seconds": round(time.perf_counter() - self.start), **values}
        self.curve.append({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})
        print(json.dumps(self.curve[-1]), flush=True)


# ------------------------------------------------------------------------------------------------------ the model


def batched_vision(model: PreTrainedModel) -> None:
    """Let the vision tower attend within all frames at once; the stock one takes them one after the other."""
    for block in model.model.visual.blocks:
        block.attn.forward = _attend.__get__(block.attn)


def _attend(attention: nn.Module, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings, **_) -> Tensor:
    length, frames = hidden_states.shape[0], len(cu_seqlens) - 1
    query, key, value = attention.qkv(hidden_states).reshape(length, 3, attention.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    query, key, value = (x.reshape(frames, length // frames, *x.shape[1:]).transpose(1, 2) for x in (query, key, value))
    made = nn.functional.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
    return attention.proj(made.transpose(1, 2).reshape(length, -1))


def encode_frames(model: PreTrainedModel, patches: Tensor) -> Tensor:
    """Tokens (frames · TOKENS, hidden) of frames that are given as patches."""
    grid = torch.tensor([[1, 2 * CELLS, 2 * CELLS]] * (patches.shape[0] // (4 * TOKENS)))
    return model.model.visual(patches, grid_thw=grid).pooler_output


def reply_logits(model: PreTrainedModel, pack: Pack) -> tuple[Tensor, Tensor]:
    """Logits (N, V) of the N reply tokens, and where they stand: (N, 2) row and column."""
    text = model.model.language_model
    embedded = text.embed_tokens(pack.ids)
    pictures = (pack.ids == model.config.image_token_id)[..., None]
    seen = pack.mask()
    hidden = text(
        inputs_embeds=embedded.masked_scatter(pictures, encode_frames(model, pack.patches)),
        attention_mask={"full_attention": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)},
        position_ids=pack.positions,
        use_cache=False,
    ).last_hidden_state  # (B, L, hidden)
    where = pack.learned.nonzero()
    return model.lm_head(hidden[where[:, 0], where[:, 1] - 1]), where


def loss_of(logits: Tensor, where: Tensor, pack: Pack, numbers: Tensor) -> Tensor:
    """Sum of the weighted cross-entropies; a number's label is spread over its neighbours: near is better than far."""
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
    return (losses * weights_of(kinds)).sum()


def weights_of(kinds: Tensor) -> Tensor:
    """(N,) weights of tokens of these kinds."""
    weights = torch.ones(kinds.shape)
    for kind, weight in WEIGHTS.items():
        weights[kinds == kind] = weight
    return weights


# ------------------------------------------------------------------------------------------------------ training


def train(trainer: Trainer) -> None:
    """All stages; from where the last run of the same command stopped, if it did."""
    trainer.model.train()
    batched_vision(trainer.model)
    state = load_state(trainer)
    if state is None:
        smooth_numbers(trainer.model, trainer.packer)
        train_vision_tower(trainer)
    trainer.model.model.visual.requires_grad_(False)  # the noise of untrained text layers would undo it
    optimizers = make_optimizers(trainer.model, trainer.lr)
    if state is not None:
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
    total, first = sum(stage.steps for stage in STAGES), state["step"] if state else 0
    for step, stage in enumerate(itertools.chain(*([stage] * stage.steps for stage in STAGES))):
        if step < first:
            continue
        set_lr(optimizers, trainer.lr * min(1.0, (step + 1) / WARM_UP, 2 * (total - step) / total))
        loss = accumulate_gradients(trainer, stage)
        nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        apply(optimizers)
        if (step + 1) % 100 == 0:
            trainer.log(stage=stage.name, step=step + 1, loss=loss, **measure(trainer, stage))
            save_state(trainer, optimizers, step + 1)


def save_state(trainer: Trainer, optimizers: Sequence[torch.optim.Optimizer], step: int) -> None:
    """Everything that the steps to come depend on."""
    state = {
        "model": trainer.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "rng": trainer.rng.getstate(),
        "curve": trainer.curve,
        "seconds": time.perf_counter() - trainer.start,
    }
    partial = trainer.folder / "state.partial"
    torch.save(state, partial)
    partial.rename(trainer.folder / "state.pt")


def load_state(trainer: Trainer) -> dict[str, Any] | None:
    """The state that a stopped run has left, put in place except for the optimisers; None if there is none."""
    path = trainer.folder / "state.pt"
    if not path.exists():
        return None
    state = torch.load(path, weights_only=True)
    trainer.model.load_state_dict(state["model"])
    trainer.rng.setstate(state["rng"])
    trainer.curve, trainer.start = state["curve"], time.perf_counter() - state["seconds"]
    print(f"going on after step {state['step']}", flush=True)
    return state


@torch.no_grad()
def smooth_numbers(model: PreTrainedModel, packer: Packer, std: float = 0.05) -> None:
    """Start the numbers' embeddings and head rows as sums of waves, so that near numbers are near from the first."""
    phase = 2 * torch.pi * torch.arange(len(packer.numbers))[:, None] / torch.tensor(WAVES)
    waves = torch.cat([phase.cos(), phase.sin()], dim=1) / len(WAVES) ** 0.5  # (numbers, 2 · waves), rows of norm 1
    for weight in (model.model.language_model.embed_tokens.weight, model.lm_head.weight):
        smooth = waves @ (std * torch.randn(waves.shape[1], weight.shape[1]))
        weight[packer.numbers] = smooth + 0.1 * weight[packer.numbers]


def train_vision_tower(trainer: Trainer) -> None:
    """The vision tower's own stage; the IoU it logs is of boxes that the probe reads from occupied cells."""
    tower, packer = trainer.model.model.visual, trainer.packer
    reader = probe.Probe(trainer.model.config.text_config.hidden_size)
    optimizers = make_optimizers(nn.ModuleDict({"tower": tower, "probe": reader}), VISION_LR)
    for step in range(VISION_STEPS):
        set_lr(optimizers, VISION_LR * min(1.0, (step + 1) / WARM_UP, 2.5 * (VISION_STEPS - step) / VISION_STEPS))
        labelled = probe.label_frames(trainer.rng.sample(trainer.train, VISION_FRAMES), trainer.rng)
        loss, _ = reader(
            encode_frames(trainer.model, packer.patches(labelled.frames)).unflatten(0, (-1, TOKENS)), labelled
        )
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        apply(optimizers)
        if (step + 1) % 200 == 0:
            with torch.no_grad():
                labelled = probe.label_frames(trainer.held_out, Random(5))
                seen = encode_frames(trainer.model, packer.patches(labelled.frames)).unflatten(0, (-1, TOKENS))
                loss, boxes = reader(seen, labelled)
            iou = _ious(boxes, labelled.boxes[labelled.occupied]).mean().item()
            trainer.log(stage="vision", step=step + 1, loss=loss.item(), iou=iou)


def accumulate_gradients(trainer: Trainer, stage: Stage) -> float:
    """The gradients and loss of one step, a few clips at a time so that tensors stay in the processor's cache."""
    frames = trainer.rng.choice(stage.frames)
    chosen = trainer.rng.sample(trainer.train, stage.clips)
    together = 8 if frames == 1 else 3
    packs = [
        pack
        for i in range(0, len(chosen), together)
        if (pack := draw_pack(chosen[i : i + together], trainer.packer, trainer.rng, frames, stage)) is not None
    ]
    total, sum_of_losses = sum(float(weights_of(pack.kinds[pack.learned]).sum()) for pack in packs), 0.0
    for pack in packs:
        logits, where = reply_logits(trainer.model, pack)
        loss = loss_of(logits, where, pack, trainer.packer.numbers) / total
        loss.backward()
        sum_of_losses += loss.item()
    return sum_of_losses


def draw_pack(
    chosen: Sequence[Example], packer: Packer, rng: Random, frames: int, stage: Stage, style: str | None = None
) -> Pack | None:
    """A clip of each example and questions about it; None if its frames happen to answer none."""
    clips, asked = [], []
    for example in chosen:
        shown = choose_frames(example, min(frames, len(example.frame_ids)), rng)
        found = list(turns(example, shown, stage.questions, rng, style=style or stage.style))
        if found:
            clips.append(([example.frame_ids[k] for k in shown], example.frames[shown]))
            asked.append(found)
    return packer.pack(clips, asked, instructions=stage.instructions) if clips else None


@torch.no_grad()
def measure(trainer: Trainer, stage: Stage) -> dict[str, float]:
    """With the true words so far given: IoU of the boxes, mean error of the sizes, share of right first colours (where
    several shapes are asked for, any of them may come first, so that all right is out of reach)."""
    packer, rng, short = trainer.packer, Random(5), stage.style == "short"
    frames = 1 if stage.frames == (1,) else 5
    sums = {name: torch.zeros(2) for name in ("iou", "size_error", "name")}
    for start in range(0, len(trainer.held_out), 16):
        pack = draw_pack(
            trainer.held_out[start : start + 16], packer, rng, frames, stage, style="short" if short else "reply"
        )
        logits, (rows, columns) = (lambda found: (found[0], found[1].T))(reply_logits(trainer.model, pack))
        kinds, values, blocks = (x[rows, columns] for x in (pack.kinds, pack.values, pack.blocks))
        numbers = logits[:, packer.numbers].argmax(dim=-1).float()
        boxes, sizes = kinds == COORDINATE, kinds == SIZE
        ious = _ious(numbers[boxes].reshape(-1, 4), values[boxes].reshape(-1, 4))
        sums["iou"] += torch.stack([ious.sum(), torch.tensor(float(len(ious)))])
        sums["size_error"] += torch.stack([(numbers - values)[sizes].abs().sum(), sizes.sum().float()])
        block = 1000 * rows + blocks
        colour = torch.cat([torch.tensor([True]), block[1:] != block[:-1]]).nonzero()[:, 0] + 4  # <think>This is the
        right = logits[colour].argmax(dim=-1) == pack.ids[rows[colour], columns[colour]]
        sums["name"] += torch.stack([right.sum().float(), torch.tensor(float(len(right)))])
    return {name: float(total / number) for name, (total, number) in sums.items() if name == "iou" or not short}


def _ious(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (M, 4) in pairs, inclusive corners."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    inside = (high - low + 1).clamp(min=0).prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2] + 1).clamp(min=0).prod(dim=1) for box in (a, b)]
    return inside / (areas[0] + areas[1] - inside)


def make_optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, head, biases and norms."""
    apart = ("embed_tokens", "lm_head", "patch_embed", "probe")
    matrices = [
        p
        for n, p in model.named_parameters()
        if p.requires_grad and p.dim() == 2 and not any(word in n for word in apart)
    ]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    return [Muon(matrices, lr=lr), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def set_lr(optimizers: Sequence[torch.optim.Optimizer], lr: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def apply(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


# ------------------------------------------------------------------------------------------------------ the command


def draw_curve(curve: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss and what was measured over minutes, a colour per stage."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    keys = ("loss", "iou", "size_error", "name")
    figure, axes = plt.subplots(1, len(keys), figsize=(15, 3), constrained_layout=True)
    for axis, key in zip(axes, keys, strict=True):
        for stage in dict.fromkeys(line["stage"] for line in curve):
            lines = [line for line in curve if line["stage"] == stage and key in line]
            axis.plot([line["seconds"] / 60 for line in lines], [line[key] for line in lines], label=stage, marker=".")
        axis.set(title=key.replace("_", " "), xlabel="minutes")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m demo.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the model")
    parser.add_argument("--examples", type=int, default=5000, metavar="N", help="scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=1.6e-3, help="default: %(default)s")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=args.seed, size=SIZE_OF_BASE)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters", flush=True)
    print(f"drawing {args.examples} scenes", flush=True)
    seen = make_examples(args.examples, seed=args.seed)
    held_out = make_examples(96, seed=args.seed + 1_000_000)
    folder = args.out / "pretraining"  # apart from what loaders and exporters take for the model's own files
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(model, Packer(tokenizer, model), seen, held_out, Random(args.seed), args.lr, folder)
    train(trainer)
    save_policy(model.eval(), tokenizer, args.out)
    stages = [asdict(stage) for stage in STAGES]
    record = {"seed": args.seed, "examples": args.examples, "lr": args.lr, "stages": stages, "curve": trainer.curve}
    atomic.write_json(folder / "record.json", record)
    draw_curve(trainer.curve, folder / "curve.png")
    (folder / "state.pt").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
