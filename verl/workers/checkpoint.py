"""Checkpoints: sharded, readable by any number of ranks, and either complete and undamaged or refused.

A checkpoint is written into a folder beside its own and renamed last; a folder counts only with its ``complete.json``::

    step_000050/
        .metadata, *.distcp   trained weights and optimiser moments, by torch.distributed.checkpoint
        rng_<rank>.pt         state of the random generators
        complete.json         progress, schedule, the model's configuration, how the policy is to be prompted; size and
                              checksum of every other file, and its own

Weights that are not trained are not stored: they are those of ``worker.actor.model.model_path``.

A checksum (CRC-32: any flipped bit shows, at three times the speed of SHA-256) finds damage; it does not prove who
wrote a file. Therefore nothing that is read can run code: tensors are loaded with ``weights_only``, and of
``.metadata``, a pickle, only the classes of the checkpoint format are admitted.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from verl.config import ConfigError
from verl.utils import fsdp, runtime
from verl.workers.actor import Actor

log = logging.getLogger(__name__)

COMPLETE, METADATA = "complete.json", ".metadata"
PARTIAL, EARLIER = ".partial", ".earlier"
MODEL, OPTIMIZER = "model.", "optimizer."
WITHOUT_SUMS = {"progress", "schedule", "model", "ranks"}
"""Keys of the ``complete.json`` of a checkpoint that is older than checksums."""

_NAME = re.compile(r"step_[0-9]+")
_OURS = re.compile(r"complete\.json|\.metadata(\.tmp)?|__\d+_\d+\.distcp|rng_\d+\.pt")
"""Names of the files in a checkpoint's folder."""
_CHUNK = 1 << 24


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; earlier ones are as they were."""


class Damaged(ConfigError):
    """A checkpoint is not as it was written. The message names the file, and the last checkpoint that is whole."""


def step_folder(root: str | Path, step: int) -> Path:
    return Path(root) / f"step_{step:06d}"


def complete(root: str | Path) -> list[Path]:
    """Complete checkpoints under a folder, the earliest first; a copy under another name, such as ``step_000050_old``,
    is none of them."""
    found = [path.parent for path in Path(root).glob(f"step_*/{COMPLETE}") if _NAME.fullmatch(path.parent.name)]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step_")))


def latest(root: str | Path) -> Path | None:
    """The last complete checkpoint under a folder."""
    return next(reversed(complete(root)), None)


def read(folder: str | Path) -> dict[str, Any]:
    """The facts of a checkpoint without its tensors: ``progress``, ``asked``, ``model``, ``schedule``, ``ranks``.

    Damaged where ``complete.json`` is, or a file is missing or of another size; `verify` reads the files, too.
    """
    folder = Path(folder)
    if not (folder / COMPLETE).exists():
        raise ConfigError(f"{folder} is not a complete checkpoint: it has no {COMPLETE}")
    facts, problem = _facts(folder)
    problem = problem or next(_wrong_sizes(folder, facts), None)
    if problem:
        raise Damaged(_advice(folder, [problem]))
    return facts


def verify(folder: str | Path) -> None:
    """Read every file of a checkpoint and compare it with its checksum. Damaged names those that differ.

    A checkpoint that is older than checksums gets a warning, since nothing can be compared.
    """
    folder = Path(folder)
    facts = read(folder)
    if "files" not in facts:
        log.warning("%s was written without checksums: damage in it would go unnoticed", folder)
    problems = _wrong_sums(folder, facts, sorted(facts.get("files", {})))
    if problems:
        raise Damaged(_advice(folder, problems))


def tidy(root: str | Path) -> None:
    """Clear away what interrupted saves and deletions left under a folder. Only the process that writes there may.

    A checkpoint that was being replaced is given back its name. Folders that hold anything but a checkpoint's files
    stay.
    """
    for earlier in sorted(Path(root).glob(f"step_*{EARLIER}")):
        name = earlier.with_suffix("")
        if (earlier / COMPLETE).exists() and not name.exists():
            earlier.rename(name)
    for left in sorted(Path(root).glob("step_*")):
        unfinished = left.suffix in (PARTIAL, EARLIER) or (left.suffix == "" and not (left / COMPLETE).exists())
        ours = re.fullmatch(rf"step_\d+({re.escape(PARTIAL)}|{re.escape(EARLIER)})?", left.name) and left.is_dir()
        if unfinished and ours and all(_OURS.fullmatch(path.name) for path in left.iterdir()):
            shutil.rmtree(left)


def prune(root: str | Path, *, keep_last: int, keep: Collection[Path] = ()) -> None:
    """Delete all but the last few checkpoints and those to `keep`, such as the best. For one process to call."""
    kept = {path.resolve() for path in keep}
    folders = complete(root)
    for folder in folders[: max(0, len(folders) - keep_last)]:
        if folder.resolve() not in kept:
            # First it stops counting, so that a crash half-way leaves nothing that looks whole.
            (folder / COMPLETE).unlink()
            shutil.rmtree(folder)


def save(folder: str | Path, actor: Actor, progress: dict[str, Any], *, asked: dict[str, Any] | None = None) -> None:
    """Write a checkpoint. `progress` and `asked` are any JSON; `asked` says how the policy is to be prompted, and stays
    there for `verl.export`.

    Called on all ranks; CheckpointError on all of them if one fails.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + PARTIAL)
    rank = dist.get_rank()
    facts = {
        "progress": progress,
        "asked": asked or {},
        "schedule": actor.scheduler.state_dict(),
        "model": asdict(actor.config.model),
        "ranks": dist.get_world_size(),
    }
    sums: dict[str, dict[str, int]] = {}
    """Size and checksum of each file that this rank has written."""

    def prepare() -> None:
        if rank == 0:
            tidy(folder.parent)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def add_sums() -> None:
        for path in (
            *partial.glob(f"__{rank}_*.distcp"),
            partial / f"rng_{rank}.pt",
            *([partial / METADATA] * (not rank)),
        ):
            sums[path.name] = {"bytes": path.stat().st_size, "crc32": _file_sum(path)}

    stages: list[Callable[[], object]] = [
        prepare,
        lambda: dcp.save(trained_state(actor), checkpoint_id=partial),
        lambda: _write(partial / f"rng_{rank}.pt", lambda file: torch.save(runtime.get_state(), file)),
        add_sums,
        lambda: _finish(partial, folder, facts, _of_all_ranks(sums)),
    ]
    for stage in stages:  # a stage that fails on one rank ends the saving on all of them
        problem = None
        try:
            stage()
        except CheckpointException as error:  # already on every rank, with each one's own reason
            problem = "; ".join(f"rank {failed}: {reason[0]}" for failed, reason in error.failures.items())
        except (OSError, RuntimeError) as error:  # torch's own file writer answers a full disk with RuntimeError
            problem = f"rank {rank}: {error}"
        problems = list(dict.fromkeys(filter(None, _of_all_ranks(problem))))
        if problems:
            if rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            last = latest(folder.parent)
            intact = f"the last complete one is {last}" if last else "there is none before it"
            free = shutil.disk_usage(folder.parent).free / 2**30
            raise CheckpointError(
                f"checkpoint {folder} could not be written ({'; '.join(problems)}; {free:.1f} GiB free there); {intact}"
            )


