"""The keys that this task adds to ``data`` and ``worker.reward`` of a run's configuration, and the reward's presets."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from veason import answer
from veason.answer import Rules
from verl.config import DataConfig, RewardConfig, names_file, one_of

TERMS = ("format", "keyframe", "spatial", "consistency")


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
    """A file that lists samples to leave out."""
    allow_scored_split: bool = False
    """Train on samples that a benchmark scores, which makes its numbers meaningless; the run reports and records it."""
    val_frames: int = 8
    """Number of frames of a video in a validation prompt, evenly spaced as in inference."""
    sampled_frames: int = 6
    """Nominal number of frames of a video in a training prompt."""
    keyframe_resize: int = 560
    """Side in pixels of the frames that the policy sees."""
    reference_image_resize: int = 560
    prompt_template: str = names_file()
    """A file with another prompt template; if empty, the built-in one is used."""


@dataclass
class RewardOptions(RewardConfig):
    """``worker.reward.*`` with ``worker.reward.compute_score=video_match_keyframe_sft_sam_mod``.

    ``options`` holds switches by name, such as ``zero_boxes: 'false'`` over the preset ``released``.
    """

    preset: str = one_of("strict", "released")
    """Rules of the reward: strict or released."""
    weights: dict[str, float] = field(default_factory=dict, metadata={"least": 0, "most": math.inf})
    """Weights of the terms by name; a term that is not named has weight 1, and weight 0 leaves it out."""
    tracker: str = "sam2"
    """Tracker of the consistency term: sam2 or grabcut."""
    sam2_mode: str = "video"
    sam2_config: str = "configs/sam2.1/sam2.1_hiera_l.yaml"
    sam2_checkpoint: str = names_file()

    def switched_preset(self) -> Preset:
        """The preset with the switches of ``options``; ValueError for an unknown name or a value it cannot have."""
        if self.preset not in PRESETS:
            raise _unknown("reward preset", [self.preset], PRESETS)
        values: dict[str, bool | str | int] = {}
        for name, given in self.options.items():
            text = str(given)
            if name not in SWITCHES:
                raise _unknown("reward switch", self.options.keys() - SWITCHES, SWITCHES)
            if name == "block":
                if text not in answer.BLOCKS:
                    known = ", ".join(answer.BLOCKS)
                    raise ValueError(f"reward switch block is {text!r}, expected one of {known}")
                values[name] = text
            elif name == "max_depth":
                if not text.isdecimal() or int(text) < 1:
                    raise ValueError(f"reward switch max_depth is {text!r}, expected a whole number of 1 or more")
                values[name] = int(text)
            elif text.lower() in ("true", "false"):
                values[name] = text.lower() == "true"
            else:
                raise ValueError(f"reward switch {name} is {text!r}, expected true or false")
        return PRESETS[self.preset].switch(**values)


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weight of every term, 1 where not named; ValueError for an unknown term, or a weight that is negative or
    no number."""
    unknown = weights.keys() - set(TERMS)
    if unknown:
        raise _unknown("reward term", unknown, TERMS)
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weights.{name} is {weight}, expected a finite number of 0 or more")
    return {name: float(weights.get(name, 1.0)) for name in TERMS}


@dataclass(frozen=True)
class Preset:
    """Every choice on which the released reward and ours differ."""

    rules: Rules
    """The parser's rules for a number, a box and an answer; each of its fields is a switch of its own."""
    zero_boxes: bool
    """An object that is absent on the keyframe still counts, as a true box [0, 0, 0, 0]; one if all are absent."""
    brittle_lists: bool
    """One entry that is no box, or boxes of True and False alone, set R_s and R_u of the whole list to 0."""
    wide_format: bool
    """The format term runs from 0 to 2, not to 1."""

    def switch(self, **values: bool | str | int) -> Preset:
        """This preset with some switches, of its own or of its rules, set by name."""
        if values.keys() - SWITCHES:
            raise _unknown("reward switch", values.keys() - SWITCHES, SWITCHES)
        own = {field.name for field in fields(Preset)}
        mine: dict[str, Any] = {name: value for name, value in values.items() if name in own}
        theirs: dict[str, Any] = {name: value for name, value in values.items() if name not in own}
        return replace(self, rules=replace(self.rules, **theirs), **mine)


SWITCHES = {field.name for record in (Preset, Rules) for field in fields(record)} - {"rules"}
STRICT = Preset(rules=answer.STRICT, zero_boxes=False, brittle_lists=False, wide_format=False)
RELEASED = Preset(rules=answer.RELEASED, zero_boxes=True, brittle_lists=True, wide_format=True)
PRESETS = {"strict": STRICT, "released": RELEASED}


def _unknown(what: str, given: Iterable[str], known: Iterable[str]) -> ValueError:
    name, names = min(given), sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return ValueError(f"no {what} is called {name!r}; the nearest is {near[0]!r}, all are {', '.join(names)}")
