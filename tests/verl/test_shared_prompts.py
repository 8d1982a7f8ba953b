"""Replies beside one prompt: the layout by hand, and the same numbers as rows of their own."""

from __future__ import annotations

import actor_cases as cases
import pytest
import torch

from verl.engines import pretrained
from verl.engines.inputs import PromptInputs
from verl.models import loading, shared_prompts

GROUPS = (3, 1, 2)
"""Replies to two images, to one of another size, and to none."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    with cases.group(folder):
        cases.write_policy(folder / "policy")
        cases.write_policy(folder / "tied", tied=True)
        yield folder


def text(*ids):
    tokens = torch.tensor(ids)
    return PromptInputs(tokens, torch.zeros_like(tokens), None, None, tokens)


def test_layout_by_hand(folder):
    one, other = text(10, 11, 12), text(20, 21)
    responses = torch.tensor([[1, 2, 0], [3, 4, 5], [6, 0, 0], [0, 0, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]])
    model = pretrained.load_base(folder / "policy", empty=True)
    inputs = shared_prompts.collate([one, one, other, other], responses, mask, model=model)
    assert inputs["input_ids"].tolist() == [[10, 11, 12, 1, 12, 3, 4, 20, 21]]
    assert inputs["position_ids"].tolist() == [[[0, 1, 2, 3, 2, 3, 4, 0, 1]]] * 3
    assert inputs["logits_to_keep"].tolist() == [2, 3, 4, 5, 6, 8]
    assert inputs["packed"].groups == ((2, 2, 3), (1, 1, 0))
    assert "pixel_values" not in inputs


def test_positions_are_those_of_a_row_of_its_own(folder):
    """The images' own positions in the prompt, and a reply right after it."""
    prompt = cases.prompts(folder / "policy")[0]
    model = pretrained.load_base(folder / "policy", empty=True)
    reply = torch.arange(4)
    ids, types = torch.cat([prompt.input_ids, reply]), torch.cat([prompt.mm_token_type_ids, 0 * reply])
    row, _ = model.model.get_rope_index(ids[None], types[None], image_grid_thw=prompt.image_grid_thw)
    replies = reply.expand(2, -1)
    inputs = shared_prompts.collate([prompt] * 2, replies, torch.ones_like(replies), model=model)
    start = len(prompt) - 1
    assert torch.equal(inputs["position_ids"][..., : start + 4], row[..., : start + 4])
    assert torch.equal(inputs["position_ids"][..., start + 4 :], row[..., start : start + 4])
    assert torch.equal(inputs["image_grid_thw"], prompt.image_grid_thw)


def test_a_stretch_sees_its_prompt_and_itself():
    layout = shared_prompts.Layout.of([(3, 2, 1), (1, 2)])
    assert layout.seen_by(2, 3).int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert layout.seen_by(2, 1).int().tolist() == [[1, 1, 0], [1, 1, 1]]
    assert layout.seen_by(1, 3).int().tolist() == [[1, 1, 1, 1]]


KINDS = {
    "full": {},
    "lora": {"rank": 4, "checkpointing": True},
    "tied": {"tied": True},
    "checkpointed": {"checkpointing": True, "frozen": True},
    "gspo by reply": {"policy_loss": "gspo", "loss_agg_mode": "seq-mean-token-mean"},
    "by tokens": {"max_tokens_per_micro_batch": 60},
    "a group cut in two": {"rows": 2},
}


def open_kind(folder, kind, *, share):
    fields = dict(KINDS[kind])
    rows, name = fields.pop("rows", 6), "tied" if fields.pop("tied", False) else "policy"
    sizes = {f"micro_batch_size_per_device_for_{use}": rows for use in ("update", "experience")}
    return cases.open_actor(folder / name, share_prompts=share, **sizes, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_prompts_give_the_same_numbers(folder, kind):
    batch = cases.six_rollouts(folder / "policy", groups=GROUPS)
    shared, apart = (open_kind(folder, kind, share=share) for share in (True, False))
    for score in ("logprobs", "reference_logprobs"):
        ours, theirs = (getattr(actor, score)(batch) for actor in (shared, apart))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for _ in range(2):
        assert shared.update(batch) == pytest.approx(apart.update(batch), rel=1e-5, abs=1e-5)
    assert cases.largest_gap(cases.weights(shared), cases.weights(apart)) < 1e-5


@pytest.mark.parametrize("share", [True, False])
def test_text_layers_read_a_prompt_once(folder, share):
    """The prompts without their last token, and as many tokens as are predicted; or a padded rectangle."""
    batch = cases.six_rollouts(folder / "policy", groups=GROUPS)
    actor = open_kind(folder, "full", share=share)
    read = []
    hook = (
        loading.plain(actor.model)
        .model.language_model.layers[0]
        .mlp.register_forward_hook(lambda module, args, output: read.append(tuple(output.shape[:2])))
    )
    actor.logprobs(batch)
    hook.remove()
    lengths = [len(prompt) for prompt in cases.prompts(folder / "policy")]
    assert read == ([(1, sum(lengths) - 3 + sum(cases.LENGTHS))] if share else [(6, max(lengths) + max(cases.LENGTHS))])


def test_rows_of_one_prompt_need_not_be_neighbours(folder):
    batch = cases.six_rollouts(folder / "policy", groups=GROUPS)
    order = [4, 0, 3, 1, 5, 2]
    actor = open_kind(folder, "full", share=True)
    torch.testing.assert_close(actor.logprobs(batch.select(order)), actor.logprobs(batch)[order], atol=1e-6, rtol=0)


def test_other_attention_keeps_rows_apart(folder):
    model = pretrained.load_base(folder / "policy")
    model.set_attn_implementation("eager")
    assert not shared_prompts.use_packing(model)
    assert model.config.get_text_config()._attn_implementation == "eager"
