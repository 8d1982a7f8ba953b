"""A tiny checkpoint of the real Qwen2.5-VL classes as a policy: batching, determinism, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.policies.engine import EnginePolicy
from veason.datasets import open_dataset
from veason.errors import DataError
from veason.types import Clip, Question
from verl.engines.base import Sampling
from verl.engines.generation import banned_ids, pad_id
from verl.engines.inputs import collate

CLIP = Clip(frame_ids=(0, 2), size=(84, 84))


@pytest.fixture(scope="module")
def questions(world):
    rng = np.random.default_rng(0)
    samples = list(open_dataset("revos", world, split="valid"))[:3]
    images = [tuple(rng.integers(0, 255, (84, 84, 3), dtype=np.uint8) for _ in CLIP.frame_ids) for _ in samples]
    return [Question(sample=s, clip=CLIP, images=shown) for s, shown in zip(samples, images, strict=True)]


@pytest.fixture(scope="module")
def greedy(world):
    return EnginePolicy("hf", world / "tiny_policy", device="cpu", max_new_tokens=12)


def model_inputs(policy, questions):
    """Left-padded inputs of the model itself."""
    none = torch.zeros(len(questions), 0, dtype=torch.long)
    return collate(policy.prompts(questions), none, none, pad_id=pad_id(policy.processor))


def test_a_batch_answers_as_each_question_alone(greedy, questions):
    together = greedy.answer(questions, seed=0)
    alone = [greedy.answer([question], seed=0)[0] for question in questions]
    assert together == alone
    assert len(set(together)) > 1  # they differ, so padding and order are put to the test


def test_the_pictures_matter(greedy, questions):
    blank = Question(sample=questions[0].sample, clip=CLIP, images=(np.zeros((84, 84, 3), np.uint8),) * 2)
    shown, other = (model_inputs(greedy, [question]) for question in (questions[0], blank))
    assert shown["input_ids"].tolist() == other["input_ids"].tolist()
    model = greedy.engine.model
    assert model(**shown).logits[0, -1].tolist() != model(**other).logits[0, -1].tolist()


def test_sampling_repeats_by_seed(world, questions):
    policy = EnginePolicy("hf", world / "tiny_policy", device="cpu", max_new_tokens=12, temperature=1.0)
    assert policy.answer(questions, seed=3) == policy.answer(questions, seed=3)
    assert policy.answer(questions, seed=3) != policy.answer(questions, seed=4)


def test_a_sampled_reply_does_not_depend_on_the_batch(world, questions):
    policy = EnginePolicy("hf", world / "tiny_policy", device="cpu", max_new_tokens=12, temperature=1.0)
    small = EnginePolicy("hf", world / "tiny_policy", device="cpu", max_new_tokens=12, temperature=1.0, batch_size=2)
    together = policy.answer(questions, seed=3)
    assert together == small.answer(questions, seed=3)
    assert together[::-1] == policy.answer(questions[::-1], seed=3)


def test_vision_control_tokens_are_never_generated(world, questions):
    policy = EnginePolicy("hf", world / "tiny_policy", device="cpu", max_new_tokens=40, temperature=50.0)
    sampling = Sampling(max_tokens=40, temperature=50.0)
    replies = policy.engine.generate(policy.prompts(questions), n=1, sampling=sampling, seeds=[1, 2, 3])
    forbidden = set(banned_ids(policy.engine.model.config))
    assert len(forbidden) >= 3
    assert not forbidden & set(replies["responses"].flatten().tolist())


def test_a_size_that_would_be_resized_is_refused(greedy, questions, world, tmp_path):
    odd = Question(sample=questions[0].sample, clip=Clip((0,), (80, 84)), images=(np.zeros((80, 84, 3), np.uint8),))
    with pytest.raises(DataError, match="use 84x84"):
        greedy.answer([odd], seed=0)
    copy = tmp_path / "small"
    shutil.copytree(world / "tiny_policy", copy)
    for path in (copy / "processor_config.json", copy / "preprocessor_config.json"):
        if path.exists():
            config = json.loads(path.read_text())
            target = config.get("image_processor", config)
            target["size"] = {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}
            target.pop("min_pixels", None)
            target.pop("max_pixels", None)
            path.write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"the processor would resize pictures of \(84, 84\) to \(56, 56\)"):
        EnginePolicy("hf", copy, device="cpu").answer(questions[:1], seed=0)


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(DataError, match="nothing: no such folder"):
        EnginePolicy("hf", tmp_path / "nothing")


QWEN = {"do_sample": True, "repetition_penalty": 1.5, "temperature": 1e-6}
"""As the published checkpoints have it, with more of a penalty, so that it shows in a short reply."""


@pytest.fixture(scope="module")
def penal(world, tmp_path_factory):
    """The tiny policy with a recommendation of how to decode."""
    copy = Path(shutil.copytree(world / "tiny_policy", tmp_path_factory.mktemp("hf") / "penal"))
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**settings, **QWEN}))
    return copy


def test_a_checkpoints_recommendation_changes_nothing_by_default(greedy, penal, questions):
    plain = EnginePolicy("hf", penal, device="cpu", max_new_tokens=12)
    assert plain.answer(questions, seed=0) == greedy.answer(questions, seed=0)
    told = plain.describe()
    assert told["generation_defaults"] == "plain"
    assert told["repetition_penalty"] == 1.0
    assert told["recommended_but_not_in_force"] == QWEN


def test_it_is_taken_where_that_is_asked_for(greedy, penal, questions):
    policy = EnginePolicy("hf", penal, device="cpu", max_new_tokens=12, generation_defaults="checkpoint")
    replies = policy.answer(questions, seed=0)
    assert replies != greedy.answer(questions, seed=0)
    assert replies == [policy.answer([question], seed=0)[0] for question in questions]
    assert policy.describe()["repetition_penalty"] == 1.5
    assert "repetition_penalty" not in policy.describe()["recommended_but_not_in_force"]


def test_a_penalised_reply_is_transformers_own(penal, questions):
    policy = EnginePolicy("hf", penal, device="cpu", max_new_tokens=12, generation_defaults="checkpoint")
    assert transformers_replies(policy, questions[:1], repetition_penalty=1.5) == policy.answer(questions[:1], seed=0)


def test_greedy_replies_are_transformers_own(greedy, questions):
    assert transformers_replies(greedy, questions) == greedy.answer(questions, seed=0)


def transformers_replies(policy, questions, **options):
    """Greedy replies of at most 12 tokens by `generate` of the model itself."""
    given, model = model_inputs(policy, questions), policy.engine.model
    never = banned_ids(model.config)
    tokens = model.generate(**given, suppress_tokens=never, do_sample=False, max_new_tokens=12, **options)
    return policy.processor.batch_decode(tokens[:, given["input_ids"].shape[1] :], skip_special_tokens=True)


def test_another_word_for_the_defaults_is_refused(world):
    with pytest.raises(DataError, match="plain or checkpoint, found 'mine'"):
        EnginePolicy("hf", world / "tiny_policy", device="cpu", generation_defaults="mine")
