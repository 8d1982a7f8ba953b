"""The prompt of the teacher."""

import re
from random import Random

import pytest

from training_data_construction import cot_prompts
from training_data_construction.cot_replies import rejection
from veason.completion import Completion
from veason.types import Clip

CLIP = Clip(frame_ids=(0, 12), size=(560, 560))


def build(expression="the cat", style="account"):
    return cot_prompts.messages(expression, CLIP, ["data:a", "data:b"], keyframe=12, style=style)


def test_each_frame_stands_after_its_timestamp():
    system, user = build()
    assert system["role"] == "system"
    *frames, text = user["content"]
    assert frames == [
        {"type": "text", "text": "(0s)"},
        {"type": "image_url", "image_url": {"url": "data:a"}},
        {"type": "text", "text": "(12s)"},
        {"type": "image_url", "image_url": {"url": "data:b"}},
    ]
    assert text["type"] == "text"


@pytest.mark.parametrize("style", cot_prompts.EXAMPLES)
def test_expression_and_keyframe_have_one_line_each(style):
    text = build("which cat\n jumps {first}?", style)[1]["content"][-1]["text"]
    assert re.findall(r"^Expression: (.*)$", text, re.MULTILINE) == ["which cat jumps {first}?"]
    assert re.findall(r"^Keyframe: (.*)$", text, re.MULTILINE) == ["12s"]
    assert cot_prompts.EXAMPLES[style] in text


@pytest.mark.parametrize("example", cot_prompts.EXAMPLES.values())
def test_an_example_would_be_accepted_itself(example):
    keyframe = int(re.search(r"(\d+)s(?: is| as)? the keyframe", " ".join(example.split()))[1])
    reply = Completion(example, "stop", 0, 0, "m")
    assert rejection(reply, expression="the target", keyframe=keyframe) is None
    assert rejection(reply, expression="the target", keyframe=1) == "other_keyframe"
    assert len(example.split("\n")) == 3  # three steps
    assert 80 <= len(example.split()) <= 220


def test_every_style_is_drawn():
    rng = Random(0)
    assert {cot_prompts.draw_style(rng) for _ in range(50)} == set(cot_prompts.EXAMPLES)
    assert len(cot_prompts.EXAMPLES) == 3
