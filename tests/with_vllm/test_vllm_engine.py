"""The vLLM rollout engine against the plain model and the hf engine: same numbers, same replies, weights by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from actor_cases import open_actor, write_policy
from engine_cases import engine_of, one_prompt, plain_logprobs, some_prompts, words
from transformers import AutoModelForImageTextToText

from verl.engines.base import Sampling
from verl.protocol import Batch
from verl.workers.worker import logprob_gap

LENGTH = 12
HEAD, EMBED = "lm_head.weight", "model.language_model.embed_tokens.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {tied: write_policy(tmp_path_factory.mktemp(f"tied_{tied}"), tied=tied) for tied in (False, True)}


@pytest.fixture(scope="module")
def folder(folders):
    return folders[False]


@pytest.fixture(scope="module")
def engines(folders, joined):
    return {tied: engine_of(folder) for tied, folder in folders.items()}


@pytest.fixture
def engine(engines, folder):
    """With the checkpoint's weights."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    engines[False].sync_weights(iter(model.state_dict().items()))
    return engines[False]


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(folder):
    return some_prompts(folder, 6)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_replies_are_those_of_the_hf_engine_token_for_token(engine, folder, penalty):
    prompts, greedy = some_prompts(folder, 50), Sampling(LENGTH, temperature=0, repetition_penalty=penalty)
    ours = engine.generate(prompts, n=1, sampling=greedy, seeds=[0] * 50)
    theirs = engine_of(folder, "hf").generate(prompts, n=1, sampling=greedy, seeds=[0] * 50)
    assert words(ours) == words(theirs)
    assert ours["finished"] == theirs["finished"]
    torch.testing.assert_close(ours["engine_logprobs"], theirs["engine_logprobs"], atol=1e-4, rtol=0)


CUTS = [(1.0, {}), (0.6, {}), (1.3, {"top_p": 0.5, "top_k": 40}), (0.8, {"repetition_penalty": 1.5})]


@pytest.mark.parametrize(("temperature", "cut"), CUTS)
def test_logprobs_are_those_of_a_plain_forward_pass(engine, model, prompts, temperature, cut):
    sampling = Sampling(LENGTH, temperature=temperature, **cut)
    replies = engine.generate(prompts, n=3, sampling=sampling, seeds=range(6))
    expected = plain_logprobs(model, prompts, replies, n=3, temperature=temperature)
    torch.testing.assert_close(replies["engine_logprobs"], expected, atol=1e-4, rtol=0)
    assert len(replies) == 18


def test_replies_do_not_depend_on_the_company(engine, prompts):
    seeds = [100 * number for number in range(6)]
    together = words(engine.generate(prompts, n=3, sampling=Sampling(LENGTH), seeds=seeds))
    alone = [
        words(engine.generate([prompt], n=3, sampling=Sampling(LENGTH), seeds=[seed]))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert together == [reply for group in alone for reply in group]
    assert len({tuple(reply) for reply in together}) == len(together)
    others = words(engine.generate(prompts, n=3, sampling=Sampling(LENGTH), seeds=[seed + 50 for seed in seeds]))
    assert not any(one == other for one, other in zip(together, others, strict=True))


def test_a_group_reads_its_prompt_and_its_pictures_once(engine, folder, monkeypatch):
    """Eight replies of 4 tokens to one prompt of P: besides P the model reads the 3 tokens that each reply goes on
    from, and again what of the prompt fills no whole block of the cache, 7 times."""
    prompt = one_prompt(folder, [(224, 336), (224, 224)], "which one?", rng=np.random.default_rng(0))
    block = engine._llm.llm_engine.vllm_config.cache_config.block_size
    seen, looked = [], []
    model, tower = engine._model, engine._model.visual
    read, look = model.forward, tower.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: seen.append(_tokens(inputs)) or read(**inputs))
    monkeypatch.setattr(tower, "forward", lambda *a, **k: looked.append(a) or look(*a, **k))
    replies = engine.generate([prompt], n=8, sampling=Sampling(4), seeds=[1])
    assert replies["response_mask"].sum() == 32
    assert len(prompt) > block
    assert len(looked) == 1
    rest = len(prompt) - (len(prompt) - 1) // block * block
    assert sum(seen) == len(prompt) + 7 * rest + 8 * 3


def _tokens(inputs):
    given = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    return given.shape[0]


# ---------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rank", [0, 4])
def test_after_every_sync_the_engine_agrees_with_the_actor(engines, folders, tied, rank):
    folder, engine = folders[tied], engines[tied]
    actor, prompts = open_actor(folder, rank=rank), some_prompts(folder, 4)
    before = None
    for step in range(3):
        engine.sync_weights(actor.weights())
        assert engine.stale_weights() == {}
        replies = engine.generate(prompts, n=2, sampling=Sampling(LENGTH, temperature=0.9), seeds=[step] * 4)
        replies.lists["inputs"] = [prompt for prompt in prompts for _ in range(2)]
        replies = replies.with_tensors(old_logprobs=actor.logprobs(replies))
        assert logprob_gap(replies)["max"] < 1e-4
        assert before is None or (replies["old_logprobs"].mean() - before).abs() > 1e-3
        before = replies["old_logprobs"].mean()
        shake(actor)


