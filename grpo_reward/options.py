"""The keys that this task adds to ``data`` and ``worker.reward`` of a run's configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from verl.config import DataConfig, RewardConfig, names_file, one_of


@dataclass
class DataOptions(DataConfig):
    """``data.*`` with ``data.name=video_seg_keyframe_sft_base_mod``.

    ``train_files`` is a folder in ReVOS form, or data sets by name, ``revos=ROOT+mevis=ROOT``; ``val_files``, if empty,
    is the folder to train on (an error where data sets go by name).
    """

    train_split: str = "train"
    val_split: str = "valid"
    train_meta: str = names_file()
    """Another expression file, such as the sampled subset."""
    exclude: str = names_file()
    """A file of samples to leave out."""
    allow_scored_split: bool = False
    """Train on samples that a benchmark scores, which spoils its numbers; the run says so and records it."""
    val_frames: int = 8
    """Frames shown of a video in validation, as inference shows them."""
    sampled_frames: int = 6
    """Frames shown of a video in training, nominally."""
    keyframe_resize: int = 560
    """Side in pixels of the frames the policy sees."""
    reference_image_resize: int = 560
    prompt_template: str = names_file()
    """A file with another wording; empty: the project's."""


@dataclass
class RewardOptions(RewardConfig):
    """``worker.reward.*`` with ``worker.reward.compute_score=video_match_keyframe_sft_sam_mod``.

    ``options`` holds switches by name, such as ``zero_boxes: false`` over the preset ``released``.
    """

    preset: str = one_of("strict", "released")
    """strict or released."""
    weights: dict[str, float] = field(default_factory=dict, metadata={"least": 0, "most": math.inf})
    """Weight of a term by name, 1 where not named; 0 leaves the term out."""
    tracker: str = "sam2"
    sam2_mode: str = "video"
    sam2_config: str = "configs/sam2.1/sam2.1_hiera_l.yaml"
    sam2_checkpoint: str = names_file()
