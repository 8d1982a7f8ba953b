"""The hf rollout engine against the plain model: same numbers, same replies in any company, weights by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from demo.policy import write_tiny_policy
from demo.tokenizer import TURN_END, build_tokenizer
from verl.config import RolloutConfig
from verl.engines import attention, open_engine
from verl.engines.attention import RoomyLayer
from verl.engines.base import Sampling
from verl.engines.hf import HFEngine, penalised, pick, truncate
from verl.engines.inputs import collate, process
from verl.protocol import Prompt

LENGTH = 12
SIZES = [[(84, 112), (84, 112)], [(56, 56)], [], [(112, 84), (28, 56), (56, 84)]]
"""The pictures of each prompt, height and width: prompts of different lengths, one of them without."""
TEXTS = ["the red circle", "which shape moves to the left, and which one does not?", "target: 17", "it"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    write_tiny_policy(folder, seed=5)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(folder):
    processor = AutoProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    made = []
    for number, (sizes, text) in enumerate(zip(SIZES, TEXTS, strict=True)):
        content = [*({"type": "image"} for _ in sizes), {"type": "text", "text": text}]
        images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
        prompt = Prompt(f"p{number}", [{"role": "user", "content": content}], images, None)
        made.append(process(prompt, processor, max_length=1000))
    assert len({len(inputs) for inputs in made}) == len(made)
    return made


def engine_of(folder, batch_size=16, **changes):
    config = RolloutConfig(batch_size=batch_size, **changes)
    return HFEngine(str(folder), config=config, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def engine(folder):
    return engine_of(folder)


def teacher_forced(model, prompts, replies, *, n, temperature=1.0):
    """(B, R) log-probabilities of the replies by one forward pass over prompts and replies together."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    tokens_BR, mask_BR = replies["responses"], replies["response_mask"]
    inputs = collate(repeated, tokens_BR, mask_BR, pad_id=0)
    with torch.no_grad():
        logits = model(**inputs).logits[:, -tokens_BR.shape[1] - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(2, tokens_BR[..., None])[..., 0] * mask_BR


def words(replies):
    """Each reply's tokens."""
    return [row[mask.bool()].tolist() for row, mask in zip(replies["responses"], replies["response_mask"], strict=True)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("batch_size", [16, 5])  # 5: a group of 3 is cut in two
def test_logprobs_are_those_of_a_plain_forward_pass(folder, model, prompts, temperature, batch_size):
    engine = engine_of(folder, batch_size)
    sampling = Sampling(LENGTH, temperature=temperature)
    replies = engine.generate(prompts, n=3, sampling=sampling, seeds=[1, 2, 3, 4])
    assert len(replies) == 12
    assert replies["responses"].shape == replies["response_mask"].shape == (12, LENGTH)
    expected = teacher_forced(model, prompts, replies, n=3, temperature=temperature)
    torch.testing.assert_close(replies["engine_logprobs"], expected, atol=1e-4, rtol=0)


def test_keys_and_values_outgrow_their_room(engine, model, prompts, monkeypatch):
    monkeypatch.setattr(attention, "ROOM", 5)
    replies = engine.generate(prompts, n=2, sampling=Sampling(LENGTH), seeds=[1, 2, 3, 4])
    expected = teacher_forced(model, prompts, replies, n=2)
    torch.testing.assert_close(replies["engine_logprobs"], expected, atol=1e-4, rtol=0)


def test_rows_are_selected_with_what_was_written():
    """Two positions for two rows, one row kept, twice, and a third position."""
    layer = RoomyLayer()
    first, third = torch.randn(2, 2, 2, 4), torch.randn(2, 2, 1, 4)
    layer.update(first, first + 1)
    layer.batch_select_indices(torch.tensor([1, 1]))
    keys, values = layer.update(third, third + 1)
    assert torch.equal(keys, torch.cat([first[[1, 1]], third], dim=2))
    assert torch.equal(values, keys + 1)


def test_text_after_pictures_in_another_call_is_read_at_its_own_positions(engine, model, prompts):
    engine.generate([prompts[3]], n=1, sampling=Sampling(2), seeds=[0])
    replies = engine.generate([prompts[2]], n=2, sampling=Sampling(LENGTH), seeds=[0])
    expected = teacher_forced(model, [prompts[2]], replies, n=2)
    torch.testing.assert_close(replies["engine_logprobs"], expected, atol=1e-4, rtol=0)


def test_replies_do_not_depend_on_the_company(folder, engine, prompts):
    seeds = [11, 12, 13, 14]
    together = words(engine.generate(prompts, n=3, sampling=Sampling(LENGTH), seeds=seeds))
    small = words(engine_of(folder, 2).generate(prompts, n=3, sampling=Sampling(LENGTH), seeds=seeds))
    alone = [
        words(engine.generate([prompt], n=3, sampling=Sampling(LENGTH), seeds=[seed]))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    fewer = words(engine.generate(prompts[::-1], n=2, sampling=Sampling(LENGTH), seeds=seeds[::-1]))
    assert together == small == [reply for group in alone for reply in group]
    assert fewer == [together[3 * number + i] for number in (3, 2, 1, 0) for i in (0, 1)]
    assert len({tuple(reply) for reply in together}) == len(together)  # every row has its own random numbers
    assert together != words(engine.generate(prompts, n=3, sampling=Sampling(LENGTH), seeds=[1, 2, 3, 4]))


def test_greedy_is_what_transformers_generates(engine, model, prompts, folder):
    replies = engine.generate(prompts, n=1, sampling=Sampling(LENGTH, temperature=0), seeds=[0] * 4)
    empty = torch.zeros(4, 0, dtype=torch.long)
    inputs = collate(prompts, empty, empty, pad_id=0)
    never = engine._never.tolist()
    plain = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False, suppress_tokens=never)
    assert replies["responses"].tolist() == plain[:, inputs["input_ids"].shape[1] :].tolist()
    expected = teacher_forced(model, prompts, replies, n=1)
    torch.testing.assert_close(replies["engine_logprobs"], expected, atol=1e-4, rtol=0)


END = build_tokenizer().convert_tokens_to_ids(TURN_END)
"""The end token of the tiny policy."""


def biased(folder, bias):
    """An engine whose model gives the same logits everywhere: 0, or the value of `bias` for its tokens."""
    engine = engine_of(folder)
    hidden = engine.model.lm_head.weight
    engine.model.lm_head = torch.nn.Linear(hidden.shape[1], hidden.shape[0])
    torch.nn.init.zeros_(engine.model.lm_head.weight)
    torch.nn.init.zeros_(engine.model.lm_head.bias)
    with torch.no_grad():
        for token, value in bias.items():
            engine.model.lm_head.bias[token] = value
    return engine


def test_rows_stop_at_the_end_token_and_are_padded(folder, prompts):
    engine = biased(folder, {END: np.log(1500)})  # about every second token
    replies = engine.generate(prompts, n=8, sampling=Sampling(6), seeds=[1, 2, 3, 4])
    pad = engine._pad
    rows = zip(replies["responses"].tolist(), words(replies), replies["finished"], strict=True)
    for row, reply, finished in rows:
        assert finished == (reply[-1] in engine._ends.tolist())
        assert finished or len(reply) == 6
        assert row == reply + [pad] * (len(row) - len(reply))
        assert not set(reply[:-1]) & set(engine._ends.tolist())
    lengths = [len(reply) for reply in words(replies)]
    assert replies["responses"].shape[1] == max(lengths)
    assert len(set(lengths)) > 2
    assert END in {reply[-1] for reply in words(replies)}
    assert (replies["engine_logprobs"][replies["response_mask"] == 0] == 0).all()


def test_when_all_rows_have_ended_nothing_more_is_drawn(folder, prompts):
    engine = biased(folder, {END: 50.0})
    replies = engine.generate(prompts, n=2, sampling=Sampling(500), seeds=[0] * 4)
    assert replies["responses"].tolist() == [[END]] * 8
    assert replies["finished"] == [True] * 8


def test_vision_tokens_are_never_drawn_though_they_count_in_the_logprobs(engine, folder, prompts):
    config = engine.model.config
    forbidden = {getattr(config, f"{name}_token_id") for name in ("image", "video", "vision_start", "vision_end")}
    engine = biased(folder, {config.image_token_id: 20.0, config.vision_end_token_id: 20.0})
    assert len(forbidden) == 4
    for temperature in (1.0, 0.0):
        replies = engine.generate(prompts, n=4, sampling=Sampling(5, temperature=temperature), seeds=[0] * 4)
        assert not forbidden & {token for reply in words(replies) for token in reply}
        drawn = replies["engine_logprobs"][replies["response_mask"] == 1]
        assert torch.allclose(drawn, torch.tensor(-20 - np.log(2), dtype=torch.float32), atol=1e-3)


def test_truncation_by_hand():
    prob = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    kept = [(truncate(prob, Sampling(1, top_p=p, top_k=k)) > 0).tolist()[0] for p, k in CASES]
    assert kept == [
        [True, True, True, True],
        [False, True, False, True],
        [False, True, False, True],  # 0.4 < 0.5, so the token that crosses it belongs to it
        [False, True, False, False],
        [False, True, False, True],  # of the two that are left, 4/7 < 0.6
    ]


CASES = [(1.0, -1), (1.0, 2), (0.5, -1), (1e-6, -1), (0.6, 2)]


def test_picking_by_hand():
    weight = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]]).expand(5, -1)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert pick(weight, uniform).tolist() == [1, 1, 3, 3, 3]