def shake(actor):
    """A large step in no direction."""
    generator = torch.Generator().manual_seed(1)
    for parameter in actor.trained.values():
        local = parameter.detach().to_local()
        local += 0.02 * torch.randn(local.shape, generator=generator)


def test_a_head_that_is_not_tied_again_is_named(engines, folders, monkeypatch):
    """This is vLLM's own behaviour on a CPU: the embeddings are new, but the head is old."""
    engine, actor = engines[True], open_actor(folders[True])
    monkeypatch.setattr(engine, "_tie", lambda: None)
    shake(actor)
    engine.sync_weights(actor.weights())
    assert engine.stale_weights().keys() == {HEAD}
    monkeypatch.undo()
    engine.sync_weights(actor.weights())
    assert engine.stale_weights() == {}


STALE = [
    "model.language_model.layers.1.self_attn.k_proj.weight",
    "model.language_model.layers.0.self_attn.v_proj.bias",
    "model.language_model.layers.0.mlp.up_proj.weight",
    "model.language_model.layers.1.mlp.down_proj.weight",
    "model.language_model.norm.weight",
    "model.visual.blocks.1.attn.qkv.weight",
    "model.visual.patch_embed.proj.weight",
    EMBED,
    HEAD,
]


@pytest.mark.parametrize("name", STALE)
def test_a_stale_tensor_is_named_whatever_it_is_fused_with(engine, model, monkeypatch, name):
    weights = {name: tensor + 0.01 for name, tensor in model.state_dict().items()}
    load = engine._model.load_weights
    monkeypatch.setattr(engine._model, "load_weights", lambda stream: load(_with_old(stream, name, model)))
    engine.sync_weights(iter(weights.items()))
    stale = engine.stale_weights()
    assert stale.keys() == {name}
    assert 1e-3 < stale[name] < 10


def _with_old(stream, name, model):
    return ((given, model.state_dict()[name] if given == name else tensor) for given, tensor in stream)


def test_a_tensor_that_was_not_sent_is_named(engine, model):
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layers.0.mlp.gate" not in name}
    engine.sync_weights(iter(weights.items()))
    assert engine.stale_weights() == {"model.language_model.layers.0.mlp.gate_proj.weight": math.inf}


# ---------------------------------------------------------------------------------------------------------- replies


def biased(engine, monkeypatch, bias):
    """Logits that are 0 but for the tokens of `bias`, whatever the prompt."""
    plain = engine._model.language_model.compute_logits

    def compute_logits(*args):
        logits = torch.zeros_like(plain(*args))
        for token, value in bias.items():
            logits[:, token] = value
        return logits

    monkeypatch.setattr(engine._model.language_model, "compute_logits", compute_logits)


def test_vision_tokens_are_never_drawn_though_they_count_in_the_logprobs(engine, prompts, model, monkeypatch):
    forbidden = {getattr(model.config, f"{name}_token_id") for name in ("image", "video", "vision_start", "vision_end")}
    assert len(forbidden) == 4
    biased(engine, monkeypatch, dict.fromkeys(list(forbidden)[:2], 20.0))
    for temperature in (1.0, 0.0):
        replies = engine.generate(prompts, n=4, sampling=Sampling(5, temperature=temperature), seeds=[0] * 6)
        assert not forbidden & {token for reply in words(replies) for token in reply}
        drawn = replies["engine_logprobs"][replies["response_mask"] == 1]
        assert torch.allclose(drawn, torch.tensor(-20 - math.log(2)), atol=1e-3)


def test_rows_stop_at_the_end_token_and_are_padded(engine, prompts, monkeypatch):
    biased(engine, monkeypatch, {engine._ends[0]: math.log(1500)})  # about every second token
    replies = engine.generate(prompts, n=8, sampling=Sampling(6), seeds=[1, 2, 3, 4, 5, 6])
    for row, reply, finished in zip(replies["responses"].tolist(), words(replies), replies["finished"], strict=True):
        assert finished == (reply[-1] in engine._ends)
        assert finished or len(reply) == 6
        assert row == reply + [engine._pad] * (len(row) - len(reply))
        assert not set(reply[:-1]) & set(engine._ends)
    assert len({len(reply) for reply in words(replies)}) > 2
    assert (replies["engine_logprobs"][replies["response_mask"] == 0] == 0).all()


def test_numbers_that_are_none_are_told(engine, prompts, monkeypatch):
    biased(engine, monkeypatch, {0: math.nan})
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.generate(prompts, n=1, sampling=Sampling(3), seeds=[0] * 6)


def test_no_prompts_no_replies(engine):
    replies = engine.generate([], n=3, sampling=Sampling(4), seeds=[])
    assert isinstance(replies, Batch)
    assert len(replies) == 0
    assert replies["responses"].shape == (0, 0)
    assert (engine.sleep(), engine.wake()) == (None, None)
