"""Checkpoint folders that are not whole: one line each, before anything is loaded, by every loader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import actor_cases as cases
import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.policies.engine import EnginePolicy
from veason.errors import DataError
from verl.config import ConfigError, RolloutConfig
from verl.engines import generation, open_engine, pretrained
from verl.models import loading

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return cases.write_policy(tmp_path_factory.mktemp("folder") / "whole")


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def change_weights(path: Path, change) -> None:
    weights = load_file(path / WEIGHTS)
    save_file(change(weights), path / WEIGHTS, {"format": "pt"})


def without(part: str):
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def reshaped(weights):
    return {**weights, "lm_head.weight": weights["lm_head.weight"][:-1].clone()}


WRONG_WEIGHTS = {
    "no vision tower": (without("visual"), r"its 27 weights do not fit its config.json: 30 missing \(model.visual."),
    "one tensor": (
        without("layers.0.self_attn.q_proj.weight"),
        r"1 missing \(model.language_model.layers.0.self_attn.q_proj.weight\)",
    ),
    "one too many": (lambda weights: {**weights, "value_head.weight": torch.zeros(3)}, r"1 unexpected \(value_head"),
    "another shape": (reshaped, r"1 of another shape \(lm_head.weight is \(\d+, 64\), not \(\d+, 64\)\)"),
    "prefixed": (
        lambda weights: {f"base.{name}": tensor for name, tensor in weights.items()},
        r"\d+ missing \(.*, \d+ unexpected \(",
    ),
    "empty": (lambda weights: {"x": torch.zeros(1)}, "missing"),
}


@pytest.mark.parametrize("kind", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_counted_and_named(copy, kind):
    change, told = WRONG_WEIGHTS[kind]
    change_weights(copy, change)
    with pytest.raises(ConfigError, match=told) as caught:
        pretrained.check(copy)
    assert str(caught.value).startswith(f"{copy}: ")
    assert "\n" not in str(caught.value)


LOADERS = {
    "policy": lambda path: loading.load_policy(cases.actor_config(path).model),
    "policy of another rank": lambda path: loading.load_policy(cases.actor_config(path).model, empty=True),
    "policy with an adapter": lambda path: loading.load_policy(cases.actor_config(path, rank=4).model),
    "reference": lambda path: pretrained.load_base(path, dtype=torch.bfloat16),
    "rollouts": lambda path: open_engine(str(path), config=RolloutConfig(), device="cpu", dtype=torch.float32),
    "inference": lambda path: EnginePolicy("hf", path, device="cpu"),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_every_loader_refuses_them(copy, loader):
    change_weights(copy, without("visual"))
    with pytest.raises((ConfigError, DataError), match=r"30 missing \(model\.visual\."):
        LOADERS[loader](copy)


def published(weights):
    """The names of the checkpoints on the hub: ``visual.…``, ``model.layers.…``."""
    return {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in weights.items()
    }


def modern(weights):
    """The names of the model itself, as some tools write them."""
    return {
        name.replace("visual.", "model.visual.") if name.startswith("visual.") else
        name.replace("model.", "model.language_model.") if name.startswith("model.") else name: tensor
        for name, tensor in published(weights).items()
    }  # fmt: skip


@pytest.mark.parametrize("names", [published, modern])
def test_old_and_new_names_are_right_and_load_the_same(whole, copy, names):
    change_weights(copy, names)
    assert pretrained.problem(copy) is None
    wanted, found = pretrained.load_base(whole).state_dict(), pretrained.load_base(copy).state_dict()
    assert cases.largest_gap(found, wanted) == 0


def test_the_files_of_the_published_checkpoints_will_do(copy):
    """``preprocessor_config.json`` and ``chat_template.json``, as older versions of transformers wrote them."""
    settings = json.loads((copy / "processor_config.json").read_text())
    (copy / "processor_config.json").unlink()
    (copy / "preprocessor_config.json").write_text(
        json.dumps({**settings["image_processor"], "processor_class": "Qwen2_5_VLProcessor"})
    )
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert pretrained.problem(copy) is None
    assert pretrained.load_processor(copy).chat_template == template


@pytest.mark.parametrize("stored", [False, True])
def test_a_tied_head_may_be_stored_or_not(tmp_path, stored):
    tied = cases.write_policy(tmp_path / "tied", tied=True)
    weights = load_file(tied / WEIGHTS)
    assert "lm_head.weight" not in weights
    if stored:
        change_weights(
            tied, lambda weights: {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}
        )
    assert pretrained.problem(tied) is None
    for model in (
        pretrained.load_base(tied),
        open_engine(str(tied), config=RolloutConfig(), device="cpu", dtype=torch.float32).model,
        EnginePolicy("hf", tied, device="cpu").engine.model,
    ):
        assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])


def test_a_head_that_is_tied_to_something_else(tmp_path):
    tied = cases.write_policy(tmp_path / "tied", tied=True)
    change_weights(tied, lambda weights: {**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1})
    assert "lm_head.weight and model.embed_tokens.weight differ, but config.json ties them" in pretrained.problem(tied)


def test_shards_are_followed_by_their_index(whole, copy):
    weights = load_file(copy / WEIGHTS)
    names = sorted(weights)
    parts = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, some in parts.items():
        save_file({name: weights[name] for name in some}, copy / file, {"format": "pt"})
    where = {name: file for file, some in parts.items() for name in some}
    (copy / pretrained.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (copy / WEIGHTS).unlink()
    assert pretrained.problem(copy) is None
    (copy / "b.safetensors").unlink()
    assert "1 of 2 weight files are missing (b.safetensors)" in pretrained.problem(copy)
    (copy / pretrained.INDEX).write_text("{}")
    assert "is no index of weights" in pretrained.problem(copy)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN = {
    "cut weights": (lambda f: cut(f / WEIGHTS), "model.safetensors is damaged or cut off"),
    "an LFS pointer": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "model.safetensors is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    ),
    "a web page": (lambda f: (f / WEIGHTS).write_text("<!DOCTYPE html><html>"), "is a web page"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "it lacks weights (model.safetensors or "),
    "pickled weights": (
        lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
        "it lacks weights (model.safetensors or model.safetensors.index.json; nothing else is loaded)",
    ),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "it lacks a chat template (chat_template.jinja)"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "it lacks a tokenizer (tokenizer.json)"),
    "no settings": (lambda f: (f / "tokenizer_config.json").unlink(), "(tokenizer_config.json)"),
    "no processor": (lambda f: (f / "processor_config.json").unlink(), "it lacks an image processor"),
    "no config": (lambda f: (f / "config.json").unlink(), "it lacks config.json"),
    "a cut config": (lambda f: cut(f / "config.json"), "config.json is not valid JSON"),
    "a cut tokenizer": (lambda f: cut(f / "tokenizer.json"), "tokenizer.json is not valid JSON"),
    "an odd tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "its tokenizer and processor cannot be"),
    "a text model": (
        lambda f: (f / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}'),
        "its config.json describes no vision-language model but 'qwen2'",
    ),
    "an unknown model": (
        lambda f: (f / "config.json").write_text('{"model_type": "qwen99"}'),
        "its config.json cannot be used",
    ),
    "an adapter": (
        lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "/models/base"}'),
        "not a model; merge it into its base first: llamafactory-cli export --model_name_or_path /models/base",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_one_line(copy, kind):
    harm, told = BROKEN[kind]
    harm(copy)
    found = pretrained.problem(copy)
    assert found.startswith(f"{copy}: ")
    assert "\n" not in found
    assert told in found


def test_another_models_tokenizer(copy):
    settings = json.loads((copy / "tokenizer.json").read_text())
    settings["added_tokens"].append({**settings["added_tokens"][-1], "id": 99_999, "content": "<|more|>"})
    (copy / "tokenizer.json").write_text(json.dumps(settings))
    assert "its tokenizer is another model's: it has token" in pretrained.problem(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "image_token_id": 3}))
    assert "and 3 in config.json" in pretrained.problem(copy)


def test_what_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    assert "it is a file" in pretrained.problem(tmp_path / "file")
    assert "no such folder" in pretrained.problem(tmp_path / "nowhere" / "at" / "all")
    assert "no such folder" in pretrained.problem("nobody/has-this-model")  # the tests run offline


QWEN = {"repetition_penalty": 1.05, "temperature": 1e-6, "do_sample": True, "top_k": 20}


class TestDecoding:
    def given(self, copy, **settings):
        tokens = {"bos_token_id": 1, "eos_token_id": [1, 2], "pad_token_id": 1, "transformers_version": "4.49.0"}
        (copy / "generation_config.json").write_text(json.dumps({**tokens, **settings}))
        return copy

    def test_plain_takes_nothing_and_says_so(self, copy):
        found = generation.read_decoding(self.given(copy, **QWEN), "plain")
        assert (found.repetition_penalty, found.top_k, found.not_taken) == (1.0, -1, QWEN)

    def test_checkpoint_takes_penalty_and_top_k(self, copy):
        found = generation.read_decoding(self.given(copy, **QWEN), "checkpoint")
        assert (found.repetition_penalty, found.top_k) == (1.05, 20)
        assert found.not_taken == {"temperature": 1e-6, "do_sample": True}

    def test_without_recommendations(self, copy):
        (copy / "generation_config.json").unlink(missing_ok=True)
        for defaults in ("plain", "checkpoint"):
            assert generation.read_decoding(copy, defaults) == generation.Decoding()

    @pytest.mark.parametrize("wrong", [{"repetition_penalty": 0}, {"repetition_penalty": "1.05"}, {"top_k": "all"}])
    def test_values_that_cannot_be_meant(self, copy, wrong):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            generation.read_decoding(self.given(copy, **wrong), "checkpoint")

    def test_what_holds_no_settings(self, copy):
        (copy / "generation_config.json").write_text("[]")
        with pytest.raises(ValueError, match="expected an object of settings, found list"):
            generation.read_decoding(copy, "plain")

    def test_another_word(self, copy):
        with pytest.raises(ValueError, match="plain or checkpoint, found 'vllm'"):
            generation.read_decoding(copy, "vllm")
