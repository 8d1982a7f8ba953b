"""The folder of a run: one run at a time writes there, goes on from a checkpoint, and keeps its configurations.

A checkpoint says what it was trained with: the configuration and the contents of the files that it names. A run goes on
from it with the same ones, apart from `MAY_CHANGE` and what ``trainer.accept_changes`` names; anything else would be
half of one run and half of another.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from verl.config import Config, ConfigError, defaults, flatten, leaves, to_yaml
from verl.workers import checkpoint

log = logging.getLogger(__name__)

LOCK = ".lock"
NO_LOCKS = "VEASON_NO_LOCKS"
"""Environment variable: set to 1 where the file system has no locks and one run writes at a time."""
CONFIG_FILE = "config.yaml"

MAY_CHANGE = frozenset(
    {
        "data.val_batch_size",
        # how a batch is cut and where tensors lie: the numbers are the same up to rounding
        "worker.actor.micro_batch_size_per_device_for_update",
        "worker.actor.micro_batch_size_per_device_for_experience",
        "worker.actor.max_tokens_per_micro_batch",
        "worker.actor.share_prompts",
        "worker.actor.model.enable_gradient_checkpointing",
        "worker.actor.fsdp.param_offload",
        "worker.actor.fsdp.optimizer_offload",
        "worker.rollout.batch_size",
        "worker.rollout.tensor_parallel_size",
        "worker.rollout.gpu_memory_utilization",
        "worker.rollout.max_model_len",
        "worker.rollout.enable_chunked_prefill",
        "worker.rollout.enforce_eager",
        # limits and machines
        "worker.rollout.logprob_tolerance",
        "worker.reward.num_workers",
        "worker.reward.num_cpus_per_worker",
        "worker.reward.num_gpus_per_worker",
        "worker.reward.timeout_s",
        "worker.reward.max_retries",
        "trainer.nnodes",
        "trainer.n_gpus_per_node",
        "trainer.max_restarts",
        "trainer.placement_timeout_s",
        "trainer.stuck_after",
        "trainer.max_bad_steps",
        "trainer.max_empty_steps",
        # length, logging and saving
        "trainer.total_episodes",
        "trainer.max_steps",
        "trainer.project_name",
        "trainer.experiment_name",
        "trainer.logger",
        "trainer.val_freq",
        "trainer.save_freq",
        "trainer.save_checkpoint_path",
        "trainer.keep_last",
        "trainer.rollouts_kept",
        "trainer.resume",
        "trainer.accept_changes",
    }
)
"""Keys that a resumed run may have otherwise than its checkpoint, without being asked; they take effect at once."""

MODEL_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".txt", ".model")
"""Files of a checkpoint folder that a policy is made of."""
BLOCKS, BLOCK = 16, 1 << 16
"""A file's digest is made from this many blocks of so many bytes, spread over it."""

Inputs = dict[str, dict[str, str]]
"""For each key of the configuration, a digest of every file that it stands for, by the file's name."""


@dataclass(frozen=True)
class Past:
    """The checkpoint that a run goes on from."""

    folder: Path
    own: bool
    """It lies in the run's own folder, so that the metrics there are its past, too."""
    progress: dict[str, Any]

    @property
    def step(self) -> int:
        return self.progress["step"]


@dataclass(frozen=True)
class Best:
    """The step with the highest validation reward so far; None: there is none yet."""

    validation: str | None
    """A hash of the keys of the prompts that scores are means over; None where it is not known."""
    score: float | None = None
    step: int | None = None

    def record(self) -> dict[str, Any]:
        """The part of a checkpoint's record that `best_so_far` reads."""
        return {"best": self.score, "best_step": self.step, "validation": self.validation}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process. ConfigError if another run holds it, or none can be had."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "ab")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ConfigError(
            f"trainer.save_checkpoint_path={folder}: {error.strerror}; give a folder to write to"
        ) from None
    with file:
        try:
            if os.environ.get(NO_LOCKS) != "1":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another run is writing here; wait for it or end it, or give another "
                "trainer.save_checkpoint_path"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL):
                raise
            raise ConfigError(
                f"{folder}: this file system has no locks ({error.strerror}); give a trainer.save_checkpoint_path on "
                f"another one, or set {NO_LOCKS}=1 and make sure that one run writes there at a time"
            ) from None
        yield


