"""From a checkpoint to a folder that transformers loads."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys

import actor_cases as cases
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from inference.policies.engine import EnginePolicy
from veason import prompt, prompt_settings
from veason.types import Clip, Question, VideoSample
from verl import export
from verl.config import RolloutConfig
from verl.engines import open_engine, pretrained
from verl.engines.base import Sampling
from verl.engines.inputs import collate, process
from verl.models import loading
from verl.protocol import Prompt
from verl.workers import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    cases.write_policy(folder / "untied")
    cases.write_policy(folder / "tied", tied=True)
    with cases.group(folder):
        yield folder


@pytest.fixture(scope="module", params=["untied", "tied"])
def adapter(request, folder):
    """(base model, checkpoint, actor) of a LoRA run."""
    base = folder / request.param
    actor = cases.open_actor(base, rank=4)
    actor.update(cases.six_rollouts(base))
    saved = folder / f"lora_{request.param}" / "step_000001"
    checkpoint.save(saved, actor, {"step": 1})
    return base, saved, actor


def logits(model, base):
    batch = cases.six_rollouts(base)
    with torch.no_grad():
        return model(**collate(batch["inputs"], batch["responses"], batch["response_mask"], pad_id=0)).logits


def adapted(base, actor):
    """The base model with the actor's adapter beside it, unmerged."""
    model = loading.add_lora(pretrained.load_base(base), actor.config.model.lora)
    assert export.fill(model, {name: parameter.full_tensor() for name, parameter in actor.trained.items()}) is None
    return model


def test_merged_is_the_adapter_model(adapter, tmp_path):
    base, saved, actor = adapter
    assert export.main([str(saved), str(tmp_path / "out")]) == 0
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    gap = logits(merged, base) - logits(adapted(base, actor), base)
    assert gap.abs().max() < 1e-5
    assert (logits(merged, base) - logits(pretrained.load_base(base), base)).abs().max() > 1e-2
    wanted = cases.weights(actor)
    assert cases.largest_gap(merged.state_dict(), wanted) < 1e-6
    assert merged.config.dtype == torch.float32


def test_tokenizer_template_and_processor_come_along(adapter, tmp_path):
    base, saved, _ = adapter
    export.export(saved, tmp_path / "out")
    ours, theirs = (AutoProcessor.from_pretrained(path) for path in (tmp_path / "out", base))
    assert ours.chat_template == theirs.chat_template
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    assert ours.image_processor.to_dict() == theirs.image_processor.to_dict()
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir() if path.stat().st_size > 100_000)[-1] != ".bin"