def load(folder: str | Path, actor: Actor, *, verified: bool = False) -> dict[str, Any]:
    """Bring the actor, and this rank's generators, to where a checkpoint left them; its progress. On all ranks.

    On another number of ranks than it was saved with, generators stay as they are. Damaged, on all ranks and before
    the actor is touched, where a file is not as it was written; with `verified`, the caller has just looked (`verify`)
    and files are not read for their checksums again.
    """
    folder, facts = Path(folder), read(folder)
    names = [] if verified else sorted(facts.get("files", {}))
    problems = _of_all_ranks(_wrong_sums(folder, facts, names[dist.get_rank() :: dist.get_world_size()]))
    if any(problems):
        raise Damaged(_advice(folder, [problem for of_rank in problems for problem in of_rank]))
    stored = _Reader(folder).tensors()
    weights = {name.removeprefix(MODEL): entry for name, entry in stored.items() if name.startswith(MODEL)}
    different = sorted(weights.keys() ^ actor.trained.keys())
    different = different or [name for name, entry in weights.items() if entry.size != actor.trained[name].shape]
    if different:
        raise ConfigError(
            f"{folder} holds {len(weights)} trained tensors, this run trains {len(actor.trained)}; "
            f"first difference: {different[0]}. LoRA and freezing must be as they were, and the model of the same size"
        )
    actor.reload()
    actor.optimizer.state.clear()
    for name, parameter in actor.trained.items():  # empty moments of just those that the checkpoint has moments of
        if f"{OPTIMIZER}{name}.step" in stored:
            moments = {moment: torch.zeros_like(parameter) for moment in ("exp_avg", "exp_avg_sq")}
            actor.optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
    dcp.load(trained_state(actor), storage_reader=_Reader(folder))
    actor.scheduler.load_state_dict(facts["schedule"])
    for group, lr in zip(actor.optimizer.param_groups, actor.scheduler.get_last_lr(), strict=True):
        group["lr"] = lr
    if facts["ranks"] == dist.get_world_size():
        runtime.set_state(torch.load(folder / f"rng_{dist.get_rank()}.pt", weights_only=True))
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
    """Trained weights of a checkpoint, whole and on the CPU, without a process group; its files are verified first."""
    verify(folder)
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in _Reader(Path(folder)).tensors().items()
        if name.startswith(MODEL)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(state, storage_reader=_Reader(Path(folder)), no_dist=True)
    return {name.removeprefix(MODEL): tensor for name, tensor in state.items()}