# ---------------------------------------------------------------------------------------------------- the past


def find_past(config: Config) -> Path | None:
    """The checkpoint to go on from, None for a new run.

    With ``auto`` it is the last one of the run's folder. With a checkpoint's path it is the last one of the run's
    folder that goes back to that checkpoint, else the checkpoint itself, so that the same command goes on however often
    it is given. ConfigError where the folder holds checkpoints with another past, or the path is no checkpoint.
    """
    resume, folder = config.trainer.resume, Path(config.trainer.save_checkpoint_path)
    own = checkpoint.complete(folder.resolve())
    if resume == "auto":
        return own[-1] if own else None
    start = None if resume == "never" else Path(resume).resolve()
    later = own[own.index(start) + 1 :] if start in own else own
    alien = [path for path in later if start is None or _progress(path).get("from") != str(start)]
    if alien:
        raise ConfigError(
            f"trainer.resume={resume}: {folder} holds {alien[-1].name}, which is not a checkpoint of this run; move "
            "it, give another trainer.save_checkpoint_path, or go on from it with trainer.resume=auto"
        )
    if later:
        return later[-1]
    if start is not None and not (start / checkpoint.COMPLETE).is_file():
        inside = checkpoint.latest(start)
        hint = f"its last one is {inside}" if inside else "give auto, never or the folder of a checkpoint"
        raise ConfigError(f"trainer.resume={resume}: no complete checkpoint (it has no {checkpoint.COMPLETE}); {hint}")
    return start


def read_past(config: Config, folder: Path | None) -> Past | None:
    """The record in the checkpoint that `find_past` found."""
    if folder is None:
        return None
    own = folder.parent == Path(config.trainer.save_checkpoint_path).resolve()
    return Past(folder, own, _progress(folder))


def progress(config: Config, inputs: Inputs, past: Past | None, **where: Any) -> dict[str, Any]:
    """The record to put into a checkpoint: its step, the configuration and inputs that it was trained with, and the
    checkpoint given by its path that the run goes back to."""
    began = None
    if past is not None:
        by_path = config.trainer.resume not in ("auto", "never")
        began = past.progress.get("from")
        if by_path and not (past.own and began == str(Path(config.trainer.resume).resolve())):
            began = str(past.folder)
    return {**where, "from": began, "config": flatten(config), "inputs": inputs}


def _progress(folder: Path) -> dict[str, Any]:
    """The record of a checkpoint, read without a look at the rest of it: that is checked when it is loaded."""
    path = folder / checkpoint.COMPLETE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        checkpoint.read(folder)  # raises, and names the last checkpoint that is whole, where the file is damaged
        raise ConfigError(f"{path}: this checkpoint cannot be read: {error}; move its folder away") from error
    found = facts.get("progress") if isinstance(facts, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("step"), int):
        raise ConfigError(f"{path}: this checkpoint cannot be read: it names no step; move its folder away")
    return found


def best_so_far(past: Past | None, validation: str | None) -> Best:
    """The best step of the past. It is forgotten, and a line says so, where scores were of other validation prompts."""
    if past is None:
        return Best(validation)
    score, step = past.progress["best"], past.progress["best_step"]
    before = past.progress.get("validation", validation)  # absent: written before there was a hash
    if validation is None or before in (None, validation):
        return Best(validation or before, score, step)
    if score is not None:
        log.info(
            "the best step so far (%s, validation reward %.4f) is discarded: it was measured on other prompts",
            step,
            score,
        )
    return Best(validation)


