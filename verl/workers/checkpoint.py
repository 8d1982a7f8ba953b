"""Checkpoints: sharded, readable by any number of ranks, and either complete or not there.

A checkpoint is written into a folder beside its own and renamed last; a folder counts only with its ``complete.json``::

    step_000050/
        .metadata, *.distcp   trained weights and optimiser moments, by torch.distributed.checkpoint
        rng_<rank>.pt         state of the random generators
        complete.json         progress, schedule, the model's configuration

Weights that are not trained are not stored: they are those of ``worker.actor.model.model_path``.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from verl.utils import fsdp, seeding
from verl.workers.actor import Actor

COMPLETE = "complete.json"
PARTIAL = ".partial"
MODEL, OPTIMIZER = "model.", "optimizer."


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; earlier ones are as they were."""


def step_folder(root: str | Path, step: int) -> Path:
    return Path(root) / f"step_{step:06d}"


def complete(root: str | Path) -> list[Path]:
    """Complete checkpoints under a folder, the earliest first."""
    found = [path.parent for path in Path(root).glob(f"step_*/{COMPLETE}") if path.parent.suffix == ""]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step_")))


def latest(root: str | Path) -> Path | None:
    """The last complete checkpoint under a folder."""
    return next(reversed(complete(root)), None)


def read(folder: str | Path) -> dict[str, Any]:
    """What is known of a checkpoint without its tensors: ``progress``, ``model``, ``schedule``, ``ranks``."""
    path = Path(folder) / COMPLETE
    if not path.exists():
        raise ValueError(f"{folder} is no complete checkpoint: it has no {COMPLETE}")
    return json.loads(path.read_text())


def prune(root: str | Path, *, keep_last: int, keep: Collection[Path] = ()) -> None:
    """Delete all but the last few checkpoints and those to `keep`, such as the best. For one process to call."""
    kept = {path.resolve() for path in keep}
    folders = complete(root)
    for folder in folders[: max(0, len(folders) - keep_last)]:
        if folder.resolve() not in kept:
            # First it stops counting, so that a crash half-way leaves nothing that looks whole.
            (folder / COMPLETE).unlink()
            shutil.rmtree(folder)


def save(folder: str | Path, actor: Actor, progress: dict[str, Any]) -> None:
    """Write a checkpoint; `progress` is any JSON. Called on all ranks; CheckpointError on all of them if one fails."""
    folder = Path(folder)
    partial = folder.with_name(folder.name + PARTIAL)
    first = dist.get_rank() == 0
    facts = {
        "progress": progress,
        "schedule": actor.scheduler.state_dict(),
        "model": asdict(actor.config.model),
        "ranks": dist.get_world_size(),
    }
    stages: list[Callable[[], object]] = [
        lambda: first and _make_empty(partial),
        lambda: dcp.save(trained_state(actor), checkpoint_id=partial),
        lambda: _write(partial / f"rng_{dist.get_rank()}.pt", lambda file: torch.save(seeding.get_state(), file)),
        lambda: first and _finish(partial, folder, facts),
    ]
    for stage in stages:
        problems = _problems_of_all_ranks(stage)
        if problems:
            if first:
                shutil.rmtree(partial, ignore_errors=True)
            intact = (
                f"the last complete one is {last}" if (last := latest(folder.parent)) else "there is none before it"
            )
            free = shutil.disk_usage(folder.parent).free / 2**30
            raise CheckpointError(
                f"checkpoint {folder} could not be written ({'; '.join(problems)}; {free:.1f} GiB free there); {intact}"
            )


def load(folder: str | Path, actor: Actor) -> dict[str, Any]:
    """Bring the actor, and this rank's generators, to where a checkpoint left them; its progress. On all ranks.

    On another number of ranks than it was saved with, generators stay as they are.
    """
    folder, facts = Path(folder), read(folder)
    stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata.keys()
    _check_names(folder, stored, actor)
    actor.reload()
    _prepare_moments(stored, actor)
    dcp.load(trained_state(actor), checkpoint_id=folder)
    actor.scheduler.load_state_dict(facts["schedule"])
    for group, lr in zip(actor.optimizer.param_groups, actor.scheduler.get_last_lr(), strict=True):
        group["lr"] = lr
    if facts["ranks"] == dist.get_world_size():
        seeding.set_state(torch.load(folder / f"rng_{dist.get_rank()}.pt", weights_only=True))
    return facts["progress"]


def trained_state(actor: Actor) -> dict[str, Tensor]:
    """Trained weights and their moments by name: the tensors themselves, so loading into them loads the actor."""
    actor.reload()
    fsdp.reshard(actor.model)
    state = {MODEL + name: parameter.detach() for name, parameter in actor.trained.items()}
    for name, parameter in actor.trained.items():
        for moment, value in actor.optimizer.state.get(parameter, {}).items():
            state[f"{OPTIMIZER}{name}.{moment}"] = value
    return state


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Trained weights of a checkpoint, whole and on the CPU, without a process group."""
    metadata = dcp.FileSystemReader(Path(folder)).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if name.startswith(MODEL)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return {name.removeprefix(MODEL): tensor for name, tensor in state.items()}


def _check_names(folder: Path, stored: Iterable[str], actor: Actor) -> None:
    there = {name.removeprefix(MODEL) for name in stored if name.startswith(MODEL)}
    odd = sorted(there ^ actor.trained.keys())
    if odd:
        raise ValueError(
            f"{folder} holds {len(there)} trained tensors, this run trains {len(actor.trained)}; "
            f"first difference: {odd[0]}. LoRA and freezing must be as they were"
        )


def _prepare_moments(stored: Collection[str], actor: Actor) -> None:
    """Give the optimiser empty moments of just those parameters that the checkpoint has moments of."""
    actor.optimizer.state.clear()
    for name, parameter in actor.trained.items():
        if f"{OPTIMIZER}{name}.step" in stored:
            moments = {moment: torch.zeros_like(parameter) for moment in ("exp_avg", "exp_avg_sq")}
            actor.optimizer.state[parameter] = {"step": torch.zeros(()), **moments}


def _problems_of_all_ranks(stage: Callable[[], object]) -> list[str]:
    """Run `stage`; what went wrong with it, on whichever ranks, told to every rank."""
    problem = None
    try:
        stage()
    except CheckpointException as error:  # already on every rank, with each one's own reason
        problem = "; ".join(f"rank {rank}: {reason[0]}" for rank, reason in error.failures.items())
    except (OSError, RuntimeError) as error:  # torch's own file writer answers a full disk with RuntimeError
        problem = f"rank {dist.get_rank()}: {error}"
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return list(dict.fromkeys(filter(None, problems)))


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _finish(partial: Path, folder: Path, facts: dict[str, Any]) -> None:
    """Mark a written folder as complete and give it its name."""
    _write(partial / COMPLETE, lambda file: file.write(json.dumps(facts, indent=1).encode()))
    earlier = folder.with_name(folder.name + ".earlier")
    if folder.exists():  # this step was saved before, by a run that was then resumed from an earlier one
        folder.rename(earlier)
    partial.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)
    parent = os.open(folder.parent, os.O_RDONLY)
    os.fsync(parent)
    os.close(parent)


def _write(path: Path, fill: Callable[[Any], object]) -> None:
    """Write a file and have it on the disk before going on."""
    with path.open("wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())