# ------------------------------------------------------------------------------------------------ damage


def _facts(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The contents of ``complete.json``, and what is wrong with the file, if anything."""
    data = (folder / COMPLETE).read_bytes()
    sealed = re.fullmatch(rb'(.*),\n "crc32": (\d+)\n}', data, re.DOTALL)
    if sealed and zlib.crc32(sealed[1] + b"\n}") == int(sealed[2]):
        return json.loads(data), None
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):
        facts = None
    if isinstance(facts, dict) and facts.keys() == WITHOUT_SUMS:
        return facts, None
    return {}, f"{COMPLETE} is not as it was written"


def _wrong_sizes(folder: Path, facts: dict[str, Any]) -> Iterator[str]:
    for name, wanted in facts.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != wanted["bytes"]:
            yield f"{name} has {path.stat().st_size} bytes, {wanted['bytes']} were written"


def _wrong_sums(folder: Path, facts: dict[str, Any], names: Sequence[str]) -> list[str]:
    """A problem for each of the files `names` whose contents are not as they were written."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        sums = pool.map(lambda name: _file_sum(folder / name), names)
        return [
            f"{name} is not as it was written (its checksum differs)"
            for name, found in zip(names, sums, strict=True)
            if found != facts["files"][name]["crc32"]
        ]


def _file_sum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total = zlib.crc32(chunk, total)
    return total


def _advice(folder: Path, problems: Sequence[str]) -> str:
    """One line: what is wrong with a checkpoint, and which one is whole."""
    instead = "no other checkpoint beside it is whole"
    for other in reversed(complete(folder.parent)):
        facts, problem = _facts(other)
        if other == folder or problem is not None or any(_wrong_sizes(other, facts)):
            continue
        if not _wrong_sums(other, facts, sorted(facts.get("files", {}))):
            instead = f"the last whole checkpoint is {other}"
            break
    return f"{folder}: {'; '.join(problems)}; {instead}; move {folder.name} away to go on without it"


class _Reader(dcp.FileSystemReader):
    """Reads a checkpoint whose ``.metadata``, a pickle, may name nothing but the classes of the format."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / METADATA
        try:
            with path.open("rb") as file:
                metadata = _MetadataUnpickler(file).load()
            entries = metadata.state_dict_metadata.values()
            places = metadata.storage_data.values()
        except OSError:
            raise
        except Exception as error:  # of any type: what is unpickled may be anything
            raise Damaged(f"{path}: no metadata of a checkpoint: {type(error).__name__}: {error}") from error
        # Anything but a tensor would be unpickled without restriction.
        if not all(isinstance(entry, TensorStorageMetadata) for entry in entries):
            raise Damaged(f"{path}: it names objects that are not tensors, which no checkpoint of ours has")
        if not all(_OURS.fullmatch(place.relative_path) for place in places):
            raise Damaged(f"{path}: it names files that are none of the checkpoint's")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """The stored tensors by name: there is nothing else in a checkpoint of ours."""
        stored = self.read_metadata().state_dict_metadata
        return {name: entry for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}


class _MetadataUnpickler(pickle.Unpickler):
    ADMITTED = frozenset(
        {("torch.distributed.checkpoint.metadata", name) for name in (
            "Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties",
            "ChunkStorageMetadata", "BytesStorageMetadata", "_MEM_FORMAT_ENCODING",
        )}
        | {("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch.serialization", "_get_layout")}
        | {(module, "PosixPath") for module in ("pathlib", "pathlib._local")}
        | {("torch", "Size")}
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.ADMITTED or (module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not admitted")


# ------------------------------------------------------------------------------------------------ parts of saving


def _of_all_ranks(value: Any) -> list[Any]:
    """Every rank's `value`, on every rank."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _finish(partial: Path, folder: Path, facts: dict[str, Any], sums: Sequence[dict[str, Any]]) -> None:
    """On rank 0, mark a written folder as complete and give it its name. `sums`: sizes and checksums of each rank's
    files."""
    if dist.get_rank() != 0:
        return
    facts = {**facts, "files": {name: of_rank[name] for of_rank in sums for name in sorted(of_rank)}}
    text = json.dumps(facts, indent=1).encode()
    sealed = text[:-2] + b',\n "crc32": %d\n}' % zlib.crc32(text)  # its own checksum as the last entry
    _write(partial / COMPLETE, lambda file: file.write(sealed))
    earlier = folder.with_name(folder.name + EARLIER)
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