def test_drawn_tokens_follow_the_distribution():
    prob = torch.tensor([[0.5, 0.2, 0.3]]).expand(20_000, -1)
    drawn = pick(prob, torch.from_numpy(np.random.default_rng(0).random(20_000)))
    share = torch.bincount(drawn, minlength=3) / 20_000
    torch.testing.assert_close(share, prob[0], atol=0.015, rtol=0)  # four standard errors


def test_synced_weights_are_drawn_with(folder, tmp_path, prompts):
    write_tiny_policy(tmp_path / "other", seed=6)
    other = AutoModelForImageTextToText.from_pretrained(tmp_path / "other", dtype=torch.float32)
    engine = engine_of(folder)
    engine.sync_weights((name, tensor) for name, tensor in other.named_parameters())
    replies = engine.generate(prompts, n=2, sampling=Sampling(LENGTH), seeds=[1, 2, 3, 4])
    expected = teacher_forced(other, prompts, replies, n=2)
    torch.testing.assert_close(replies["engine_logprobs"], expected, atol=1e-4, rtol=0)


def test_a_weight_that_is_not_as_it_was_sent_is_named(folder, model):
    engine = engine_of(folder)
    assert engine.stale_weights() == {}
    engine.sync_weights((name, tensor + 0.01) for name, tensor in model.named_parameters())
    assert engine.stale_weights() == {}
    norm = "model.language_model.norm.weight"  # ones, sent as 1.01: 0.01 / 1.01 away
    engine.model.get_parameter(norm).fill_(1.0)
    assert engine.stale_weights() == pytest.approx({norm: 0.01 / 1.01}, rel=1e-4)


