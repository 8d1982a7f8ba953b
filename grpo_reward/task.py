"""Turns expressions into prompts: a clip around a keyframe in training, evenly spaced frames in validation.

The data is a folder in ReVOS form, or data sets by name (`veason.datasets.mixture`): ``mevis=ROOT``,
``revos=ROOT+refytvos=ROOT+vicas=ROOT:v1.0/train``. ``python -m grpo_reward.task DATA`` lists the samples whose target
is in no frame, one ``video/exp_id`` a line: what ``data.exclude`` reads.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any, Literal

from grpo_reward.options import DataOptions
from grpo_reward.target import Target
from veason import files, frames, ground_truth, prompt
from veason.command import run_command
from veason.datasets import NAMES, inputs, mixture, open_dataset, scored
from veason.datasets.base import Dataset
from veason.datasets.mixture import Mixture, named_key, unique_key
from veason.errors import DataError
from veason.exclude import read_exclude
from veason.family import QWEN2_5_VL, Family
from veason.prompt_settings import NAME as ASKED_NAME
from veason.prompt_settings import PromptSettings, differences
from veason.prompt_settings import read as read_asked
from veason.safe_text import printable
from veason.types import Clip, VideoSample
from verl.protocol import Outline, Prompt, PromptError
from verl.utils import plugins

ABSENT = 2
"""Type of the expressions without a target, which the released training leaves out."""


class TaskError(DataError, PromptError):
    """A `DataError` as `verl` knows it: what the user can put right, told in one line."""


@contextmanager
def _as_task_errors() -> Iterator[None]:
    """A `DataError` of the block becomes a `TaskError`, whose notes are lines of the message."""
    try:
        yield
    except DataError as error:
        lines = [str(error), *getattr(error, "__notes__", [])]
        raise TaskError("\n".join(printable(line) for line in lines)) from error


class KeyframeTask:
    """Prompts by number. Opening reads expressions only; `get` reads one sample's masks and decodes its shown frames.

    A sample's clip depends on (seed, epoch, index) alone, so that nothing has to be replayed to resume a run.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        policy: str,
        n: int,
        side: int,
        seed: int = 42,
        exclude: frozenset[str] = frozenset(),
        template: str | None = None,
        family: Family = QWEN2_5_VL,
        record: PromptSettings | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        """policy, n: of `frames.sample_clip`. side: of the square frames, in pixels.

        exclude: keys of samples, ``video/exp_id`` or, as it must be in a mixture, ``name/video/exp_id``.
        record: how a checkpoint of the run wants to be asked. remarks: what a user should know of the data.
        DataError for a side that the family's processor would change, or where no sample is left.
        """
        nameless = [key for key in exclude if key.partition("/")[0] not in NAMES]
        if nameless and isinstance(dataset, Mixture):  # there such a key would leave nothing out
            raise DataError(
                f"data.exclude: {min(nameless)!r} names no data set; in a mixture each line must be NAME/video/exp_id"
            )
        self.dataset, self.policy, self.n, self.seed = dataset, policy, n, seed
        self.size, self.template, self.family = family.check_size((side, side)), template, family
        self._numbers = [
            i
            for i, s in enumerate(dataset)
            if s.type_id != ABSENT and exclude.isdisjoint((unique_key(dataset, s), named_key(s)))
        ]
        if not self._numbers:
            expressions = ", ".join(str(path) for role, path in dataset.files.items() if role.endswith("meta"))
            raise DataError(f"{expressions}: no sample is left of {len(dataset)}; too much is excluded")
        self.excluded, self.record, self.remarks = exclude, record, list(remarks)
        self._reading = Lock()

    def __len__(self) -> int:
        return len(self._numbers)

    def sample(self, index: int) -> VideoSample:
        """The sample that prompt number `index` asks about."""
        return self.dataset[self._numbers[index]]

    def get(self, index: int, *, epoch: int) -> Prompt:
        """Prompt number `index` as `epoch` shows it; frames at model size. TaskError if its target is in no frame, or
        a file of it cannot be read."""
        sample = self.sample(index)
        with _as_task_errors():
            tracks, areas = self._tracks(sample), None
            if self.policy == "train_grid":  # which is around a keyframe; the areas come from the RLEs
                areas = ground_truth.areas(tracks, len(sample))
                if not any(areas):
                    raise DataError(
                        f"{unique_key(self.dataset, sample)}: the target is in no frame, so there is no keyframe to "
                        "learn; add the sample to data.exclude (`python -m grpo_reward.task DATA` lists all of its "
                        "kind)"
                    )
            rng = Random(f"{self.seed}/{epoch}/{index}")
            clip = frames.sample_clip(len(sample), policy=self.policy, n=self.n, size=self.size, areas=areas, rng=rng)
            video = frames.VideoFrames(sample)
            target = Target.of_tracks(tracks, clip, size=sample.size, family=self.family.name)
            return Prompt(
                uid=unique_key(self.dataset, sample),
                messages=self._messages(sample, clip),
                images=[frames.resize(video[t], clip.size) for t in clip.frame_ids],
                target=target,
                note=f"asked: {sample.expression}\n{target.describe()}",
            )

    def outline(self, index: int) -> Outline:
        """Prompt number `index` without pixels and masks, with as many frames as it may show in any epoch."""
        sample = self.sample(index)
        longest = frames.linspace if self.policy == "linspace" else _longest_grid
        with _as_task_errors():
            clip = Clip(frame_ids=longest(len(sample), self.n), size=self.size)
            messages = self._messages(sample, clip)
        return Outline(
            key=unique_key(self.dataset, sample),
            group=f"{sample.dataset}/{sample.video}",
            kind=f"{sample.dataset} {sample.type_id}",
            messages=messages,
            image_sizes=(self.size,) * len(clip),
        )

    def fingerprint(self) -> dict[str, str]:
        """Fingerprints of all files that prompts and targets are read from, by role (see `inputs.fingerprints`); hashes
        of the samples that are left out and of the prompt's wording."""
        with _as_task_errors():
            found = inputs.fingerprints(self.dataset, (self.dataset[number] for number in self._numbers))
        return {
            **{role: ", ".join(f"{name} {value}" for name, value in each.items()) for role, each in found.items()},
            "exclude": _digest("\n".join(sorted(self.excluded))),
            "prompt template": _digest(self.template or prompt.load_template()),
        }

    def asked(self) -> dict[str, Any]:
        """The record of ``veason.json`` for the checkpoints of the run: frames as validation shows them."""
        return {} if self.record is None else {**asdict(self.record), "size": list(self.record.size)}

    def notes(self, model_path: str) -> list[str]:
        """Remarks on the data for the user, and the settings that the checkpoint was not trained with, if it names any.

        TaskError for a checkpoint that speaks its boxes in another space.
        """
        with _as_task_errors():
            trained = read_asked(model_path)
            if trained is None or self.record is None:
                return self.remarks
            path = Path(model_path) / ASKED_NAME
            if trained.family != self.family.name:
                raise DataError(
                    f"{path}: its model family is {trained.family}, but the task's is {self.family.name}, whose boxes "
                    "have other coordinates"
                )
            now = {**asdict(self.record), "frames": self.n}
            return [*self.remarks, *(f"{path}: {difference}" for difference in differences(trained, **now))]

    def check_files(self) -> None:
        """DataError where one of the data sets has no ground truth, or a video no pictures: now, and not once the
        models are loaded."""
        first = {self.dataset[number].dataset: number for number in reversed(self._numbers)}
        for number in first.values():
            self._tracks(self.dataset[number])
        videos = {(s.dataset, s.video): s for s in (self.dataset[number] for number in self._numbers)}
        without = [s.frame_path(0) for s in videos.values() if not s.frame_path(0).is_file()]
        if without:
            raise DataError(
                f"{without[0]}: no such picture; {len(without):,} of {len(videos):,} videos have none there. Fetch "
                "them, or leave their samples out with data.exclude"
            )

    def _tracks(self, sample: VideoSample) -> ground_truth.Tracks:
        """One thread at a time: readers keep the tracks of the last video and do not expect another thread."""
        with self._reading:
            return self.dataset.object_rles(sample)

    def _messages(self, sample: VideoSample, clip: Clip) -> list[dict]:
        """Chat messages with bare image places."""
        turns = prompt.messages(sample.expression, clip, [None] * len(clip), template=self.template)
        for turn in turns:
            turn["content"] = [{"type": "image"} if part["type"] == "image" else part for part in turn["content"]]
        return turns


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _longest_grid(length: int, n: int) -> tuple[int, ...]:
    """The longest of the grids that `frames.train_grid` has for a video; the latest of several, whose ids have most
    digits."""
    step = math.ceil(length / (n - 1))
    most = math.ceil(length / step)
    return frames.train_grid(length, n, keyframe=min(step, length - (most - 1) * step) - 1)