def test_unmerged_is_a_peft_adapter(adapter, tmp_path):
    base, saved, actor = adapter
    assert export.main([str(saved), str(tmp_path / "out"), "--no-merge"]) == 0
    model = PeftModel.from_pretrained(pretrained.load_base(base), tmp_path / "out")
    assert (logits(model, base) - logits(adapted(base, actor), base)).abs().max() < 1e-6
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_a_fully_trained_model_with_a_frozen_tower(folder, tmp_path, kind):
    base = folder / kind
    actor = cases.open_actor(base, frozen=True)
    actor.update(cases.six_rollouts(base))
    checkpoint.save(tmp_path / "step_000001", actor, {})
    export.export(tmp_path / "step_000001", tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert cases.largest_gap(model.state_dict(), cases.weights(actor)) == 0


def test_a_base_model_that_has_moved(adapter, tmp_path):
    base, saved, _ = adapter
    shutil.copytree(base, tmp_path / "moved")
    export.export(saved, tmp_path / "out", base=tmp_path / "moved")
    assert (tmp_path / "out" / "config.json").exists()


def test_sigterm_ends_it_with_the_usual_status_and_leaves_nothing(adapter, tmp_path):
    code = """if True:
        import sys, time
        from verl import export

        def block(source):  # the weights are written by now
            print("half-way", flush=True)
            time.sleep(600)

        export.pretrained.load_processor = block
        sys.exit(export.command())
    """
    command = [sys.executable, "-c", code, str(adapter[1]), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half-way\n"
        assert list((tmp_path / "out.partial").glob("*.safetensors"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(600) == 143
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported(adapter, tmp_path, capsys):
    _, saved, _ = adapter
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert export.main([str(saved), str(tmp_path / "full")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert export.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "not a complete checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("rank", [0, 4])
def test_inference_with_the_export_replies_as_the_rollouts_did(folder, tmp_path, kind, rank):
    """Saved, exported, opened by inference: greedy replies of the rollout engine that has the actor's weights, plain
    and under a repetition penalty, without which a tiny model with a tied head says one token for ever."""
    base, clip = folder / kind, Clip(frame_ids=(0, 2), size=(56, 84))
    actor = cases.open_actor(base, rank=rank)
    actor.update(cases.six_rollouts(base))
    checkpoint.save(tmp_path / "step_000001", actor, {})
    export.export(tmp_path / "step_000001", tmp_path / "out")
    engine = open_engine(str(base), config=RolloutConfig(), device="cpu", dtype=torch.float32)
    engine.sync_weights(actor.weights())
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    (tmp_path / "out" / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 100.0}))
    rng = np.random.default_rng(0)
    questions, prompts = [], []
    for number, expression in enumerate(["the red circle", "which shape moves to the left and which one does not"]):
        sample = VideoSample("toy", "v", str(number), expression, ("a", "b", "c"), tmp_path, (56, 84))
        images = tuple(rng.integers(0, 256, (56, 84, 3), dtype=np.uint8) for _ in clip.frame_ids)
        questions.append(Question(sample=sample, clip=clip, images=images))
        turns = prompt.messages(expression, clip, [None] * len(clip))
        for turn in turns:
            turn["content"] = [{"type": "image"} if part["type"] == "image" else part for part in turn["content"]]
        made = Prompt(str(number), turns, list(images), None)
        prompts.append(process(made, pretrained.load_processor(base), max_length=2000))
    decode = pretrained.load_processor(base).tokenizer.decode
    for defaults, penalty in (("plain", 1.0), ("checkpoint", 100.0)):
        sampling = Sampling(max_tokens=24, temperature=0.0, repetition_penalty=penalty)
        drawn = engine.generate(prompts, n=1, sampling=sampling, seeds=[0, 0])
        rows = zip(drawn["responses"], drawn["response_mask"], strict=True)
        tokens = [tokens[mask.bool()].tolist() for tokens, mask in rows]
        replies = [decode(reply, skip_special_tokens=True) for reply in tokens]
        policy = EnginePolicy("hf", tmp_path / "out", device="cpu", max_new_tokens=24, generation_defaults=defaults)
        assert policy.answer(questions, seed=0) == replies
    assert tokens[0] != tokens[1]
    assert len(set(tokens[0])) > 3
    untrained = open_engine(str(base), config=RolloutConfig(), device="cpu", dtype=torch.float32)
    other = untrained.generate(prompts, n=1, sampling=sampling, seeds=[0, 0])
    assert other["responses"].tolist() != drawn["responses"].tolist()  # so that the weights were put to the test


RECORD = {"frames": 4, "size": [84, 84], "family": "Qwen2.5-VL", "prompt_template": None, "max_new_tokens": 99}


@pytest.mark.parametrize("merge", [True, False])
def test_the_export_says_how_it_wants_to_be_asked(adapter, folder, tmp_path, merge):
    _, _, actor = adapter
    checkpoint.save(tmp_path / "step_000001", actor, {}, asked=RECORD)
    export.export(tmp_path / "step_000001", tmp_path / "out", merge=merge)
    assert prompt_settings.read(tmp_path / "out") == prompt_settings.PromptSettings(4, (84, 84), "Qwen2.5-VL", None, 99)


def test_without_a_word_of_the_task_it_says_what_its_base_says(adapter, tmp_path):
    base, saved, _ = adapter
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "veason.json").write_text(json.dumps(RECORD))
    export.export(saved, tmp_path / "out", base=tmp_path / "base")
    assert prompt_settings.read(tmp_path / "out").max_new_tokens == 99
    (tmp_path / "base" / "veason.json").unlink()
    export.export(saved, tmp_path / "other", base=tmp_path / "base")
    assert prompt_settings.read(tmp_path / "other") is None


def test_a_base_that_is_not_whole_or_another_one_is_refused(adapter, folder, tmp_path, capsys):
    base, saved, _ = adapter
    shutil.copytree(base, tmp_path / "partial")
    weights = load_file(base / pretrained.WEIGHTS)
    kept = {name: tensor for name, tensor in weights.items() if "visual" not in name}
    save_file(kept, tmp_path / "partial" / pretrained.WEIGHTS, {"format": "pt"})
    assert export.main([str(saved), str(tmp_path / "out"), "--base", str(tmp_path / "partial")]) == 2
    assert "30 missing (model.visual." in capsys.readouterr().err
    cases.write_tiny_policy(tmp_path / "smaller", seed=0, size=cases.PolicySize(hidden=64, mlp=32, layers=1))
    assert export.main([str(saved), str(tmp_path / "out"), "--base", str(tmp_path / "smaller")]) == 2
    told = capsys.readouterr().err
    assert f"{saved} does not fit {tmp_path / 'smaller'}: of 28 trained weights" in told
    assert "14 unexpected (" in told
    assert "of another shape (" in told
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_lacks_a_trained_weight_is_refused(adapter):
    base, saved, actor = adapter
    model = loading.add_lora(pretrained.load_base(base), actor.config.model.lora)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = checkpoint.read_weights(saved)
    first = sorted(weights)[0]
    del weights[first]
    assert export.fill(model, weights) == f"1 missing ({first})"
    assert cases.largest_gap(model.state_dict(), before) == 0
