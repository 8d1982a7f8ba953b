"""The ReVOS task: expressions as prompts, a clip around a keyframe in training, evenly spaced frames in validation.

``python -m grpo_reward.task ROOT [--split train] [--meta FILE]`` lists the samples whose target is in no frame, one
``video/exp_id`` a line: what ``data.exclude`` reads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Literal

from grpo_reward.target import Target
from veason import frames, prompt, targets
from veason.datasets import open_dataset
from veason.datasets.base import Dataset
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
        """policy, n: of `frames.sample_clip`. side: of the square frames, in pixels. exclude: keys of samples.

        DataError for a side that the family's processor would change, or where no sample is left.
        """
        self.dataset, self.policy, self.n, self.seed = dataset, policy, n, seed
        self.size, self.template, self.family = family.check_size((side, side)), template, family
        self._numbers = [i for i, s in enumerate(dataset) if s.type_id != ABSENT and s.key not in exclude]
        if not self._numbers:
            raise DataError(f"{dataset.files['meta']}: no sample is left of {len(dataset)}; too much is excluded")

    def __len__(self) -> int:
        return len(self._numbers)

    def get(self, index: int, *, epoch: int) -> Prompt:
        """Prompt number `index` as `epoch` shows it; frames at model size. DataError if its target is in no frame."""
        sample = self.dataset[self._numbers[index]]
        tracks = self.dataset.object_rles(sample)
        clip = self._clip(sample, tracks, Random(f"{self.seed}/{epoch}/{index}"))
        video = frames.VideoFrames(sample)
        return Prompt(
            uid=sample.key,
            messages=self._messages(sample, clip),
            images=[frames.resize(video[t], clip.size) for t in clip.frame_ids],
            target=Target.of_tracks(tracks, clip, size=sample.size, family=self.family.name),
        )

    def _clip(self, sample: VideoSample, tracks: targets.Tracks, rng: Random) -> Clip:
        """The shown frames; areas of all frames come from the RLEs, and only where the policy asks for them."""
        if self.policy != "train_grid":
            return frames.sample_clip(len(sample), policy=self.policy, n=self.n, size=self.size)
        areas = targets.areas(tracks, len(sample))
        if not any(areas):
            raise DataError(
                f"{sample.key}: the target is in no frame, so there is no keyframe to learn; add the sample to "
                "data.exclude (`python -m grpo_reward.task ROOT` lists all of its kind)"
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
    training = split == "train"
    root = config.train_files if training else config.val_files or config.train_files
    if not root:
        raise DataError("data.train_files is empty: give the folder that holds mask_dict.json")
    dataset = open_dataset(
        "revos",
        root,
        split=config.train_split if training else config.val_split,
        meta=config.train_meta or None if training else None,
    )
    return KeyframeTask(
        dataset,
        policy="train_grid" if training else "linspace",
        n=config.sampled_frames,
        side=config.keyframe_resize,
        seed=config.seed,
        exclude=read_exclude(Path(config.exclude)) if config.exclude else frozenset(),
        template=prompt.load_template(Path(config.prompt_template)) if config.prompt_template else None,
    )


def without_target(dataset: Dataset) -> list[str]:
    """Keys of the samples that claim a target but have it in no frame."""
    return [
        sample.key
        for sample in dataset
        if sample.type_id != ABSENT
        and not any(targets.area([track], t) for track in dataset.object_rles(sample) for t in range(len(sample)))
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m grpo_reward.task", description="List samples without a target.")
    parser.add_argument("root", type=Path, help="folder that holds mask_dict.json")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument("--meta", type=Path, help="another expression file, such as the sampled subset")
    args = parser.parse_args(argv)
    for key in without_target(open_dataset("revos", args.root, split=args.split, meta=args.meta)):
        print(key)


if __name__ == "__main__":
    main()