@plugins.reads(DataOptions)
def build(config: DataOptions, *, split: Literal["train", "val"]) -> KeyframeTask:
    """The task that a run's `data` describes: `train_grid` for training, `linspace` for validation.

    `train_meta` replaces the training expressions, `exclude` holds for both; which samples are validated on is the
    trainer's choice. TaskError for whatever the user can put right, samples that a benchmark scores among it.
    """
    training = split == "train"
    with _as_task_errors():
        if config.keyframe_resize != config.reference_image_resize:
            raise DataError(
                f"data.keyframe_resize is {config.keyframe_resize}, data.reference_image_resize "
                f"{config.reference_image_resize}: boxes and frames need the same size"
            )
        if not config.train_files:
            raise DataError("data.train_files is empty: give the folder that holds mask_dict.json, or names")
        if config.sampled_frames < 2:
            shown = f"data.sampled_frames is {config.sampled_frames}"
            raise DataError(f"{shown}: training samples at least 2 frames of a video")
        exclude = read_exclude(Path(config.exclude)) if config.exclude else frozenset()
        template = None
        if config.prompt_template:
            files.check_regular(Path(config.prompt_template), hint="data.prompt_template is a text file")
            template = prompt.load_template(Path(config.prompt_template))
        dataset, remarks = _open_training(config) if training else (_open_validation(config), [])
        if training and exclude:
            keys = (key for s in dataset for key in (unique_key(dataset, s), named_key(s)))
            if exclude.isdisjoint(keys):
                lines = f"none of its {len(exclude):,} lines is a sample to train on"
                remarks.append(f"data.exclude={config.exclude}: {lines}")
        side = config.keyframe_resize
        task = KeyframeTask(
            dataset,
            policy="train_grid" if training else "linspace",
            n=config.sampled_frames if training else config.val_frames,
            side=side,
            seed=config.seed,
            exclude=exclude,
            template=template,
            record=PromptSettings(
                config.val_frames, (side, side), QWEN2_5_VL.name, template, config.max_response_length
            ),
            remarks=remarks,
        )
        task.check_files()
        return task


