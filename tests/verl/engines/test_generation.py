"""The sampling settings of a run in training and validation agree with its configuration, inference and the record."""

from __future__ import annotations

import json

import actor_cases as cases
import pytest

from inference.policies.engine import EnginePolicy
from verl import config as configuration
from verl.config import Config, ConfigError
from verl.engines import generation
from verl.engines.base import Sampling

QWEN = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-6, "top_k": 20}
"""The recommendations of the published checkpoints, and a top-k."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = cases.write_policy(tmp_path_factory.mktemp("decoding") / "policy")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, **QWEN}))
    return folder


def configured(policy, defaults="plain", **changes):
    config = Config()
    config.worker.actor.model.model_path = str(policy)
    config.worker.rollout.generation_defaults = defaults
    for name, value in changes.items():
        setattr(config.worker.rollout, name, value)
    return config


def test_a_recommendation_is_not_taken_unless_it_is_asked_for(policy):
    found = generation.samplings(configured(policy, temperature=0.7, top_p=0.9))
    assert found["training"] == Sampling(max_tokens=1024, temperature=0.7, top_p=0.9, top_k=-1, repetition_penalty=1.0)
    assert found["validation"] == Sampling(max_tokens=1024, temperature=0.0, repetition_penalty=1.0)


def test_where_it_is_asked_for_training_and_validation_take_it(policy):
    found = generation.samplings(configured(policy, "checkpoint"))
    assert found["training"] == Sampling(max_tokens=1024, temperature=1.0, top_k=20, repetition_penalty=1.05)
    assert found["validation"] == Sampling(max_tokens=1024, temperature=0.0, repetition_penalty=1.05)
    assert generation.samplings(configured(policy, "checkpoint", top_k=5))["training"].top_k == 5


@pytest.mark.parametrize("defaults", ["plain", "checkpoint"])
def test_the_same_words_mean_the_same_for_a_run_and_for_inference(policy, defaults):
    ours = generation.samplings(configured(policy, defaults))
    theirs = EnginePolicy("hf", policy, device="cpu", generation_defaults=defaults).describe()
    assert ours["validation"].repetition_penalty == theirs["repetition_penalty"]
    sampled = EnginePolicy("hf", policy, device="cpu", generation_defaults=defaults, temperature=1.0).describe()
    assert (ours["training"].top_k, ours["training"].repetition_penalty) == (
        sampled["top_k"],
        sampled["repetition_penalty"],
    )
    assert Config().worker.rollout.generation_defaults == "plain"


def test_the_record_says_what_is_in_force_and_what_is_not(policy, tmp_path):
    generation.record(configured(policy), tmp_path)
    told = json.loads((tmp_path / "decoding.json").read_text())
    assert told["training"]["repetition_penalty"] == told["validation"]["repetition_penalty"] == 1.0
    assert (told["training"]["temperature"], told["validation"]["temperature"]) == (1.0, 0.0)
    assert told["generation_defaults"] == "plain"
    assert told["recommended_but_not_in_force"] == QWEN


def test_another_word_is_refused_by_the_configuration(policy):
    with pytest.raises(ConfigError, match=r"worker\.rollout\.generation_defaults"):
        configuration.check(configuration.load(["worker.rollout.generation_defaults=vllm"]))


def test_a_recommendation_that_cannot_be_meant(policy, tmp_path):
    folder = cases.write_policy(tmp_path / "policy")
    (folder / "generation_config.json").write_text('{"repetition_penalty": -1}')
    with pytest.raises(ConfigError, match=r"repetition_penalty is -1, expected a number above 0"):
        generation.samplings(configured(folder, "checkpoint"))
