"""With Qwen2.5's own tokenizer: SFT, GRPO and inference ask in the same token ids, and GRPO knows how many beforehand.

The embedded policy knows few words by heart; the real one merges bytes, normalises Unicode and cuts numbers into
digits, so what stands next to a frame's number or a control token could be cut otherwise. Skips where the tokenizer is
not at hand: ``shared/data/qwen2_bpe`` beside the repository, or ``VEASON_QWEN2_BPE``.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sft_cases as cases
import torch

from grpo_reward import task
from grpo_reward.options import DataOptions
from inference.policies.engine import EnginePolicy
from training_data_construction import build_sft
from veason import frames
from veason.datasets import open_dataset
from veason.types import Clip, Question
from verl.engines import inputs, pretrained

ROOT = Path(__file__).parents[2]
BPE = Path(os.environ.get("VEASON_QWEN2_BPE", ROOT.parent / "shared" / "data" / "qwen2_bpe"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BPE / "merges.txt").is_file(), reason=f"needs Qwen2's vocab.json and merges.txt in {BPE}"),
]

ADDED = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
"""The special tokens of Qwen2.5, from 151,643 on."""
EXPRESSIONS = (
    "Which cat will jump first?",
    "  The person in the back, No. 12.  ",
    "the dog that doesn't move…",
    "Qu'est-ce qui tombe à 3,5 m ?",
    "左から二番目の猫",
    "the e\u0301toile (decomposed), 1234567890 times",
    "$5 bill & 100% <wool>",
    "first line\nsecond line",
    "🐈‍⬛ left of it",
)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A checkpoint of random weights with the real tokenizer."""
    from transformers import AddedToken, Qwen2Tokenizer

    from demo.policy import PolicySize, build_model, save_policy
    from demo.tokenizer import CHAT_TEMPLATE

    merges = [tuple(line.split()) for line in (BPE / "merges.txt").read_text().splitlines() if line[:8] != "#version"]
    tokenizer = Qwen2Tokenizer(
        vocab=json.loads((BPE / "vocab.json").read_text()) | {token: 151643 + i for i, token in enumerate(ADDED)},
        merges=merges,
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=32768,
    )
    tokenizer.add_tokens([AddedToken(token, special=token[1] == "|", normalized=False) for token in ADDED])
    assert tokenizer.convert_tokens_to_ids(list(ADDED)) == list(range(151643, 151665))
    assert len(tokenizer) == 151665
    folder = tmp_path_factory.mktemp("real") / "policy"
    size = PolicySize(hidden=32, layers=1, mlp=32, vision_hidden=32, vision_mlp=32)
    save_policy(build_model(tokenizer, seed=0, size=size), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def processor(real):
    return pretrained.load_processor(real)


@pytest.fixture(scope="module")
def spoken(world, tmp_path_factory):
    """The world, its expressions in words of many kinds; a video's frames numbered as in a long one."""
    root = tmp_path_factory.mktemp("spoken") / "root"
    shutil.copytree(world, root, ignore=shutil.ignore_patterns("tiny_policy"))
    path = root / "meta_expressions_train_.json"
    meta = json.loads(path.read_text())
    asked = [e for video in meta["videos"].values() for e in video["expressions"].values()]
    for number, expression in enumerate(asked):
        expression["exp"] = EXPRESSIONS[number % len(EXPRESSIONS)]
    path.write_text(json.dumps(meta))
    return root


@pytest.fixture(scope="module")
def records(spoken):
    """One of each wording."""
    found = {record.sample.expression: record for record in cases.make_records(spoken)}
    assert set(found) == set(EXPRESSIONS)
    return list(found.values())


@pytest.fixture(scope="module")
def batches(real, spoken, records, tmp_path_factory):
    """Each record as LLaMA-Factory trains on it."""
    folder = tmp_path_factory.mktemp("sft")
    cot = cases.write_records(records, folder / "cot.json")
    arguments = ["--cot", cot, "--data-root", spoken, "--split", "train", "--output", folder / "data", "--workers", 1]
    assert build_sft.main([str(argument) for argument in arguments]) == 0
    settings = {"model_name_or_path": real, "dataset_dir": folder / "data", "output_dir": folder / "out"}
    command = [sys.executable, Path(__file__).with_name("llamafactory_batch.py"), "training_scripts/sft_tiny.yaml"]
    command += [f"{key}={value}" for key, value in settings.items()] + [folder / "batches.pt"]
    environment = cases.environment(folder)
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "batches.pt")


@pytest.fixture(scope="module")
def training(spoken):
    config = DataOptions(train_files=str(spoken), keyframe_resize=cases.SIDE, reference_image_resize=cases.SIDE)
    return task.build(config, split="train")


def test_sft_grpo_and_inference_ask_in_the_same_ids(real, spoken, records, batches, processor):
    same = task.KeyframeTask(open_dataset("revos", spoken, split="train"), policy="linspace", n=4, side=cases.SIDE)
    prompts = {prompt.uid: prompt for prompt in (same.get(i, epoch=0) for i in range(len(same)))}
    policy = EnginePolicy("hf", real)
    for record, batch in zip(records, batches, strict=True):
        grpo = inputs.process(prompts[record.sample.key], processor, max_length=2048)
        video = frames.VideoFrames(record.sample)
        images = tuple(frames.resize(video[t], record.clip.size) for t in record.clip.frame_ids)
        [asked] = policy.prompts([Question(record.sample, record.clip, images)])
        sft = batch["input_ids"][0]
        assert sft[: len(grpo)].tolist() == grpo.input_ids.tolist() == asked.input_ids.tolist(), (
            record.sample.expression
        )
        assert (grpo.input_ids == 151655).sum() == 4 * 3 * 3
        reply = processor.tokenizer(f"{record.reply}<|im_end|>\n")["input_ids"]
        assert sft[len(grpo) :].tolist() == reply  # what is learnt is what a rollout would have to say


def test_prompt_lengths_are_known_beforehand(training, processor):
    """Validation lengths are exact. Training lengths are exact once the frames are drawn, and upper bounds before."""
    drawn = [training.get(i, epoch=epoch) for epoch in range(2) for i in range(len(training))]
    questions = [(prompt.messages, [image.shape[:2] for image in prompt.images]) for prompt in drawn]
    actual = [len(inputs.process(prompt, processor, max_length=4096)) for prompt in drawn]
    assert inputs.prompt_lengths(questions, processor) == actual
    told = [training.outline(i) for i in range(len(training))]
    longest = inputs.prompt_lengths([(one.messages, one.image_sizes) for one in told], processor)
    assert all(length <= most for length, most in zip(actual, longest * 2, strict=True))
    assert any(length == most for length, most in zip(actual, longest * 2, strict=True))


@pytest.mark.parametrize("n", [2, 3, 6, 8])
def test_no_grid_of_training_is_longer_than_told(training, processor, n):
    """Every keyframe of videos of every length: the bound holds, and some keyframe reaches it."""
    sample = training.sample(0)
    for length in (1, 2, 5, 6, 11, 97, 101, 1003):
        grids = sorted(
            {frames.train_grid(length, n, keyframe=k) for k in range(length)} | {task._longest_grid(length, n)}
        )
        long = replace(sample, frames=tuple(map(str, range(length))))
        questions = [training._messages(long, Clip(grid, training.size)) for grid in grids]
        lengths = inputs.prompt_lengths(
            [(q, [training.size] * len(g)) for q, g in zip(questions, grids, strict=True)], processor
        )
        assert max(lengths) == lengths[grids.index(task._longest_grid(length, n))], (length, n)