def _open_training(config: DataOptions) -> tuple[Dataset, list[str]]:
    """The data set to train on, and remarks on it. DataError if a benchmark scores some of it, unless that is asked
    for."""
    meta, parts = config.train_meta, mixture.parse_parts(config.train_files)
    if parts:
        _check_default("train_split", config.train_split, DataOptions.train_split)
    named = parts or (mixture.Part("revos", config.train_files, config.train_split),)
    reason = scored.scored_by_name(parts, split=config.train_split, meta=meta)
    inside, remarks = scored.scored_by_content(named, meta=meta)
    reason = reason or inside
    if reason is not None and not config.allow_scored_split:
        raise DataError(f"{reason}; data.allow_scored_split=true allows it")
    if reason is not None:
        remarks.append(f"{reason}. data.allow_scored_split=true allows it")
    return mixture.open_parts(named, split=mixture.TRAINING, meta=meta or None), remarks


def _open_validation(config: DataOptions) -> Dataset:
    parts = mixture.parse_parts(config.val_files or config.train_files)
    if not parts:
        return open_dataset("revos", config.val_files or config.train_files, split=config.val_split)
    if not config.val_files:
        raise DataError(
            "data.val_files is empty: where data sets go by their names, say what to validate on, revos=ROOT:valid, say"
        )
    _check_default("val_split", config.val_split, DataOptions.val_split)
    return mixture.open_parts(parts, split=None)


def _check_default(key: str, value: str, default: str) -> None:
    """DataError for a split that would not be read."""
    if value != default:
        raise DataError(f"data.{key} is {value!r}, but data sets that go by their names have theirs: NAME=ROOT:{value}")


def without_target(dataset: Dataset) -> list[str]:
    """Keys of the samples that claim a target but have it in no frame."""
    return [
        unique_key(dataset, sample)
        for sample in dataset
        if sample.type_id != ABSENT
        and not any(ground_truth.area([track], t) for track in dataset.object_rles(sample) for t in range(len(sample)))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m grpo_reward.task",
        description="Lists the samples whose target is in no frame, in the format of data.exclude.",
    )
    parser.add_argument(
        "data", help="data in the form of data.train_files: a folder with mask_dict.json, or NAME=ROOT[:SPLIT]+…"
    )
    parser.add_argument("--split", default="train", help="split for data that names none (default: %(default)s)")
    parser.add_argument("--meta", type=Path, help="another expression file, such as the sampled subset")
    args = parser.parse_args(argv)

    def print_keys() -> None:
        parts = mixture.parse_parts(args.data) or (mixture.Part("revos", args.data),)
        keys = without_target(mixture.open_parts(parts, split=args.split, meta=args.meta))
        sys.stdout.write("".join(f"{key}\n" for key in keys))

    return run_command(print_keys)


if __name__ == "__main__":
    sys.exit(main())
