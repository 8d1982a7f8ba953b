"""Checks of the rollout engines, and of the worker that holds one beside the actor, on a device."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from actor_checks import Found
from place import GROUP, PROMPT, Place, expect
from torch import Tensor

from inference.policies.engine import EnginePolicy
from veason.types import Clip, Question, VideoSample
from verl.config import Config, DataConfig, RolloutConfig, WorkerConfig
from verl.engines import open_engine
from verl.engines.base import RolloutEngine, Sampling
from verl.engines.generation import banned_ids
from verl.models import loading
from verl.protocol import Batch


def hf(place: Place) -> Found:
    """The engine hf: sync, group sampling, sleep, wake."""
    return _engine(place, "hf")


def vllm(place: Place) -> Found:
    """The engine vllm: sync, group sampling, sleep, wake."""
    if find_spec("vllm") is None:
        return "vllm is not installed"
    return _engine(place, "vllm")


def _engine(place: Place, name: str) -> Found:
    """Take the weights, draw, sleep, wake, take them again, draw the same: in the order in which a worker does it.

    The actor has learned before, so that an engine that kept the checkpoint's weights is far from it.
    """
    config = RolloutConfig(name=name, n=GROUP, max_model_len=PROMPT + place.sizes.reply)
    with place.group():
        actor = place.actor(adapter=True, offloaded=True)
        actor.update(place.rollouts())
        place.edge("actor")
        engine = open_engine(str(place.model), config=config, device=place.device, dtype=actor.compute_dtype)
        place.edge("engine")
        drawn = []
        for number in range(2):
            engine.wake()
            engine.sync_weights(actor.weights())
            actor.offload()
            awake = place.edge("synced, actor offloaded")
            start = time.perf_counter()
            drawn.append(_draw(place, engine))
            seconds = time.perf_counter() - start
            engine.sleep()
            asleep = place.edge("asleep")
            if number == 1 and name == "hf" and place.on_gpu:  # the first time, CUDA's libraries take room of their own
                _expect_freed(engine.model, awake - asleep)
        batch = drawn[0]
        gap = _gap(batch, actor.logprobs(batch))
        stale = _gap(batch, actor.reference_logprobs(batch))
        tokens, vision = batch["responses"][batch["response_mask"].bool()], loading.plain(actor.model).config
    never = torch.tensor(banned_ids(vision))
    expect(not bool(torch.isin(tokens, never).any()), "a vision token was drawn")
    expect(gap <= config.logprob_tolerance, f"engine and actor differ by {gap:.2g} a token, where a run would stop")
    expect(gap < stale / 2, f"engine and actor differ by {gap:.2g} a token, weights before the step by {stale:.2g}")
    alike = _alike(*drawn)
    # rounding may differ on a GPU; other seeds would give other first tokens almost everywhere
    expect(alike > 0.7 if place.on_gpu else alike == 1, f"after sleeping, {alike:.0%} of replies began alike")
    pace = float(drawn[1]["response_mask"].sum()) / seconds  # the second time nothing is compiled any more
    return {"tokens": len(tokens), "tokens/s": pace, "gap": gap, "if stale": stale, "drawn alike": alike}


def _draw(place: Place, engine: RolloutEngine) -> Batch:
    inputs = place.inputs()
    sampling = Sampling(max_tokens=place.sizes.reply)
    batch = engine.generate(inputs, n=GROUP, sampling=sampling, seeds=range(len(inputs)))
    batch.lists["inputs"] = [item for item in inputs for _ in range(GROUP)]
    return batch


def _gap(batch: Batch, logprobs_BR: Tensor) -> float:
    """Mean distance per token from the engine's log-probabilities."""
    return float((batch["engine_logprobs"] - logprobs_BR).abs()[batch["response_mask"].bool()].mean())


def _alike(ours: Batch, theirs: Batch) -> float:
    """Share of replies with the same first token."""
    return float((ours["responses"][:, 0] == theirs["responses"][:, 0]).double().mean())


def _expect_freed(model: torch.nn.Module, freed_gib: float) -> None:
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
    expect(freed_gib > 0.95 * size, f"sleeping freed {freed_gib:.2f} GiB of the engine's {size:.2f} GiB")


def worker(place: Place) -> Found:
    """A whole GRPO step of the training worker, twice."""
    if find_spec("ray") is None:
        return "ray is not installed"
    from verl.workers.worker import Worker

    config = _config(place)
    built = Worker(config, total_steps=2)  # enters the process group itself
    place.edge("worker, actor offloaded")
    prompts = place.prompts()
    count = len(prompts) * config.worker.rollout.n
    gaps = []
    for number in (1, 2):
        rollouts = built.generate(prompts, step=number)
        place.edge("generated, engine asleep")
        expect(len(rollouts) == count, f"{len(rollouts)} rollouts, {count} were wanted")
        gaps.append(built.add_logprobs()["mean"])
        expect(
            gaps[-1] <= config.worker.rollout.logprob_tolerance, f"engine and actor differ by {gaps[-1]:.2g} a token"
        )
        built.add_reference_logprobs()
        stats = built.update([1.0, -1.0] * (count // 2), [True] * count, [0] * count)
        expect(not stats["skipped"] and stats["grad_norm"] > 0, f"no step was made: {stats}")
        place.edge("updated")
        built.sync_weights()
        place.edge("synced, actor offloaded")
    return {"gap": gaps[0], "gap after a step": gaps[1], "kl": stats["kl"]}


def answers(place: Place) -> Found:
    """Inference asks this checkpoint, in bfloat16 on a GPU, and gets the same answers twice."""
    policy = EnginePolicy("hf", place.model, max_new_tokens=8)
    wanted = ("cuda", torch.bfloat16) if place.on_gpu else ("cpu", torch.float32)
    expect((policy.device.type, policy.dtype) == wanted, f"it answers on {policy.device} in {policy.dtype}")
    clip = Clip(frame_ids=(0, 1), size=(84, 84))
    images = (np.zeros((84, 84, 3), np.uint8), np.full((84, 84, 3), 200, np.uint8))
    questions = []
    for number, text in enumerate(("the red square", "what moves?", "the dog")):
        sample = VideoSample("revos", "video", str(number), text, ("00000", "00001"), Path(), (84, 84))
        questions.append(Question(sample=sample, clip=clip, images=images))
    first, second = (policy.answer(questions, seed=0) for _ in range(2))
    expect(first == second, f"answers changed from {first} to {second}")
    return {"answers": len(first)}


def _config(place: Place) -> Config:
    """A mid-size policy trains an adapter, as the README has it for one GPU."""
    actor = place.actor_config(adapter=place.size == "mid", use_kl_loss=True, offloaded=True)
    size = 2 * place.world_size
    actor.global_batch_size = size
    return Config(
        data=DataConfig(rollout_batch_size=size, max_prompt_length=PROMPT, max_response_length=place.sizes.reply),
        worker=WorkerConfig(actor=actor, rollout=RolloutConfig(name="hf", n=GROUP)),
    )
