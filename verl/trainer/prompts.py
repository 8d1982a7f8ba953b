"""Opens, checks and chooses the prompts of a run before anything is started, so that a fault in them costs no GPU.

The prompts of a step are a function of (seed, step) alone, so resuming needs no state and decodes nothing. Those of
validation are drawn by seed, every group once before any twice.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from verl.config import Config, ConfigError
from verl.engines.inputs import prompt_lengths
from verl.engines.pretrained import load_processor
from verl.protocol import Outline, Prompt, PromptDataset
from verl.trainer import run_folder
from verl.utils import plugins
from verl.workers import checkpoint

GROUP = "verl.datasets"
VAL_KEYS = "val_keys.txt"
"""File of a run's folder that holds the key of each validation prompt, one a line."""


class PromptSubset:
    """Some prompts of a data set, renumbered. It is a `PromptDataset` with all optional methods but `outline`."""

    def __init__(self, dataset: PromptDataset, numbers: Sequence[int], outlines: Sequence[Outline] | None) -> None:
        """`outlines` are those of all prompts of the data set, None where it has none."""
        self.dataset, self.numbers = dataset, list(numbers)
        self.keys = None if outlines is None else [outlines[number].key for number in self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def get(self, index: int, *, epoch: int) -> Prompt:
        """Prompt `index` of the subset, as the data set gives it under its own number."""
        return self.dataset.get(self.numbers[index], epoch=epoch)

    def fingerprint(self) -> dict[str, str]:
        return getattr(self.dataset, "fingerprint", dict)()

    def asked(self) -> dict[str, Any]:
        return getattr(self.dataset, "asked", dict)()

    def notes(self, model_path: str) -> list[str]:
        found: Callable[[str], list[str]] | None = getattr(self.dataset, "notes", None)
        return [] if found is None else found(model_path)


@dataclass(frozen=True)
class RunPrompts:
    """The prompts that a run trains on and validates on."""

    train: PromptSubset
    held_out: PromptSubset | None
    """None: the run does not validate."""
    overlong: dict[str, int]
    """Number of prompts that were left out for their length, of ``train`` and ``val``."""
    notes: list[str]
    """Lines that a user should read before the run starts."""

    def validation_hash(self) -> str | None:
        """A hash of the validation prompts' keys, None where there are none. Scores with the same hash compare."""
        keys = None if self.held_out is None else self.held_out.keys
        return None if keys is None else hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]

    def metrics(self) -> dict[str, float]:
        return {"data/overlong": float(self.overlong["train"])}

    def record(self, folder: Path) -> None:
        """Write ``data.json`` and the keys of the validation prompts into the run's folder, each whole or not at all.
        Other keys that were there stay, as ``val_keys.before.txt``."""
        parts = {"train": self.train, "val": self.held_out}
        counts = {
            name: {"prompts": len(part), "overlong": self.overlong[name]}
            for name, part in parts.items()
            if part is not None
        }
        facts = json.dumps({**counts, "notes": self.notes}, indent=2, ensure_ascii=False)
        texts = {"data.json": f"{facts}\n"}
        if self.held_out is not None and self.held_out.keys is not None:
            texts[VAL_KEYS] = "".join(f"{key}\n" for key in self.held_out.keys)
            path = folder / VAL_KEYS
            if path.is_file() and path.read_text(encoding="utf-8") != texts[VAL_KEYS]:
                path.replace(folder / "val_keys.before.txt")
        for name, text in texts.items():
            run_folder.write_whole(folder / name, text)


def open_prompts(config: Config) -> RunPrompts:
    """Open the data set plug-in for training and, where the run validates, for validation.

    Raises ConfigError, before anything is started, where there is no such plug-in, where data cannot be used, where
    prompts are too long (all of them, or any without ``data.filter_overlong_prompts``) or fewer than a batch, and where
    the run that is resumed had other validation prompts.
    """
    try:
        opener = plugins.find(config.data.name, group=GROUP)
    except ValueError as error:
        raise ConfigError(f"data.name: {error}") from error
    train, left_out, notes = _open(config, opener, "train")
    overlong = {"train": left_out}
    held_out = None
    if config.trainer.val_freq > 0 or config.trainer.val_before_train:
        held_out, overlong["val"], more = _open(config, opener, "val")
        notes = list(dict.fromkeys([*notes, *more, *_compare(config, held_out)]))
    batch = config.data.rollout_batch_size
    if len(train) < batch:
        raise ConfigError(f"data.rollout_batch_size={batch}: there are only {len(train)} prompts to train on")
    return RunPrompts(train, held_out, overlong, notes)


