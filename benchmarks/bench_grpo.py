"""Compares one GRPO step, phase by phase, with TRL's GRPOTrainer: same tiny model, prompts, group size, reply length.

Usage: ``python -m benchmarks.bench_grpo [--prompts N] [--frames N] [--replies N] [--tokens N] …``. Both sides run in
this process and take turns: after each step of TRL's own training loop comes one of ours on the same prompts, so a busy
machine slows them alike. Ours is the work of a rank (`verl.workers.worker`, no Ray); the whole `RayTrainer` on one rank
follows, in wall-clock seconds. Both run in float32 on one thread: one optimiser step a batch, KL loss against a
reference model, no gradient checkpointing, as many rows a pass, replies that never end by themselves, a reward that
counts letters. It exits with 1 if the two sides did not have the same work.

Two differences remain: our update also compares the engine's log-probabilities with the actor's, and TRL has no engine
of its own to update. Equal work means the same prompts and as many generated tokens; the number of tokens that the
models read for it, with padding and repeats of a prompt, differs by design and is printed.

TRL 0.24 does not run this model under transformers 5; `trl_trainer` lists the corrections.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from torch import nn
from transformers import AutoProcessor, PrinterCallback, TrainerCallback
from transformers.utils import logging

from benchmarks import trl_peer
from demo.policy import write_tiny_policy
from veason.tables import aligned
from verl import config as configuration
from verl import core_algos
from verl.config import Config, DataConfig, RewardConfig
from verl.engines import generation, pretrained
from verl.engines.inputs import process
from verl.models import loading
from verl.protocol import Batch, Prompt, Reward
from verl.utils import runtime
from verl.utils.plugins import reads
from verl.workers.worker import Worker

WARM_UP = 2
"""Number of first steps of each side that are not measured."""
PHASES = ("generate", "reference", "reward", "update", "sync")
"""Names of the phases in the trainer's ``timings.jsonl``."""
TOKENS = ("prompt tokens, all rows", "reply tokens")
"""Work that must be equal on both sides."""
READ = ("tokens through text layers", "pictures encoded")
"""Work over all models and passes, which may differ."""
MOST_APART = 1e-4
"""Largest difference between the two sides' reference log-probabilities of the same replies."""
QUESTION = (
    "These are frames of a video in order. Find the shape that moves from left to right while all others stand still, "
    "say in which frame it is seen best, and give its box in that frame. Think first, then answer. This is shape {}."
)


# ---------------------------------------------------------------------------------------------------- the task


@dataclass
class PictureOptions(DataConfig):
    """The keys that the data set plug-in adds to ``data``."""

    pictures: int = 6
    side: int = 560


class Pictures:
    """A data set plug-in with prompts of a few random pictures each."""

    def __init__(self, config: PictureOptions) -> None:
        self._frames, self._side = config.pictures, config.side

    def __len__(self) -> int:
        return 1024

    def get(self, index: int, *, epoch: int) -> Prompt:
        rng = np.random.default_rng(index)
        shape = (self._side, self._side, 3)
        frames = [rng.integers(0, 255, shape, dtype=np.uint8) for _ in range(self._frames)]
        content = [*[{"type": "image"}] * self._frames, {"type": "text", "text": QUESTION.format(index)}]
        return Prompt(uid=str(index), messages=[{"role": "user", "content": content}], images=frames, target=None)


@reads(PictureOptions)
def open_pictures(config: PictureOptions, *, split: str) -> Pictures:
    return Pictures(config)


def letters(reply: str) -> float:
    """Returns the share of letters in a reply."""
    return sum(char.isalpha() for char in reply) / max(1, len(reply))


class Letters:
    """A reward plug-in that gives the share of letters."""

    def __init__(self, config: RewardConfig) -> None: ...

    def score(self, prompt: Prompt, replies: Sequence[str]) -> list[Reward]:
        return [Reward(total=letters(reply), parts={}) for reply in replies]