def test_weights_that_do_not_fit_are_named_after_the_stream_is_used_up(engine, model):
    weights = {name: tensor.clone() for name, tensor in model.named_parameters()}
    del weights["lm_head.weight"]
    weights["model.language_model.norm.weight"] = torch.zeros(3)
    stream = iter([("model.other", torch.zeros(1)), *weights.items()])
    with pytest.raises(
        ValueError, match=r"model\.other is unknown.*norm\.weight is \(3,\), \(128,\) was wanted; missing: lm_head"
    ):
        engine.sync_weights(stream)
    assert next(stream, None) is None


def test_of_tied_embeddings_one_name_is_enough_and_two_must_agree(folder, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    for config in (model.config, model.config.text_config):
        config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "tied")
    engine = engine_of(tmp_path / "tied")
    embed, head = "model.language_model.embed_tokens.weight", "lm_head.weight"
    assert engine.model.get_parameter(embed) is engine.model.get_parameter(head)
    weights = {name: tensor + 1 for name, tensor in model.named_parameters()}
    assert head not in weights
    engine.sync_weights(iter(weights.items()))
    assert torch.equal(engine.model.lm_head.weight, weights[embed])
    engine.sync_weights(iter({**weights, head: weights[embed]}.items()))
    del weights[embed]
    engine.sync_weights(iter({**weights, head: torch.ones_like(engine.model.lm_head.weight)}.items()))
    assert engine.model.get_parameter(embed).eq(1).all()
    first = torch.zeros_like(engine.model.lm_head.weight)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from the weights it is tied to"):
        engine.sync_weights(iter({**weights, embed: engine.model.lm_head.weight + 1, head: first}.items()))


