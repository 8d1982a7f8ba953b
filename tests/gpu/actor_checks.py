"""Checks of the actor, its checkpoints and the export on a device. Each check is given a `Place` and returns numbers
to print, or a string that says why it was left out. Tolerances are relative to what bfloat16 itself costs, measured
in the same check, or exact."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from place import Place, expect
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText

from verl import export
from verl.engines import pretrained
from verl.protocol import Batch
from verl.utils import runtime
from verl.workers import checkpoint
from verl.workers.actor import Actor

Found = dict[str, float] | str


def build(place: Place) -> Found:
    """Random weights are made on the device, saved in shards, read back bit for bit."""
    model = place.write_policy()
    place.edge("made")
    shards = len(list(place.model.glob("*.safetensors")))
    expect(shards > 1, f"the checkpoint has {shards} file(s) of weights, several were wanted")
    made, again = model.state_dict(), pretrained.load_base(place.model, dtype=torch.bfloat16).state_dict()
    expect(made.keys() == again.keys(), f"names differ: {sorted(made.keys() ^ again.keys())[:3]}")
    for name, tensor in again.items():
        expect(torch.equal(tensor, made[name].cpu()), f"{name} was read otherwise than it was written")
    return {"million parameters": sum(p.numel() for p in model.parameters()) / 1e6, "files": shards}


def step(place: Place) -> Found:
    """FSDP2: two updates of all weights, with gradient checkpointing."""
    with place.group():
        # the KL loss takes a second model, for which a card of 24 GiB has no room beside a mid-size one
        actor = place.actor(use_kl_loss=place.size == "tiny")
        place.edge("actor")
        _expect_precision(actor, place)
        batch = place.rollouts()
        batch = batch.with_tensors(old_logprobs=actor.logprobs(batch))
        if actor.reference is not None:
            batch = batch.with_tensors(ref_logprobs=actor.reference_logprobs(batch))
        first = _update(actor, batch)
        start = time.perf_counter()
        second = _update(actor, batch)  # returns numbers, so the device has done its work
        seconds = time.perf_counter() - start
        place.edge("two updates")
        better = second["policy_loss"] < first["policy_loss"]
        expect(better, f"the policy loss went from {first['policy_loss']:.6f} to {second['policy_loss']:.6f}")
        gain = first["policy_loss"] - second["policy_loss"]
        numbers = {"tokens": first["tokens"], "tokens/s": second["tokens"] / seconds}
        return {**numbers, "gradient": first["grad_norm"], "loss gained": gain}


def packed(place: Place) -> Found:
    """Packed replies against plain rows, in float32 and bfloat16."""
    torch.backends.cudnn.allow_tf32 = False  # float32 is to mean it
    with place.group():
        batch = place.rollouts()
        mask = batch["response_mask"].bool()

        def scored(dtype: str, shared: bool) -> tuple[Tensor, float]:
            actor = place.actor(adapter=True, dtype=dtype, share_prompts=shared)
            place.edge(f"{dtype}, {'packed' if shared else 'plain'}")
            return actor.logprobs(batch)[mask], _update(actor, batch)["grad_norm"]

        found = {
            (dtype, shared): scored(dtype, shared) for dtype in ("float32", "bfloat16") for shared in (True, False)
        }
    exact, exact_norm = found["float32", False]
    gaps = {key: (logprobs - exact).abs() for key, (logprobs, _) in found.items()}
    worst, rounding = float(gaps["float32", True].max()), float(gaps["bfloat16", False].mean())
    mean = float((found["bfloat16", True][0] - found["bfloat16", False][0]).abs().mean())
    expect(worst < 1e-3, f"float32: packed and plain log-probabilities differ by up to {worst:.2g}")
    expect(mean < 2 * rounding + 1e-4, f"bfloat16: they differ by {mean:.2g}, rounding alone makes {rounding:.2g}")
    expect(rounding < 0.1, f"bfloat16 is {rounding:.2g} from float32 on average")
    for (dtype, shared), (_, norm) in found.items():
        how = f"{dtype}, {'packed' if shared else 'plain'}: gradient norm"
        near = math.isclose(norm, exact_norm, rel_tol=1e-3 if dtype == "float32" else 0.1)
        expect(near, f"{how} {norm:.5g}, in float32 and plain {exact_norm:.5g}")
    return {"gap float32": worst, "gap bfloat16": mean, "rounding": rounding}


def recompute(place: Place) -> Found:
    """Gradient checkpointing against none: gradient and memory."""
    with place.group():
        batch = place.rollouts()
        norms, rises = [], []
        for checkpointing in (False, True):
            actor = place.actor(adapter=True, checkpointing=checkpointing)
            actor.logprobs(batch)  # CUDA's libraries take room of their own at first use
            start = place.edge(f"actor {'with' if checkpointing else 'without'}")
            if place.on_gpu:
                torch.cuda.reset_peak_memory_stats(place.device)
            norms.append(_update(actor, batch)["grad_norm"])
            rises.append(runtime.peak_memory_gib(place.device) - start)
            del actor
    expect(math.isclose(*norms, rel_tol=0.02), f"gradient norm is {norms[0]:.5g} without and {norms[1]:.5g} with")
    if place.on_gpu and place.size == "mid":
        expect(rises[1] < rises[0], f"an update takes {rises[0]:.2f} GiB without and {rises[1]:.2f} GiB with")
    return {"GiB without": rises[0], "GiB with": rises[1]} if place.on_gpu else {"gradient": norms[1]}


def offload(place: Place) -> Found:
    """Parameters and optimiser go to the CPU and back."""
    with place.group():
        actor, batch = place.actor(offloaded=True), place.rollouts()
        _update(actor, batch)
        before = place.edge("a step done")
        state = _fingerprint(actor)
        movable = _local_gib(actor)
        actor.offload()
        freed = before - place.edge("offloaded")
        # the step counts stay, and so may a few small buffers of the layers
        expect(not place.on_gpu or freed > 0.95 * movable, f"{freed:.2f} GiB of {movable:.2f} GiB were freed")
        actor.reload()
        place.edge("reloaded")
        expect(_fingerprint(actor) == state, "weights or moments changed on the way to the CPU and back")
        actor.offload()
        _update(actor, batch)  # comes back by itself
        return {"movable GiB": movable, "freed GiB": freed if place.on_gpu else 0.0}


def lora(place: Place) -> Found:
    """An adapter: KL to the policy without it, folded weights."""
    with place.group():
        actor, batch = place.actor(adapter=True, use_kl_loss=True), place.rollouts()
        plain = actor.reference_logprobs(batch)
        batch = batch.with_tensors(old_logprobs=actor.logprobs(batch), ref_logprobs=plain)
        start = (batch["old_logprobs"] - plain).abs().max()
        expect(float(start) < 0.05, f"a new adapter moves log-probabilities by up to {float(start):.2g}")
        first, second = _update(actor, batch), _update(actor, batch)
        kl = (first["kl"], second["kl"])
        expect(kl[0] < 1e-3 and kl[1] > kl[0], f"KL to the policy without the adapter went from {kl[0]} to {kl[1]}")
        first_rank = place.rank == 0  # one copy of the base in the machine's memory is enough
        base = pretrained.load_base(place.model).state_dict() if first_rank else {}
        moved = [name for name, tensor in actor.weights() if first_rank and not torch.equal(tensor.cpu(), base[name])]
    adapted = 7 * place.sizes.policy.layers
    expect(not first_rank or len(moved) == adapted, f"{len(moved)} folded weights moved, {adapted} have an adapter")
    return {"kl": kl[1], "gradient": first["grad_norm"]}


def checkpoints(place: Place) -> Found:
    """Save, load into a new actor, go on alike."""
    adapter = place.size == "mid"  # all weights and moments would be 12 GB on the disk
    with place.group():
        actor, batch = place.actor(adapter=adapter), place.rollouts()
        _update(actor, batch)
        folder = checkpoint.step_folder(place.scratch, 1)
        checkpoint.save(folder, actor, {"step": 1})
        place.edge("saved")
        other = place.actor(adapter=adapter)
        expect(_fingerprint(other) != _fingerprint(actor), "a step changed nothing")
        progress = checkpoint.load(folder, other)
        expect(progress == {"step": 1}, f"progress came back as {progress}")
        expect(_fingerprint(other) == _fingerprint(actor), "weights or moments came back otherwise")
        next_steps = [_update(each, batch)["grad_norm"] for each in (actor, other)]
        expect(math.isclose(*next_steps, rel_tol=1e-3), f"gradient norms of the next step: {next_steps}")
        return {"MB": _megabytes(folder), "gradient": next_steps[0]}


def exported(place: Place) -> Found:
    """A checkpoint becomes a folder that transformers loads."""
    adapter = place.size == "mid"
    with place.group():
        actor = place.actor(adapter=adapter)
        _update(actor, place.rollouts())
        folder, out = checkpoint.step_folder(place.scratch, 1), place.scratch / "exported"
        checkpoint.save(folder, actor, {"step": 1})
        export.export(folder, out)
        made = AutoModelForImageTextToText.from_pretrained(out).state_dict()
        given = dict(actor.weights())
        expect(given.keys() == made.keys(), f"names differ: {sorted(given.keys() ^ made.keys())[:3]}")
        for name, tensor in made.items():
            wanted = given[name].cpu()
            near = torch.allclose(tensor.float(), wanted, rtol=2**-7, atol=1e-7)  # it is written in bfloat16
            expect(near, f"{name} is up to {float((tensor - wanted).abs().max()):.2g} from the actor's")
    expect(bool(pretrained.load_processor(out).chat_template), "the export has no chat template")
    return {"MB": _megabytes(out)}


def _expect_precision(actor: Actor, place: Place) -> None:
    wanted = torch.bfloat16 if place.on_gpu else torch.float32
    expect(actor.compute_dtype == wanted, f"passes are computed in {actor.compute_dtype}")
    types = {parameter.dtype for parameter in actor.trained.values()}
    expect(types == {torch.float32}, f"trained weights are {types}")


def _update(actor: Actor, batch: Batch) -> dict[str, float]:
    """An update that must have taken place."""
    stats = actor.update(batch)
    expect(not stats["skipped"], f"the step was skipped: loss {stats['loss']}, gradient {stats['grad_norm']}")
    expect(stats["grad_norm"] > 0, "the gradient is 0")
    return stats


def _fingerprint(actor: Actor) -> dict[str, tuple[float, float]]:
    """Sum and length of this rank's share of each trained weight and moment."""
    shares = {name: _local(tensor) for name, tensor in checkpoint.trained_state(actor).items()}
    return {
        name: (float(share.sum(dtype=torch.float64)), float(torch.linalg.vector_norm(share, dtype=torch.float64)))
        for name, share in shares.items()
    }


def _local_gib(actor: Actor) -> float:
    shares = map(_local, checkpoint.trained_state(actor).values())
    return sum(share.numel() * share.element_size() for share in shares) / 2**30


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