def _open(config: Config, opener: Callable[..., PromptDataset], split: str) -> tuple[PromptSubset, int, list[str]]:
    """The prompts of a split that the run uses, the number of those that are too long, and notes for the user."""
    data, model_path = config.data, config.worker.actor.model.model_path
    dataset = opener(data, split=split)
    numbers: Sequence[int] = range(len(dataset))
    outline: Callable[[int], Outline] | None = getattr(dataset, "outline", None)
    if outline is None:
        if split == "val":
            blank = [Outline(str(i), str(i), "", [], ()) for i in numbers]
            numbers = choose(blank, data.val_limit, seed=data.seed)
        subset = PromptSubset(dataset, numbers, None)
        return subset, 0, subset.notes(model_path)
    outlines = [outline(number) for number in numbers]
    if split == "val":
        numbers = choose(outlines, data.val_limit, seed=data.seed)
    questions = [(outlines[number].messages, outlines[number].image_sizes) for number in numbers]
    lengths = prompt_lengths(questions, load_processor(model_path))
    short = [number for number, length in zip(numbers, lengths, strict=True) if length <= data.max_prompt_length]
    left_out = len(lengths) - len(short)
    subset = PromptSubset(dataset, short, outlines)
    notes = subset.notes(model_path)
    if left_out:
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        words = (
            f"{left_out:,} of {len(lengths):,} {'training' if split == 'train' else 'validation'} prompts may be "
            f"longer than data.max_prompt_length={data.max_prompt_length} tokens, images included (the longest, "
            f"{outlines[numbers[longest]].key}: {lengths[longest]})"
        )
        remedy = "show fewer or smaller images, or raise it"
        if not short:
            raise ConfigError(f"{words}, so none is left: {remedy}")
        if not data.filter_overlong_prompts:
            raise ConfigError(f"{words}: {remedy}, or leave them out with data.filter_overlong_prompts=true")
        notes.append(f"{words}: they are left out")
    return subset, left_out, notes


def _compare(config: Config, held_out: PromptSubset) -> list[str]:
    """Check that the validation prompts are those of the run that is resumed, for scores of one run must compare. Where
    they differ, raises ConfigError, or returns a note if a change of the data was accepted."""
    resume, folder = config.trainer.resume, Path(config.trainer.save_checkpoint_path)
    if checkpoint.latest(folder) is None:
        folder = folder if resume in ("auto", "never") else Path(resume).parent
    path = folder / VAL_KEYS
    if checkpoint.latest(folder) is None or held_out.keys is None or not path.is_file():
        return []
    before = path.read_text(encoding="utf-8").splitlines()
    if before == held_out.keys:
        return []
    same = len(set(before) & set(held_out.keys))
    difference = (
        f"{path}: the run that is resumed validated on these {len(before)} samples, it would now be on "
        f"{len(held_out.keys)}, {same} of them the same"
    )
    if any(key.startswith("data.") for key in config.trainer.accept_changes):
        return [f"{difference}: scores from here on do not compare with those before"]
    raise ConfigError(
        f"{difference}; keep data.val_limit, data.seed, the validation data and the limit on the prompt's length, or "
        "accept that scores do not compare with trainer.accept_changes=[data.val_limit]"
    )


def choose(outlines: Sequence[Outline], count: int, *, seed: int) -> list[int]:
    """Positions of at most `count` of the outlines, ascending: every group once before any twice, and so on.

    Of a group, the prompt is taken whose kind is rarest among those already taken. The same outlines and seed give the
    same choice.
    """
    rng = Random(f"{seed}/validation")
    groups: dict[str, list[int]] = {}
    for position, outline in enumerate(outlines):
        groups.setdefault(outline.group, []).append(position)
    for group in rng.sample(list(groups), len(groups)):  # in this order, however many prompts each has
        members = groups.pop(group)
        groups[group] = rng.sample(members, len(members))
    taken: list[int] = []
    kinds: Counter[str] = Counter()
    while groups and len(taken) < count:
        turn = list(groups)[: count - len(taken)]
        turn.sort(key=lambda group: len({outlines[i].kind for i in groups[group]}))  # those with a choice last
        for group in turn:
            position = min(groups[group], key=lambda i: kinds[outlines[i].kind])  # the first of equals: by the seed
            groups[group].remove(position)
            kinds[outlines[position].kind] += 1
            taken.append(position)
        groups = {group: left for group, left in groups.items() if left}
    return sorted(taken)


# ------------------------------------------------------------------------------------------------ steps


@dataclass(frozen=True)
class Schedule:
    """The order of prompts. Each epoch is a permutation of its own, cut into steps; an incomplete one is dropped."""

    length: int
    batch_size: int
    seed: int
    shuffle: bool = True

    @property
    def steps_per_epoch(self) -> int:
        if self.length < self.batch_size:
            raise ValueError(f"{self.length} prompts are fewer than data.rollout_batch_size {self.batch_size}")
        return self.length // self.batch_size

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def indices(self, step: int) -> list[int]:
        """The numbers of the prompts of `step`, which counts from 0."""
        order = list(range(self.length))
        if self.shuffle:
            Random(f"{self.seed}/{self.epoch(step)}").shuffle(order)
        start = step % self.steps_per_epoch * self.batch_size
        return order[start : start + self.batch_size]


def batches(dataset: PromptDataset, schedule: Schedule, steps: range, *, threads: int = 4) -> Iterator[list[Prompt]]:
    """Yields the prompts of each step in turn, while the next step's are decoded."""
    with ThreadPoolExecutor(threads, "prompts") as pool:

        def start(step: int) -> list[Future[Prompt]]:
            epoch = schedule.epoch(step)
            return [pool.submit(dataset.get, index, epoch=epoch) for index in schedule.indices(step)]

        waiting = start(steps[0]) if steps else []
        for step in steps:
            following = start(step + 1) if step + 1 in steps else []
            yield [future.result() for future in waiting]
            waiting = following
