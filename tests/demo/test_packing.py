"""A packed sequence says what the stock model says of each prompt alone."""

from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from demo import pretrain, pretraining_data
from demo.packing import COORDINATE, NAME, SIZE, Packer
from demo.policy import PolicySize, build_model, build_processor
from demo.tokenizer import build_tokenizer
from veason import prompt
from veason.types import Clip


@pytest.fixture(scope="module")
def parts():
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=0, size=PolicySize())
    return tokenizer, model, Packer(tokenizer, model), pretraining_data.draw_example(np.random.default_rng([3, 0]))


def stock_logits(tokenizer, model, example, shown, turn):
    """Logits of the reply's tokens as transformers computes them, and the image patches."""
    images = [Image.fromarray(frame) for frame in example.frames[shown]]
    clip = Clip(tuple(example.frame_ids[k] for k in shown), (84, 84))
    processor = build_processor(tokenizer)
    asked = prompt.messages(turn.expression, clip, images)
    text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text + turn.reply + tokenizer.eos_token], images=images, return_tensors="pt")
    count = len(tokenizer(turn.reply)["input_ids"]) + 1
    with torch.no_grad():
        return model(**inputs).logits[0, -count - 1 : -1], inputs["pixel_values"]


@pytest.mark.parametrize("batched", [False, True])
def test_packed_logits_are_those_of_each_prompt_alone(parts, batched):
    tokenizer, model, packer, example = parts
    shown = pretraining_data.choose_frames(example, 4, Random(0))
    asked = list(pretraining_data.turns(example, shown, 3, Random(1)))
    clip = ([example.frame_ids[k] for k in shown], example.frames[shown])
    other = ([example.frame_ids[0]], example.frames[:1])  # another clip of another length, in the same batch
    alone = list(pretraining_data.turns(example, [0], 1, Random(2)))
    pack = packer.pack([clip, other], [asked, alone], instructions=True)
    expected = [stock_logits(tokenizer, model, example, shown, turn) for turn in asked]
    expected += [stock_logits(tokenizer, model, example, [0], turn) for turn in alone]
    if batched:
        pretrain.batched_vision(model)
    with torch.no_grad():
        logits, _ = pretrain.reply_logits(model, pack)
    assert torch.allclose(logits, torch.cat([found for found, _ in expected]), atol=2e-5)
    patches = torch.cat([expected[0][1], expected[-1][1]])
    assert torch.allclose(pack.patches, patches, atol=1e-5)


def test_without_instructions_the_reply_stands_where_it_will(parts):
    _tokenizer, _, packer, example = parts
    asked = list(pretraining_data.turns(example, [0, 1], 2, Random(1)))
    clip = ([example.frame_ids[k] for k in (0, 1)], example.frames[:2])
    whole, brief = (packer.pack([clip], [asked], instructions=given) for given in (True, False))
    assert brief.ids.shape[1] < whole.ids.shape[1] - 100
    for a, b in ((whole, brief),):
        assert torch.equal(a.ids[a.learned], b.ids[b.learned])
        assert torch.equal(a.positions[:, a.learned], b.positions[:, b.learned])


def test_numbers_and_names_are_marked(parts):
    tokenizer, _, packer, example = parts
    turn = pretraining_data.Turn(
        "the red circle",
        "This is the red circle. Sizes 0:12, 3:15. Frame 3: [[10, 20, 30, 41]]",
        ((10.4, 20.1, 29.6, 41.0),),
        (0,),
        0,
    )
    pack = packer.pack([([0, 3], example.frames[:2])], [[turn]], instructions=False)
    marked = [
        (tokenizer.decode([int(token)]), int(kind), round(float(value), 1))
        for token, kind, value in zip(pack.ids[0], pack.kinds[0], pack.values[0], strict=True)
        if kind
    ]
    assert marked == [
        (" red", NAME, 0.0), (" circle", NAME, 0.0), ("12", SIZE, 12.0), ("15", SIZE, 15.0),
        ("10", COORDINATE, 10.4), ("20", COORDINATE, 20.1), ("30", COORDINATE, 29.6), ("41", COORDINATE, 41.0),
    ]  # fmt: skip


def test_a_question_sees_the_frames_and_itself(parts):
    _, _, packer, example = parts
    asked = list(pretraining_data.turns(example, [0, 1], 2, Random(1)))
    pack = packer.pack([([0, 1], example.frames[:2])], [asked], instructions=False)
    mask, blocks = pack.mask()[0, 0], pack.blocks[0]
    first, second = ((blocks == number).nonzero()[:, 0] for number in (1, 2))
    frames = int((blocks == 0).sum())
    assert mask[second[0], :frames].all()
    assert not mask[second][:, first].any()
    assert mask[second[-1], second].all()
    assert not mask[second[0], second[1:]].any()
