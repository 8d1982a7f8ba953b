"""The tiny Qwen2.5-VL: loads offline with the real classes, tells texts apart, gives them back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import demo
from demo.policy import write_tiny_policy
from demo.tokenizer import SPECIAL, build_tokenizer
from demo.writer import build_world
from veason import prompt, prompt_settings
from veason.types import Clip

CLIP = Clip(frame_ids=(0, 7, 12), size=(84, 112))

OFFLINE = """
import sys

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from veason import prompt_settings, prompt
from veason.types import Clip

folder = sys.argv[1]
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration", type(model)
assert type(processor).__name__ == "Qwen2_5_VLProcessor", type(processor)
images = [Image.fromarray(np.full((84, 112, 3), 60 * i, np.uint8)) for i in range(3)]
messages = prompt.messages("the red circle", Clip((0, 7, 12), (84, 112)), images)
text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
inputs = processor(text=[text], images=[images], return_tensors="pt")
assert inputs["image_grid_thw"].tolist() == [[1, 6, 8]] * 3, inputs["image_grid_thw"]  # not resized
assert int(inputs["mm_token_type_ids"].sum()) == 3 * 3 * 4
with torch.inference_mode():
    logits = model(**inputs).logits
    new = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
assert logits.shape == (1, inputs["input_ids"].shape[1], len(processor.tokenizer)), logits.shape
assert torch.isfinite(logits).all()
assert 1 <= len(new) <= 5
ends = {processor.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}
assert set(model.generation_config.eos_token_id) == ends
print("loaded offline")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    write_tiny_policy(folder, seed=3)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_it_loads_and_generates_in_a_fresh_process_without_network(folder):
    root = Path(__file__).parents[3]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
    run = subprocess.run([sys.executable, "-c", OFFLINE, folder], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "loaded offline\n"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(folder, tmp_path):
    for seed in (3, 4):
        write_tiny_policy(tmp_path / str(seed), seed=seed)
    files = {path.name for path in folder.iterdir()}
    assert files >= {"model.safetensors", "tokenizer.json", "processor_config.json", "chat_template.jinja"}
    assert all((tmp_path / "3" / name).read_bytes() == (folder / name).read_bytes() for name in files)
    weights = "model.safetensors"
    assert (tmp_path / "4" / weights).read_bytes() != (folder / weights).read_bytes()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4_000_000


def test_writing_leaves_the_global_random_state_alone(tmp_path):
    import torch

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    write_tiny_policy(tmp_path / "p", seed=9)
    assert torch.equal(torch.rand(3), expected)


@given(text=st.text())
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(number=st.integers(0, 999))
def test_every_integer_below_a_thousand_is_one_token(tokenizer, number):
    assert len(tokenizer.encode(str(number))) == 1
    assert len(tokenizer.encode(f"[{number}, {number}]")) == 5


def test_a_loaded_tokenizer_cuts_as_the_built_one(tokenizer):
    text = "<|im_start|>user\nthe red circle, 7 Füße\r\n  [[1, 22, 333, 4444]]<|im_end|>"
    assert tokenizer.encode(text) == build_tokenizer().encode(text)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert all(len(tokenizer.encode(token)) == 1 for token in SPECIAL)
    assert (
        tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True)
        == text[len("<|im_start|>") : -len("<|im_end|>")]
    )


def test_the_prompt_and_the_expressions_are_made_of_known_words(tokenizer, world):
    sentences = [e["exp"] for entry in world.videos.values() for e in entry["expressions"].values()]
    for sentence in [*sentences, prompt.text("the red circle", CLIP)]:
        single = [t for t in tokenizer.tokenize(sentence) if len(t) == 1 and t.isalpha()]
        assert len(single) <= 0.05 * len(sentence), f"{sentence!r} falls apart into {single}"


def test_the_chat_template_writes_the_turns_of_qwen(tokenizer):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "The star."},
        {"role": "user", "content": "Sure?"},
    ]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Who?<|im_end|>\n"
        "<|im_start|>assistant\nThe star.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    alone = tokenizer.apply_chat_template(turns[3:], tokenize=False)
    assert alone == "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"


def test_images_of_good_size_are_not_resized(folder):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder).image_processor
    for height, width in ((28, 28), (84, 84), (560, 560), (112, 1120)):
        image = np.zeros((height, width, 3), np.uint8)
        assert processor(images=[image], return_tensors="pt")["image_grid_thw"].tolist() == [
            [1, height // 14, width // 14]
        ]


def test_a_world_with_policy_holds_the_same_checkpoint(folder, tmp_path):
    build_world(tmp_path / "w", videos=1, seed=3, size=(84, 84), frames=(4, 4), policy=True)
    written = tmp_path / "w" / "tiny_policy"
    assert {path.name: path.read_bytes() for path in written.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_it_says_how_it_wants_to_be_asked(folder):
    base = Path(demo.__file__).parent / "base_policy"
    found = prompt_settings.read(folder)
    assert found == prompt_settings.read(base)
    assert (found.frames, found.size, found.prompt_template) == (6, (84, 84), None)