def test_weights_that_are_not_numbers_are_told(folder, prompts):
    engine = engine_of(folder)
    torch.nn.init.constant_(engine.model.lm_head.weight, torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.generate(prompts, n=1, sampling=Sampling(3), seeds=[0] * 4)


def test_no_prompts_no_replies(engine):
    replies = engine.generate([], n=3, sampling=Sampling(4), seeds=[])
    assert len(replies) == 0
    assert replies["responses"].shape == (0, 0)


def test_engines_by_name(folder, monkeypatch):
    arguments = {"device": "cpu", "dtype": torch.float32}
    engine = open_engine(str(folder), config=RolloutConfig(), **arguments)
    assert isinstance(engine, HFEngine)
    engine.sleep()
    engine.wake()
    named = open_engine(str(folder), config=RolloutConfig(name="verl.engines.hf:HFEngine"), **arguments)
    assert isinstance(named, HFEngine)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"vllm, which is not installed: `make setup-vllm`.*hf draws the same"):
        open_engine(str(folder), config=RolloutConfig(name="vllm"), **arguments)
    with pytest.raises(ValueError, match=r"worker\.rollout\.name: .*'sglang'"):
        open_engine(str(folder), config=RolloutConfig(name="sglang"), **arguments)


def test_a_penalty_divides_what_is_above_zero_and_multiplies_what_is_below():
    logits_BV, seen_BV = torch.tensor([[2.0, -2.0, 2.0, -2.0]]), torch.tensor([[True, True, False, False]])
    assert penalised(logits_BV, seen_BV, penalty=4.0).tolist() == [[0.5, -8.0, 2.0, -2.0]]


def test_penalised_replies_are_those_of_transformers(engine, model, prompts):
    """Prompts of several lengths in one batch: neither padding nor neighbours count as seen."""
    sampling = Sampling(max_tokens=LENGTH, temperature=0.0, repetition_penalty=1.4)
    found = engine.generate(prompts, n=1, sampling=sampling, seeds=range(len(prompts)))
    wanted = []
    for prompt in prompts:
        none = torch.zeros(1, 0, dtype=torch.long)
        inputs = collate([prompt], none, none, pad_id=0)
        tokens = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=LENGTH,
            repetition_penalty=1.4,
            suppress_tokens=engine._never.tolist(),
        )
        wanted.append(tokens[0, len(prompt) :].tolist())
    assert words(found) == wanted
    plain = engine.generate(prompts, n=1, sampling=Sampling(LENGTH, temperature=0.0), seeds=range(len(prompts)))
    assert words(found) != words(plain)


def test_log_probabilities_are_those_before_a_penalty(engine, model, prompts):
    sampling = Sampling(max_tokens=LENGTH, temperature=0.7, repetition_penalty=1.4)
    found = engine.generate(prompts, n=2, sampling=sampling, seeds=range(len(prompts)))
    wanted = teacher_forced(model, prompts, found, n=2, temperature=0.7)
    assert torch.allclose(found["engine_logprobs"], wanted, atol=1e-4)
