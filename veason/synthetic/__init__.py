"""A small true world of moving shapes: scenes, pixels and masks, questions with true answers, ReVOS files.

Four steps that know nothing of each other's insides: `sample_scene` (randomness), `render_clip` (pixels and masks),
`questions` (what can be asked of a scene without doubt), `build_world` (files). The first three are pure and quick
enough to make training clips on the fly; the tiny Qwen2.5-VL that goes with the world is in `veason.synthetic.policy`.
"""

from veason.synthetic.expressions import Expression, questions
from veason.synthetic.facts import Facts, measure
from veason.synthetic.render import render_clip
from veason.synthetic.sampling import PLOTS, sample_scene
from veason.synthetic.world import BACKGROUNDS, COLOURS, KINDS, Scene, Shape
from veason.synthetic.writer import build_world, read_scenes

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "KINDS",
    "PLOTS",
    "Expression",
    "Facts",
    "Scene",
    "Shape",
    "build_world",
    "measure",
    "questions",
    "read_scenes",
    "render_clip",
    "sample_scene",
]
