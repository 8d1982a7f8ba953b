"""Chats as a model takes them: what the processor alone would make of them, and no picture at another size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from demo.policy import write_tiny_policy
from verl.config import ConfigError
from verl.engines.base import EngineError
from verl.engines.inputs import check_sizes, process, read_chat
from verl.engines.pretrained import load_processor
from verl.protocol import Prompt


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs") / "tiny"
    write_tiny_policy(folder, seed=5)
    return load_processor(folder)


def asked(*sizes):
    """A chat with noise of these sizes, and the noise."""
    rng = np.random.default_rng(0)
    content = [*({"type": "image"} for _ in sizes), {"type": "text", "text": "the red circle"}]
    messages = [{"role": "system", "content": "Look."}, {"role": "user", "content": content}]
    return messages, [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize("sizes", [[], [(28, 56)], [(84, 112), (56, 56)]])
def test_inputs_are_the_processors_own(processor, sizes):
    messages, images = asked(*sizes)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    plain = processor(text=[text], images=[Image.fromarray(image) for image in images] or None, return_tensors="pt")
    found = read_chat(messages, images, processor)
    assert torch.equal(found.input_ids, plain["input_ids"][0])
    assert torch.equal(found.mm_token_type_ids, plain["mm_token_type_ids"][0])
    assert [np.asarray(picture).tolist() for picture in found.images] == [image.tolist() for image in images]
    assert (found.pixel_values is None) == (not sizes)
    if sizes:
        assert torch.equal(found.pixel_values, plain["pixel_values"])
        assert torch.equal(found.image_grid_thw, plain["image_grid_thw"])


@pytest.mark.parametrize(
    ("size", "taken"),
    [
        ((30, 84), (28, 84)),  # no multiple of two patches of 14
        ((14, 28), (28, 28)),  # 392 pixels, where the processor takes 784 at least
        ((2800, 2800), (1792, 1792)),  # and 1792 x 1792 at most
    ],
)
def test_a_size_that_would_change_is_named(processor, size, taken):
    with pytest.raises(
        EngineError, match=rf"resize pictures of \({size[0]}, {size[1]}\) to \({taken[0]}, {taken[1]}\)"
    ):
        check_sizes([(84, 84), size], processor)
    check_sizes([(84, 84), taken], processor)


def test_a_training_prompt_with_such_a_picture_is_named(processor):
    messages, images = asked((30, 84))
    with pytest.raises(ConfigError, match=r"video/3: the processor would resize pictures of \(30, 84\) to \(28, 84\)"):
        process(Prompt("video/3", messages, images, None), processor, max_length=1000)
