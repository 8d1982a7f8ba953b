"""Expressions as prompts: a clip around a keyframe in training, evenly spaced frames in validation.

The data is a folder in ReVOS form, or data sets by name (`veason.datasets.mixture`): ``mevis=ROOT``,
``revos=ROOT+refytvos=ROOT+vicas=ROOT:v1.0/train``. ``python -m grpo_reward.task DATA`` lists the samples whose target
is in no frame, one ``video/exp_id`` a line: what ``data.exclude`` reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from threading import Lock
from typing import Literal

from grpo_reward.target import Target
from veason import frames, prompt, targets
from veason.datasets import NAMES, mixture, open_dataset
from veason.datasets.base import Dataset
from veason.datasets.mixture import Mixture, named_key, unique_key
from veason.errors import DataError
from veason.exclude import read_exclude
from veason.family import QWEN2_5_VL, Family
from veason.types import Clip, VideoSample
from verl.config import DataConfig
from verl.protocol import Prompt

ABSENT = 2
"""Type of the expressions without a target, which the released training leaves out."""


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
    ) -> None:
        """policy, n: of `frames.sample_clip`. side: of the square frames, in pixels.

        exclude: keys of samples, ``video/exp_id`` or, as it must be in a mixture, ``name/video/exp_id``.
        DataError for a side that the family's processor would change, or where no sample is left.
        """
        _check_exclude(dataset, exclude)
        self.dataset, self.policy, self.n, self.seed = dataset, policy, n, seed
        self.size, self.template, self.family = family.check_size((side, side)), template, family
        self._numbers = [
            i
            for i, s in enumerate(dataset)
            if s.type_id != ABSENT and exclude.isdisjoint((unique_key(dataset, s), named_key(s)))
        ]
        if not self._numbers:
            raise DataError(f"{_meta_files(dataset)}: no sample is left of {len(dataset)}; too much is excluded")
        self._reading = Lock()

    def __len__(self) -> int:
        return len(self._numbers)

    def get(self, index: int, *, epoch: int) -> Prompt:
        """Prompt number `index` as `epoch` shows it; frames at model size. DataError if its target is in no frame."""
        sample = self.dataset[self._numbers[index]]
        tracks = self._tracks(sample)
        clip = self._clip(sample, tracks, Random(f"{self.seed}/{epoch}/{index}"))
        video = frames.VideoFrames(sample)
        return Prompt(
            uid=unique_key(self.dataset, sample),
            messages=self._messages(sample, clip),
            images=[frames.resize(video[t], clip.size) for t in clip.frame_ids],
            target=Target.of_tracks(tracks, clip, size=sample.size, family=self.family.name),
        )

    def check_truth(self) -> None:
        """DataError where one of the data sets has no ground truth: now, and not once the models are loaded."""
        first = {self.dataset[number].dataset: number for number in reversed(self._numbers)}
        for number in first.values():
            self._tracks(self.dataset[number])

    def _tracks(self, sample: VideoSample) -> targets.Tracks:
        """One thread at a time: readers keep the tracks of the last video and do not expect another thread."""
        with self._reading:
            return self.dataset.object_rles(sample)

    def _clip(self, sample: VideoSample, tracks: targets.Tracks, rng: Random) -> Clip:
        """The shown frames; areas of all frames come from the RLEs, and only where the policy asks for them."""
        if self.policy != "train_grid":
            return frames.sample_clip(len(sample), policy=self.policy, n=self.n, size=self.size)
        areas = targets.areas(tracks, len(sample))
        if not any(areas):
            raise DataError(
                f"{unique_key(self.dataset, sample)}: the target is in no frame, so there is no keyframe to learn; "
                "add the sample to data.exclude (`python -m grpo_reward.task DATA` lists all of its kind)"
            )
        return frames.sample_clip(len(sample), policy=self.policy, n=self.n, size=self.size, areas=areas, rng=rng)

    def _messages(self, sample: VideoSample, clip: Clip) -> list[dict]:
        """Chat messages with bare image places."""
        turns = prompt.messages(sample.expression, clip, [None] * len(clip), template=self.template)
        for turn in turns:
            turn["content"] = [{"type": "image"} if part["type"] == "image" else part for part in turn["content"]]
        return turns


def build(config: DataConfig, *, split: Literal["train", "val"]) -> KeyframeTask:
    """The task that a run's `data` describes: `train_grid` for training, `linspace` for validation.

    `train_meta` replaces the training expressions, `exclude` holds for both; the validation's length is the trainer's.
    """
    if config.keyframe_resize != config.reference_image_resize:
        raise DataError(
            f"data.keyframe_resize is {config.keyframe_resize}, data.reference_image_resize "
            f"{config.reference_image_resize}: boxes and frames need the same size"
        )
    if not config.train_files:
        raise DataError("data.train_files is empty: give the folder that holds mask_dict.json, or data sets by name")
    training = split == "train"
    task = KeyframeTask(
        _open_training(config) if training else _open_validation(config),
        policy="train_grid" if training else "linspace",
        n=config.sampled_frames,
        side=config.keyframe_resize,
        seed=config.seed,
        exclude=read_exclude(Path(config.exclude)) if config.exclude else frozenset(),
        template=prompt.load_template(Path(config.prompt_template)) if config.prompt_template else None,
    )
    task.check_truth()
    return task


def _open_training(config: DataConfig) -> Dataset:
    meta, parts = config.train_meta or None, mixture.parse_parts(config.train_files)
    if not parts:
        return open_dataset("revos", config.train_files, split=config.train_split, meta=meta)
    _check_default("train_split", config.train_split, DataConfig.train_split)
    mixture.check_trainable(parts)
    return mixture.open_parts(parts, split=mixture.TRAINING, meta=meta)


def _open_validation(config: DataConfig) -> Dataset:
    parts = mixture.parse_parts(config.val_files or config.train_files)
    if not parts:
        return open_dataset("revos", config.val_files or config.train_files, split=config.val_split)
    if not config.val_files:
        raise DataError(
            "data.val_files is empty: where data sets go by their names, say what to validate on, revos=ROOT:valid, say"
        )
    _check_default("val_split", config.val_split, DataConfig.val_split)
    return mixture.open_parts(parts, split=None)


def _check_default(key: str, value: str, default: str) -> None:
    """DataError for a split that would go unheard."""
    if value != default:
        raise DataError(f"data.{key} is {value!r}, but data sets that go by their names have theirs: NAME=ROOT:{value}")


def _check_exclude(dataset: Dataset, exclude: frozenset[str]) -> None:
    """DataError for a key without a name in a mixture, where it would leave nothing out."""
    nameless = [key for key in exclude if key.partition("/")[0] not in NAMES]
    if nameless and isinstance(dataset, Mixture):
        raise DataError(f"data.exclude: {min(nameless)!r} names no data set; in a mixture a line is NAME/video/exp_id")


def _meta_files(dataset: Dataset) -> str:
    return ", ".join(str(path) for role, path in dataset.files.items() if role.endswith("meta"))


def without_target(dataset: Dataset) -> list[str]:
    """Keys of the samples that claim a target but have it in no frame."""
    return [
        unique_key(dataset, sample)
        for sample in dataset
        if sample.type_id != ABSENT
        and not any(targets.area([track], t) for track in dataset.object_rles(sample) for t in range(len(sample)))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m grpo_reward.task", description="List samples without a target, as data.exclude reads them."
    )
    parser.add_argument("data", help="as data.train_files: a folder that holds mask_dict.json, or NAME=ROOT[:SPLIT]+…")
    parser.add_argument("--split", default="train", help="where DATA names none (default: %(default)s)")
    parser.add_argument("--meta", type=Path, help="another expression file, such as the sampled subset")
    args = parser.parse_args(argv)
    parts = mixture.parse_parts(args.data) or (mixture.Part("revos", args.data),)
    try:
        keys = without_target(mixture.open_parts(parts, split=args.split, meta=args.meta))
    except DataError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write("".join(f"{key}\n" for key in keys))
    return 0


if __name__ == "__main__":
    sys.exit(main())