def write_policy(folder: Path) -> None:
    """Writes the tiny policy, with a generation configuration in which no token ends a reply."""
    write_tiny_policy(folder, seed=0)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": None}))


def settings(args: argparse.Namespace, policy: Path, output: Path) -> Config:
    """Returns the settings of both sides as our configuration."""
    total = args.prompts * args.replies
    rows = args.rows or total
    return configuration.load(
        [
            "data.name=benchmarks.bench_grpo:open_pictures",
            "data.train_files=unused",
            f"data.rollout_batch_size={args.prompts}",
            f"data.max_response_length={args.tokens}",
            f"data.pictures={args.frames}",
            f"data.side={args.side}",
            "data.shuffle=false",
            f"worker.actor.model.model_path={policy}",
            "worker.actor.model.enable_gradient_checkpointing=false",
            f"worker.actor.global_batch_size={args.prompts}",
            f"worker.actor.micro_batch_size_per_device_for_update={rows}",
            f"worker.actor.micro_batch_size_per_device_for_experience={rows}",
            "worker.actor.entropy_coeff=0",  # TRL has no entropy bonus; both sides measure the entropy
            f"worker.rollout.n={args.replies}",
            f"worker.rollout.batch_size={total}",
            "worker.reward.compute_score=benchmarks.bench_grpo:Letters",
            "worker.reward.num_cpus_per_worker=0.1",
            "trainer.n_gpus_per_node=1",
            "trainer.logger=[jsonl]",
            "trainer.save_freq=0",
            "trainer.rollouts_kept=0",
            f"trainer.max_steps={WARM_UP + args.steps}",
            f"trainer.save_checkpoint_path={output}",
        ]
    )


# ---------------------------------------------------------------------------------------------------- measuring


