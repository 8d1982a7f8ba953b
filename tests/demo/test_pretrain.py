"""The base policy's training: every stage runs, learns, and leaves a checkpoint that loads."""

import json
import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from demo import pretrain, pretraining_data, probe
from demo.policy import PolicySize


@pytest.fixture(scope="module")
def drawn():
    return [pretraining_data.draw_example(np.random.default_rng([9, i])) for i in range(4)]


def test_labels_put_shapes_in_the_cell_of_their_centre(drawn):
    example = replace(drawn[0], frame_ids=(0,), frames=drawn[0].frames[:1], areas=drawn[0].areas[:, :1] * 0 + 50)
    boxes = np.zeros((len(example.scene.shapes), 1, 4), np.float32)
    boxes[:, 0] = [[60 + i, 30, 70 + i, 40] for i in range(len(boxes))]  # centres in the third column, second row
    labelled = probe.label_frames([replace(example, boxes=boxes)], Random(0))
    assert labelled.occupied[0].nonzero().tolist() == [[5]]
    assert labelled.boxes[0, 5].tolist() == boxes[-1, 0].tolist()  # the last shape is in front
    assert list(probe.COLOURS)[labelled.colours[0, 5]] == example.scene.shapes[-1].colour


def test_the_reader_reads_what_a_token_says(drawn):
    labelled = probe.label_frames(drawn, Random(0))
    reader = probe.Probe(hidden=8)
    with torch.no_grad():
        reader.facts.weight.zero_()
        reader.facts.bias.zero_()
        for side, value in enumerate((10, 20, 30, 40)):
            reader.facts.bias[1 + len(probe.COLOURS) + len(probe.KINDS) + side * probe.BINS + value] = 5.0
        _, boxes = reader(torch.zeros(len(drawn), 9, 8), labelled)
    assert boxes.unique(dim=0).tolist() == [[10, 20, 30, 40]]


def test_near_numbers_start_near(drawn):
    tokenizer = pretrain.build_tokenizer()
    model = pretrain.build_model(tokenizer, seed=0, size=PolicySize())
    packer = pretrain.Packer(tokenizer, model)
    pretrain.smooth_numbers(model, packer)
    rows = model.lm_head.weight[packer.numbers].detach()
    near, far = (rows[1:] - rows[:-1]).norm(dim=1).mean(), (rows[50:] - rows[:-50]).norm(dim=1).mean()
    assert near < 0.6 * far


def test_soft_labels_like_near_numbers(drawn):
    """A coordinate of 20.4: 20 and 21 are cheap, 25 is dear; at the best prediction the loss is 0."""
    numbers = torch.arange(101)
    pack = pretrain.Pack(
        ids=torch.tensor([[7, 20]]), positions=torch.zeros(3, 1, 2), blocks=torch.ones(1, 2),
        learned=torch.tensor([[False, True]]), kinds=torch.tensor([[0, pretrain.COORDINATE]]),
        values=torch.tensor([[0.0, 20.4]]), patches=torch.zeros(0),
    )  # fmt: skip
    where = torch.tensor([[0, 1]])
    losses = {}
    for guess in (20, 21, 25):
        logits = torch.full((1, 101), 0.0)
        logits[0, guess] = 6.0
        losses[guess] = pretrain.loss_of(logits, where, pack, numbers).item()
    assert losses[20] < losses[21] < losses[25]
    pack.kinds[0, 1] = 0  # the same guess for a plain word: its cross-entropy, once
    word = torch.zeros(1, 101)
    word[0, 20] = 6.0
    plain = pretrain.loss_of(word, where, pack, numbers).item()
    assert plain == pytest.approx(math.log(math.e**6 + 100) - 6)
    pack.kinds[0, 1] = pretrain.NAME
    assert pretrain.loss_of(word, where, pack, numbers).item() == pytest.approx(3 * plain)  # which object: thrice
    pack.kinds[0, 1] = pretrain.COORDINATE
    best = (-0.5 * ((numbers - 20.4) / pretrain.SPREAD[pretrain.COORDINATE]) ** 2)[None]
    assert pretrain.loss_of(best, where, pack, numbers).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("steps", "loss"), [(3, None), pytest.param(100, 3.0, marks=pytest.mark.slow)])
def test_every_stage_runs_and_the_checkpoint_loads(tmp_path, monkeypatch, drawn, steps, loss):
    stages = tuple(replace(stage, steps=steps, clips=1) for stage in pretrain.STAGES[2:])
    monkeypatch.setattr(pretrain, "STAGES", stages)
    monkeypatch.setattr(pretrain, "VISION_STEPS", 2 * steps)
    monkeypatch.setattr(pretrain, "VISION_FRAMES", 4)
    monkeypatch.setattr(pretrain, "SIZE_OF_BASE", PolicySize())
    monkeypatch.setattr(pretrain, "make_examples", lambda count, seed: drawn)
    pretrain.main(["--out", str(tmp_path / "base"), "--examples", "4"])
    record = json.loads((tmp_path / "base" / "pretraining" / "record.json").read_text())
    if loss:  # three steps are too few for a point of the curve
        assert [line["stage"] for line in record["curve"]] == ["vision", "clips", "prompts"]
        assert record["curve"][-1]["loss"] < loss  # chance is ln 1571 = 7.4
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, drawn):
    steps = {"clips": 100, "prompts": 40}
    stages = tuple(replace(stage, steps=steps[stage.name], clips=1) for stage in pretrain.STAGES[2:])
    monkeypatch.setattr(pretrain, "STAGES", stages)
    monkeypatch.setattr(pretrain, "VISION_STEPS", 2)
    monkeypatch.setattr(pretrain, "VISION_FRAMES", 2)
    monkeypatch.setattr(pretrain, "SIZE_OF_BASE", PolicySize())
    monkeypatch.setattr(pretrain, "make_examples", lambda count, seed: drawn)
    run = lambda name: pretrain.main(["--out", str(tmp_path / name), "--examples", "4"])  # noqa: E731
    run("whole")

    learn, calls = pretrain.accumulate_gradients, iter(range(120))

    def stop(trainer, stage):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return learn(trainer, stage)

    monkeypatch.setattr(pretrain, "accumulate_gradients", stop)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    monkeypatch.setattr(pretrain, "accumulate_gradients", learn)
    run("stopped")
    whole, stopped = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped
    assert not (tmp_path / "stopped" / "pretraining" / "state.pt").exists()


def test_frames_that_answer_nothing_are_no_example(drawn):
    tokenizer = pretrain.build_tokenizer()
    packer = pretrain.Packer(tokenizer, pretrain.build_model(tokenizer, seed=0, size=PolicySize()))
    blank = replace(drawn[0], areas=np.zeros_like(drawn[0].areas))
    assert pretrain.draw_pack([blank], packer, Random(0), 1, pretrain.STAGES[-1]) is None