def check_config(config: Config, past: Past) -> list[str]:
    """One line for each key that is other than it was; ConfigError if one of them may not be."""
    before = past.progress.get("config")
    if before is None:
        return [f"{past.folder} does not say what it was trained with; it is taken to be this configuration"]
    default = flatten(defaults(config))
    changes = {
        key: (before.get(key, default[key]), value)
        for key, value in flatten(config).items()
        if before.get(key, default[key]) != value
    }

    def shown(value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 120 else f"{text[:120]}…"

    lines = {key: f"{key} was {shown(old)}, is {shown(new)}" for key, (old, new) in changes.items()}
    refused = [key for key in changes if key not in MAY_CHANGE and key not in config.trainer.accept_changes]
    if refused:
        _refuse(past, [lines[key] for key in refused], refused)
    return list(lines.values())


def check_inputs(config: Config, past: Past, inputs: Inputs) -> list[str]:
    """One line for each file that has other contents than it had; ConfigError unless its key may change."""
    changes: dict[str, list[str]] = {}
    for key, before in past.progress.get("inputs", {}).items():
        now = inputs.get(key)
        if now is not None:
            names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
            changes |= {key: names} if names else {}
    lines = {key: f"{key} names other contents: {', '.join(names[:5])}" for key, names in changes.items()}
    refused = [key for key in changes if key not in config.trainer.accept_changes]
    if refused:
        _refuse(past, [lines[key] for key in refused], refused)
    return list(lines.values())


def _refuse(past: Past, lines: list[str], keys: list[str]) -> NoReturn:
    checkpoint.read(past.folder)  # raises where the difference is damage
    raise ConfigError(
        f"{past.folder} was trained with other settings: {'; '.join(lines)}. Restore its settings, start anew in "
        "another trainer.save_checkpoint_path, or accept that the run changes here with "
        f"trainer.accept_changes=[{','.join(keys)}]"
    )


# ---------------------------------------------------------------------------------------------------- inputs


def find_inputs(config: Config, tasks: Mapping[str, Any]) -> Inputs:
    """Digests of all that the run reads: the files that its configuration names (`verl.config.names_file`), and what
    each data set plug-in of `tasks`, by the key that it belongs to, says of its own files in
    ``fingerprint() -> dict[str, str]``."""
    named = {key: leaf.value for key, leaf in leaves(config).items() if "file" in leaf.field.metadata and leaf.value}
    found: Inputs = {}
    for key, text in named.items():  # nothing is found of what is not there, such as a hub name
        path = Path(text)
        files = [each for each in sorted(path.iterdir()) if each.suffix in MODEL_SUFFIXES] if path.is_dir() else [path]
        found[key] = {each.name: _digest(each) for each in files if path.is_dir() or path.is_file()}
    for key, task in tasks.items():
        fingerprint = getattr(task, "fingerprint", None)
        found[key] = fingerprint() if fingerprint is not None else {}
    return {key: digests for key, digests in found.items() if digests}


def _digest(path: Path) -> str:
    """Size and a hash of some of the file's bytes, the same for a copy elsewhere."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        for number in range(BLOCKS):
            file.seek(max(0, size - BLOCK) * number // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return f"{size} bytes, {digest.hexdigest()[:16]}"


# ---------------------------------------------------------------------------------------------------- what is kept


def keep_config(config: Config, folder: Path) -> None:
    """Write ``config.yaml``; another one that was there stays as ``config_000.yaml``, ``config_001.yaml`` and so on,
    unless it differs in ``trainer.resume`` alone."""
    path, text = folder / CONFIG_FILE, to_yaml(config)

    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("  resume: ")]

    if path.exists() and lines(path.read_text(encoding="utf-8")) != lines(text):
        number = 0
        while (kept := folder / f"config_{number:03d}.yaml").exists():
            number += 1
        path.rename(kept)
    write_whole(path, text)


def write_whole(path: Path, text: str) -> None:
    """Write a file of the run's folder; it is whole or as it was, whenever the run is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