@dataclass
class Step:
    """Work and times of one step of one side."""

    seconds: dict[str, float] = field(default_factory=dict)
    """CPU seconds by phase."""
    wall: float = 0.0
    """Wall-clock seconds of the whole step."""
    work: Counter[str] = field(default_factory=Counter)
    """Tokens over all rows (a prompt counts once per reply), and tokens and pictures that the models read."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

    @contextmanager
    def whole(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.wall = time.perf_counter() - start


class Side:
    """The steps of one side; the last may be unfinished."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def count_work(self, *models: nn.Module) -> None:
        def tokens(text: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self.steps[-1].work[READ[0]] += kwargs["inputs_embeds"].shape[:2].numel()

        def pictures(tower: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            self.steps[-1].work[READ[1]] += len(kwargs["grid_thw"])

        for model in models:
            loading.plain(model).model.language_model.register_forward_pre_hook(tokens, with_kwargs=True)
            loading.vision_tower(model).register_forward_hook(pictures, with_kwargs=True)

    @property
    def measured(self) -> list[Step]:
        return self.steps[WARM_UP:]

    def seconds(self, phase: str) -> float:
        """Returns mean CPU seconds per step; 0 for a phase that this side does not have."""
        return statistics.fmean(step.seconds.get(phase, 0.0) for step in self.measured)

    def wall(self) -> float:
        """Returns mean wall-clock seconds per step."""
        return statistics.fmean(step.wall for step in self.measured)


# ---------------------------------------------------------------------------------------------------- our side


@contextmanager
def group_of_one() -> Iterator[None]:
    """Sets the environment from which a worker joins its process group, and ends that group."""
    before = dict(os.environ)
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        yield
    finally:
        runtime.leave()
        os.environ.clear()
        os.environ.update(before)


class Ours(Side):
    """Our side: a worker, driven as `RayTrainer` drives it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.worker = config, Worker(config, total_steps=config.trainer.max_steps or 0)
        actor = self.worker.actor
        assert actor.reference is not None
        self.count_work(self.worker.engine.model, actor.model, actor.reference)

    def step(self, prompts: Sequence[Prompt]) -> None:
        step = Step()
        self.steps.append(step)
        with step.whole():
            with step.phase("generate"):
                rollouts = self.worker.generate(prompts, step=len(self.steps))
            with step.phase("reference"):
                self.worker.add_reference_logprobs()
            with step.phase("reward"):
                rewards_B = torch.tensor([letters(rollout.text) for rollout in rollouts])
                groups_B = torch.arange(len(rollouts)) // self.config.worker.rollout.n
                advantages_B = core_algos.group_advantages(rewards_B, groups_B, estimator="grpo")
            with step.phase("update"):
                self.worker.update(advantages_B.tolist(), [True] * len(rollouts), [0] * len(rollouts))
            with step.phase("sync"):
                self.worker.sync_weights()
        step.work[TOKENS[0]] = sum(rollout.prompt_tokens for rollout in rollouts)
        step.work[TOKENS[1]] = sum(rollout.response_tokens for rollout in rollouts)

    def gap(self, prompts: Sequence[Prompt], scored: dict[str, Any]) -> float:
        """Returns the largest difference of our reference log-probabilities from TRL's on TRL's replies.

        A ValueError says that TRL's prompts have other tokens.
        """
        n = self.config.worker.rollout.n
        made = [process(prompt, self.worker.processor, max_length=10**6) for prompt in prompts]
        inputs = [prompt for prompt in made for _ in range(n)]
        for row, ids, mask in zip(inputs, scored["prompt_ids"], scored["prompt_mask"], strict=True):
            if row.input_ids.tolist() != ids[mask.bool()].tolist():
                raise ValueError(f"TRL's prompt has other tokens: {ids[mask.bool()].tolist()}, ours {row.input_ids}")
        tensors = {"responses": scored["completion_ids"], "response_mask": scored["completion_mask"]}
        ours = self.worker.actor.reference_logprobs(Batch(tensors, {"inputs": inputs}))
        return float((ours - scored["ref_per_token_logps"]).abs().max())


def with_ray(config: Config) -> list[float]:
    """Runs the whole trainer on one rank; returns wall-clock seconds per measured step."""
    from verl.ray.placement import connect
    from verl.trainer.ray_trainer import RayTrainer

    connect(address=None, cpus=2, quiet=True, store_bytes=200 * 1024**2)
    trainer = RayTrainer(config)
    try:
        trainer.fit()
    finally:
        trainer.close()
        ray.shutdown()
    lines = (trainer.folder / "timings.jsonl").read_text().splitlines()
    return [sum(json.loads(line)[phase] for phase in PHASES) for line in lines[WARM_UP:]]


# ---------------------------------------------------------------------------------------------------- TRL's side


class Theirs(Side, TrainerCallback):
    """TRL's side: times the steps of a GRPOTrainer and calls `after_step` after each of them."""

    def __init__(self, trainer: Any, after_step: Callable[[int, dict[str, Any]], None]) -> None:
        super().__init__()
        self._after_step = after_step
        self._scored: dict[str, Any] = {}
        self._wrap(trainer)
        trainer.add_callback(self)
        self.count_work(trainer.model, trainer.ref_model)

    def _wrap(self, trainer: Any) -> None:
        """Times the trainer's methods. The rest of `_prepare_inputs` is the reward, the rest of a step the update."""
        generate, prepare = trainer._generate, trainer._prepare_inputs
        score, judge = trainer._get_per_token_logps_and_entropies, trainer._generate_and_score_completions

        def timed_generate(*args: Any) -> Any:
            with self.steps[-1].phase("generate"):
                return generate(*args)

        def timed_score(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled():
                return score(model, *args, **kwargs)
            with self.steps[-1].phase("reference" if model is trainer.ref_model else "logprobs"):
                return score(model, *args, **kwargs)

        def timed_prepare(*args: Any) -> Any:
            with self.steps[-1].phase("prepare"):
                return prepare(*args)

        def kept_judge(*args: Any) -> Any:
            self._scored = judge(*args)
            return self._scored

        trainer._generate, trainer._prepare_inputs = timed_generate, timed_prepare
        trainer._get_per_token_logps_and_entropies, trainer._generate_and_score_completions = timed_score, kept_judge

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        step = Step()
        self.steps.append(step)
        self._clocks = ExitStack()
        self._clocks.enter_context(step.whole())
        self._clocks.enter_context(step.phase("whole"))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._clocks.close()
        step = self.steps[-1]
        whole, prepare = step.seconds.pop("whole"), step.seconds.pop("prepare")
        step.seconds["reward"] = prepare - sum(step.seconds.values())
        step.seconds["update"] = whole - prepare
        step.work[TOKENS[0]] = int(self._scored["prompt_mask"].sum())
        step.work[TOKENS[1]] = int(self._scored["completion_mask"].sum())
        self._after_step(len(self.steps) - 1, self._scored)


def trl_trainer(config: Config, prompts: Sequence[Prompt], output: Path) -> Any:
    """Returns a GRPOTrainer over these prompts, in order.

    Corrections for TRL 0.24 under transformers 5: ``warnings_issued``, which models no longer have;
    `_with_token_types`; and those of `trl_peer`.
    """
    trainer_class = trl_peer.grpo_trainer()
    from trl.trainer.grpo_config import GRPOConfig

    actor, rows = config.worker.actor, config.data.rollout_batch_size * config.worker.rollout.n
    passes = rows // actor.micro_batch_size_per_device_for_update
    model = pretrained.load_base(actor.model.model_path)
    model.warnings_issued = {}
    processor = AutoProcessor.from_pretrained(actor.model.model_path)
    ends = [processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id]
    arguments = GRPOConfig(
        output_dir=str(output),
        max_steps=config.trainer.max_steps,
        per_device_train_batch_size=rows // passes,
        gradient_accumulation_steps=passes,  # one generation, then one optimiser step
        num_generations=config.worker.rollout.n,
        max_prompt_length=None,
        max_completion_length=config.data.max_response_length,
        # our engine never generates vision tokens, which mean nothing in a reply
        generation_kwargs={"suppress_tokens": [*ends, *generation.banned_ids(model.config)]},
        temperature=config.worker.rollout.temperature,
        top_k=0,
        beta=actor.kl_loss_coef,
        loss_type="dapo",  # TRL's name for the mean over all tokens of the batch
        learning_rate=actor.optim.lr,
        weight_decay=actor.optim.weight_decay,
        lr_scheduler_type=actor.optim.lr_scheduler,
        max_grad_norm=actor.max_grad_norm,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        shuffle_dataset=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )

    def share_of_letters(completions: Sequence[Any], **_: Any) -> list[float]:
        return [letters(messages[0]["content"]) for messages in completions]

    trainer = trainer_class(
        model=model,
        reward_funcs=share_of_letters,
        args=arguments,
        train_dataset=[
            {"prompt": prompt.messages, "images": [Image.fromarray(image) for image in prompt.images]}
            for prompt in prompts
        ],
        processing_class=processor,
    )
    trainer.remove_callback(PrinterCallback)
    _with_token_types(trainer)
    return trainer


def _with_token_types(trainer: Any) -> None:
    """Gives the models ``mm_token_type_ids``, 1 on image tokens, in TRL's log-probability passes.

    TRL passes on those of the prompts alone, to a method that does not take them; without any, image tokens get the
    positions of text.
    """
    generate = trainer._generate_single_turn

    def without_types(*args: Any) -> tuple:
        *made, inputs = generate(*args)
        return *made, {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}

    def add_types(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if kwargs.get("pixel_values") is not None and kwargs.get("mm_token_type_ids") is None:
            kwargs["mm_token_type_ids"] = (kwargs["input_ids"] == model.config.image_token_id).long()
        return args, kwargs

    trainer._generate_single_turn = without_types
    for model in (trainer.model, trainer.ref_model):
        model.register_forward_pre_hook(add_types, with_kwargs=True)


# ---------------------------------------------------------------------------------------------------- comparing


def compare(args: argparse.Namespace, folder: Path) -> bool:
    """Prints the tables; returns True if both sides had the same work."""
    write_policy(folder / "policy")
    config = settings(args, folder / "policy", folder / "ours")
    pictures, size = Pictures(config.data), args.prompts
    prompts = [pictures.get(index, epoch=0) for index in range(size * (config.trainer.max_steps or 0))]
    trainer = trl_trainer(config, prompts, folder / "theirs")
    gaps: list[float] = []
    with group_of_one():
        ours = Ours(config)

        def after_step(step: int, scored: dict[str, Any]) -> None:
            mine = prompts[step * size : (step + 1) * size]
            ours.step(mine)
            if step == 0:  # while both sides still have the same weights
                gaps.append(ours.gap(mine, scored))

        theirs = Theirs(trainer, after_step)
        trainer.train()
    print(f"{size} prompts of {args.frames} frames of {args.side} x {args.side} px, {args.replies} replies each")
    print(f"{args.steps} steps a side, mean per step, after {WARM_UP} to warm up\n")
    print(aligned(("processor seconds", "TRL", "ours", "ratio"), list(phase_rows(theirs, ours))))
    clocks = {"TRL": theirs.wall(), "ours, a worker": ours.wall()}
    if not args.no_ray:
        clocks["ours, RayTrainer on one rank"] = statistics.fmean(with_ray(config))
    rows = [(name, f"{seconds:.3f}", f"x{clocks['TRL'] / seconds:.2f}") for name, seconds in clocks.items()]
    print(f"\n{aligned(('seconds of the clock, whole step', 'seconds', 'ratio'), rows)}")
    print(f"\n{aligned(('work', 'TRL', 'ours'), list(work_rows(theirs, ours)))}")
    print(f"\nreference log-probabilities of the same replies: at most {gaps[0]:.1e} apart")
    pairs = zip(theirs.steps, ours.steps, strict=True)
    return gaps[0] < MOST_APART and all(a.work[name] == b.work[name] for a, b in pairs for name in TOKENS)


def phase_rows(theirs: Side, ours: Side) -> Iterator[tuple[str, str, str, str]]:
    by_phase = [{phase: side.seconds(phase) for phase in PHASES} for side in (theirs, ours)]
    for phase in PHASES:
        yield phase, *_against(*(seconds[phase] for seconds in by_phase))
    yield "whole step", *_against(*(sum(seconds.values()) for seconds in by_phase))


def _against(theirs: float, ours: float) -> tuple[str, str, str]:
    """Formats both and their ratio; a phase that a side does not have is a dash."""
    ratio = f"x{theirs / ours:.2f}" if theirs and ours else "–"
    return *(f"{seconds:.3f}" if seconds else "–" for seconds in (theirs, ours)), ratio


def work_rows(theirs: Side, ours: Side) -> Iterator[tuple[str, str, str]]:
    for name in (*TOKENS, *READ):
        yield name, *(f"{statistics.fmean(step.work[name] for step in s.measured):,.0f}" for s in (theirs, ours))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_grpo", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--prompts", type=int, default=4, help="prompts of a step; default: %(default)s")
    parser.add_argument("--frames", type=int, default=4, help="frames of a prompt; default: %(default)s")
    parser.add_argument("--side", type=int, default=84, help="side of a frame in pixels; default: %(default)s")
    parser.add_argument("--replies", type=int, default=8, help="replies to a prompt; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a reply; default: %(default)s")
    parser.add_argument("--rows", type=int, default=0, help="rows of a pass, on both sides; default: all")
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each side; default: %(default)s")
    parser.add_argument("--no-ray", action="store_true", help="leave the whole RayTrainer out")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as a Ray worker; a tiny model is no faster on more
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        equal = compare(args, Path(temporary))
    print(f"work {'equal' if equal else 'DIFFERS'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
