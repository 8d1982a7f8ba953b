"""Trains the base policy of the embedded default from scratch: a tiny Qwen2.5-VL that boxes named objects.

    python -m demo.pretrain --out runs/base

The vision tower is trained first (`probe`), then the whole model: on single frames, on clips, and on clips with the
whole prompt (`pretraining_data`). The folder ``base_policy/pretraining`` has the settings, times and curve of the
shipped model. Training takes up to an hour on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from types import MethodType
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
from veason.command import run_command

logger = logging.getLogger(__name__)

SIZE_OF_BASE = PolicySize(hidden=192, layers=4, mlp=384, vision_hidden=128, vision_layers=2, vision_mlp=256)
SPREAD = {COORDINATE: 1.2, SIZE: 0.8}
"""Standard deviation of the soft labels, in units of the number."""
WEIGHTS = {COORDINATE: 2.0, NAME: 3.0}
"""Weights of tokens in the loss, 1 for every other: the rest of a reply depends on the object and its place."""
WARM_UP = 50
WAVES = (400.0, 200.0, 100.0, 66.0, 50.0, 40.0, 30.0, 24.0, 18.0, 12.0)
"""Periods of the waves that the numbers' embeddings are initialised with."""


@dataclass(frozen=True)
class Stage:
    """Consecutive training steps with the same settings."""

    name: str
    steps: int
    frames: tuple[int, ...]
    """Number of frames of a clip; one is drawn for each step."""
    clips: int
    """Number of clips in a step."""
    questions: int
    """Number of questions about a clip."""
    style: str = "rough"
    """Style of the replies (`pretraining_data.turns`)."""
    instructions: bool = False
    """True: the sequence holds the prompt's instructions."""


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
    """Folder of the record, and of the state while training."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """One record per measurement."""
    start: float = field(default_factory=time.perf_counter)

    def log(self, **values: Any) -> None:
        line = {"seconds": round(time.perf_counter() - self.start), **values}
        self.curve.append({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})
        logger.info("%s", json.dumps(self.curve[-1]))


# ------------------------------------------------------------------------------------------------------ the model


def batched_vision(model: PreTrainedModel) -> None:
    """Make the vision tower attend within all frames at once; the stock one takes them one after the other."""

    def attend(
        attention: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        length, frames = hidden_states.shape[0], len(cu_seqlens) - 1
        parts = attention.qkv(hidden_states).reshape(length, 3, attention.num_heads, -1).unbind(1)
        parts = (*apply_rotary_pos_emb_vision(parts[0], parts[1], *position_embeddings), parts[2])
        query, key, value = (x.reshape(frames, length // frames, *x.shape[1:]).transpose(1, 2) for x in parts)
        made = nn.functional.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
        return attention.proj(made.transpose(1, 2).reshape(length, -1))

    for block in model.model.visual.blocks:
        block.attn.forward = MethodType(attend, block.attn)


def encode_frames(model: PreTrainedModel, patches: Tensor) -> Tensor:
    """Encode frames, given as patches, into tokens (frames · TOKENS, hidden)."""
    grid = torch.tensor([[1, 2 * CELLS, 2 * CELLS]] * (patches.shape[0] // (4 * TOKENS)))
    return model.model.visual(patches, grid_thw=grid).pooler_output


def reply_logits(model: PreTrainedModel, pack: Pack) -> tuple[Tensor, Tensor]:
    """Return logits (N, V) of the N reply tokens and their (N, 2) rows and columns."""
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
    """Sum the weighted cross-entropies; a number's label is spread over its neighbours, so a near miss costs less."""
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
    """Return (N,) weights of tokens of these kinds."""
    weights = torch.ones(kinds.shape)
    for kind, weight in WEIGHTS.items():
        weights[kinds == kind] = weight
    return weights


# ------------------------------------------------------------------------------------------------------ training


def train(trainer: Trainer) -> None:
    """Train all stages, from where the last run of the same command stopped, if it did."""
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
    """Save everything that later steps depend on."""
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
    """Restore the state of a stopped run, but for the optimisers, and return it; None if there is none."""
    path = trainer.folder / "state.pt"
    if not path.exists():
        return None
    state = torch.load(path, weights_only=True)
    trainer.model.load_state_dict(state["model"])
    trainer.rng.setstate(state["rng"])
    trainer.curve, trainer.start = state["curve"], time.perf_counter() - state["seconds"]
    logger.info("going on after step %d", state["step"])
    return state


@torch.no_grad()
def smooth_numbers(model: PreTrainedModel, packer: Packer, std: float = 0.05) -> None:
    """Initialise the numbers' embeddings and head rows as sums of waves, so that near numbers start out similar."""
    phase = 2 * torch.pi * torch.arange(len(packer.numbers))[:, None] / torch.tensor(WAVES)
    waves = torch.cat([phase.cos(), phase.sin()], dim=1) / len(WAVES) ** 0.5  # (numbers, 2 · waves), rows of norm 1
    for weight in (model.model.language_model.embed_tokens.weight, model.lm_head.weight):
        smooth = waves @ (std * torch.randn(waves.shape[1], weight.shape[1]))
        weight[packer.numbers] = smooth + 0.1 * weight[packer.numbers]


def train_vision_tower(trainer: Trainer) -> None:
    """Train the vision tower in its own stage; the logged IoU is that of the probe's boxes in occupied cells."""
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
    """Compute the gradients and loss of one step, a few clips at a time so that tensors stay in the CPU's cache."""
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
    """Pack a clip of each example with questions about it; None if the frames answer no question."""
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
    """Measure held-out examples under teacher forcing: IoU of boxes, mean error of sizes, share of right first colours.

    Of several targets any may come first, so that the share of right colours cannot reach 1.
    """
    packer, rng, short = trainer.packer, Random(5), stage.style == "short"
    frames = 1 if stage.frames == (1,) else 5
    sums = {name: torch.zeros(2) for name in ("iou", "size_error", "name")}
    for start in range(0, len(trainer.held_out), 16):
        pack = draw_pack(
            trainer.held_out[start : start + 16], packer, rng, frames, stage, style="short" if short else "reply"
        )
        assert pack is not None  # held-out frames answer some question
        logits, where = reply_logits(trainer.model, pack)
        rows, columns = where.T
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
    """Return the IoUs (M,) of boxes (M, 4) in pairs, with inclusive corners."""
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
    """Plot loss and measurements over minutes, in one colour per stage."""
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
    parser.add_argument(
        "--examples", type=int, default=5000, metavar="N", help="number of scenes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=1.6e-3, help="default: %(default)s")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=args.seed, size=SIZE_OF_BASE)
    logger.info("%.2fM parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    logger.info("drawing %d scenes", args.examples)
    seen = make_examples(args.examples, seed=args.seed)
    held_out = make_examples(96, seed=args.seed + 1_000_000)
    folder = args.out / "pretraining"  # not where loaders and exporters look for the model's files
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
    sys.exit(run_command(main))
